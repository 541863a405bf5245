"""A data set of one's own as the suites of a run: its sides, further cases and contradictions."""

import csv
import itertools
import re
import shutil

import pytest

from medlib.config import DataError, resolve
from medlib.data import leakage, own_suites, sources
from medlib.data.synthetic import lexicon
from medlib.data.synthetic.draw import draw, save

FINDINGS = [f for m in ("xray", "ultrasound") for f in lexicon.findings_of(m)]
EACH = 24  # images of a finding, two of each group


def _write(file, rows):
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Labelled images: file, modality, finding and group."""
    folder, rows = tmp_path_factory.mktemp("labelled"), []
    for number in range(EACH):
        for finding in FINDINGS:
            name = f"{finding.modality}_{finding.name}_{number}.png"
            save(draw(finding.modality, finding.name, 7_000_000 + number, size=64), folder / name)
            group = f"{finding.modality}-{finding.name}-{number // 2}"
            rows.append({"file": name, "modality": finding.modality, "finding": finding.name, "group": group})
    _write(folder / "metadata.csv", rows)
    return folder


@pytest.fixture(scope="module")
def cases(images, tmp_path_factory):
    """The same images as given cases, with the fewest columns there can be."""
    folder, rows = tmp_path_factory.mktemp("given"), []
    for number, file in enumerate(sorted(images.glob("*.png"))):
        (folder / file.name).write_bytes(file.read_bytes())
        verdict = "appropriate" if number % 2 else "inappropriate"
        row = {
            "id": f"c{number}",
            "image": file.name,
            "finding": "A shadow",
            "treatment": "Rest",
            "verdict": verdict,
        }
        rows.append(row)
    _write(folder / "cases.csv", rows)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Sides are written to the folder of the test."""
    monkeypatch.setattr(own_suites, "ASSIGNMENTS", tmp_path / "sides")
    own_suites._of.cache_clear()


def _config(folder, **further):
    return resolve("tiny", data_dir=str(folder), **further)


@pytest.mark.parametrize("kind", ["images", "cases"])
def test_the_suites_of_a_run_are_those_of_the_data_and_share_no_image(kind, request):
    config = _config(request.getfixturevalue(kind))
    suites = sources.prepare(config)
    assert list(suites) == ["core_train", "core_val", "train", "val", "test"]
    assert len(suites["core_train"]) == len(suites["core_val"]) == 0
    shown = {side: {s.image for s in suites[side].scenarios} for side in ("train", "val", "test")}
    assert all(shown.values())
    assert (
        not shown["train"] & shown["test"]
        and not shown["train"] & shown["val"]
        and not shown["val"] & shown["test"]
    )
    assert all(suites[side].image(suites[side].scenarios[0]).mode == "RGB" for side in shown)
    assert {s.verdict for s in suites["test"].scenarios} == {"CORRECT", "ERROR"}


def test_groups_are_not_divided(images):
    suites = sources.prepare(_config(images))
    groups = [{s.factors["group"] for s in suites[side].scenarios} for side in ("train", "val", "test")]
    assert not any(one & two for one, two in itertools.combinations(groups, 2))


def test_the_sides_are_read_again_and_another_seed_draws_others(images):
    first = own_suites.of(_config(images)).sides.table
    own_suites._of.cache_clear()
    assert own_suites.of(_config(images)).sides.table.equals(first)
    assert not own_suites.of(_config(images, seed=1)).sides.table["split"].equals(first["split"])


def test_labelled_images_give_further_cases_contradictions_and_other_words(images):
    config = _config(images)
    test, feedback = sources.suite(config, "test"), sources.feedback(config)
    notes, words = sources.contradiction(config, "test"), sources.paraphrase(config)
    shown = {s.image for s in test.scenarios}
    assert {s.error_type for s in notes.scenarios} == {"none", "contradiction"}
    assert {s.image for s in notes.scenarios} <= {r.file for r in own_suites.of(config).data.table.itertuples()}
    assert not {s.image for s in feedback.scenarios} & shown
    assert [s.id for s in words.scenarios] == [s.id for s in test.scenarios]
    assert any(a.finding != b.finding for a, b in zip(words.scenarios, test.scenarios))
    # nobody draws these images a second time, and no rule knows their patients
    assert len(sources.second_renderer(config)) == len(sources.patient_pairs(config, "test")) == 0
    assert len(sources.unseen_findings(config)) == 0
    with pytest.raises(DataError, match="for drawn images only"):
        sources.prepare(config.model_copy(update={"held_out_findings": ("xray/ground_glass",)}))
    assert [s.verdict for s in words.scenarios] == [s.verdict for s in test.scenarios]


def test_given_cases_have_no_contradictions_and_calibrate_on_validation(cases):
    config = _config(cases)
    assert len(sources.contradiction(config, "test")) == len(sources.paraphrase(config)) == 0
    validation = {s.id for s in sources.suite(config, "val").scenarios}
    calibration, tuning = sources.calibration(config), sources.tuning(config)
    assert {s.id for s in calibration.scenarios} | {s.id for s in tuning.scenarios} <= validation
    groups = [{s.factors["pair"] for s in part.scenarios} for part in (calibration, tuning)]
    assert all(groups) and not groups[0] & groups[1]
    assert len(sources.demographics(config)) == 0
    assert len(sources.described(config)) == len(FINDINGS) * EACH


@pytest.mark.parametrize("kind", ["images", "cases"])
def test_broken_images_are_named_together_and_left_out(kind, request, tmp_path, capsys):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "data")
    files = sorted(file.name for file in folder.glob("*.png"))[:2]
    for file in files:
        (folder / file).write_bytes((folder / file).read_bytes()[:200])
    first = own_suites.of(_config(folder))
    assert len(first.data) == len(first.sides.table) == len(FINDINGS) * EACH - 2 and first.data.unread == 2
    assert not set(files) & set(first.data.rows["file"])
    said = capsys.readouterr().err
    for file in files:
        assert re.search(rf"\.csv, row \d+, field 'image': {file}: truncated or unreadable image", said)
    assert str(tmp_path) not in said and "2 rows cannot be read and are left out" in said

    own_suites._of.cache_clear()  # as in the next command: the same is said, of the sides that were written
    again = own_suites.of(_config(folder))
    assert capsys.readouterr().err == said and again.sides.table.equals(first.sides.table)
    assert again.data.sha256 == first.data.sha256 and len(again.data) == len(first.data)
    assert {s.image for s in sources.suite(_config(folder), "test").scenarios} <= set(first.data.rows["file"])


def test_an_image_that_can_be_read_by_now_is_taken_up_again(images, monkeypatch, capsys):
    load, refused = leakage.load_image, f"xray_{FINDINGS[0].name}_0.png"

    def refuse(path):
        if path.name == refused:
            raise DataError(f"{path}: a saved screen")
        return load(path)

    leakage._fingerprint.cache_clear()
    monkeypatch.setattr(leakage, "load_image", refuse)
    assert refused not in set(own_suites.of(_config(images)).data.rows["file"])
    monkeypatch.setattr(leakage, "load_image", load)
    own_suites._of.cache_clear()
    assert refused in set(own_suites.of(_config(images)).sides.table["file"])


def test_a_data_set_without_a_sound_image_is_refused(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "data")
    for file in folder.glob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image can be read\n(.*\n){20}… and"):
        own_suites.of(_config(folder))
