"""An auditor over a model that knows nothing: what it measures, keeps and refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medlib.audit import reference
from medlib.audit.agreement import Agreement
from medlib.audit.auditor import Auditor
from medlib.audit.reference import Gallery, unlike
from medlib.config import ConfigError, DataError, path
from medlib.data import sources
from medlib.data.cases import Case
from medlib.data.suite import Suite
from medlib.models import scoring
from medlib.stats import apply_temperature


def held_out(config) -> Suite:
    return sources.suite(config, "test")


def test_an_answer_is_what_the_benchmark_measures(auditor, config):
    suite = held_out(config)
    case = suite.scenarios[0]
    answer = auditor.case(case, suite.images_dir, with_map=True, grid=2)
    p = scoring.p_correct(auditor.model, suite.rows([0]))[0]
    assert answer.p_correct == pytest.approx(p, abs=1e-6)
    assert answer.verdict == ("CORRECT" if p >= 0.5 else "ERROR")
    temperature = auditor.reference.decision.temperature
    assert answer.probability == pytest.approx(float(apply_temperature(p, temperature)), abs=1e-6)
    assert answer.drop.shape == (2, 2) and list(answer.without) == ["image", "finding", "treatment"]
    assert {"model", "adapter", "data", "revision", "case"} == set(answer.hashes)
    assert "guarantee" in answer.guarantee or "With probability at least 90%" in answer.guarantee
    assert "verdict" not in answer.case and answer.case["finding"] == case.finding


def test_a_training_image_is_nearest_to_itself(auditor, config):
    train = sources.suite(config, "train")
    scenario = train.scenarios[3]
    nearest = auditor.case(scenario, train.images_dir).nearest
    assert nearest[0]["image"] == scenario.image and nearest[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert [n["similarity"] for n in nearest] == sorted((n["similarity"] for n in nearest), reverse=True)


def test_a_case_needs_no_verdict_and_leaves_no_trace(auditor, config):
    suite = held_out(config)
    case = Case(**suite.scenarios[0].model_dump(include=set(Case.model_fields)))
    _ = auditor.reference
    before = {file: file.stat().st_mtime_ns for file in path(config.run_dir).parent.rglob("*") if file.is_file()}
    auditor.case(case, suite.images_dir)
    assert before == {f: f.stat().st_mtime_ns for f in path(config.run_dir).parent.rglob("*") if f.is_file()}


def test_the_reference_is_made_once_and_another_adapter_has_another(auditor, config, monkeypatch, tmp_path):
    known = auditor.reference
    from medlib.audit import preparation

    monkeypatch.setattr(preparation, "make", None)  # a second call would fail
    again = Auditor(config).reference
    assert again.decision == known.decision and np.array_equal(again.gallery.features, known.gallery.features)
    adapter = tmp_path / "other"
    adapter.mkdir()
    for file in Path(config.adapter).iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    other = Auditor(config.model_copy(update={"adapter": str(adapter)}))
    assert not other.has_reference and auditor.has_reference


def test_without_an_adapter_the_message_names_two_ways(small_config):
    with pytest.raises(ConfigError, match="(?s)report.*--run-dir.*--adapter"):
        Auditor(small_config)


def test_a_broken_image_is_named(auditor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    case = Case(id="a", image="a.png", finding="a mass", treatment="biopsy")
    with pytest.raises(DataError, match="a.png"):
        auditor.case(case, tmp_path)


def test_a_system_without_a_tower_answers_too(config):
    auditor = Auditor(config, "constant")
    suite = held_out(config)
    answer = auditor.case(suite.scenarios[0], suite.images_dir, with_map=True)
    assert answer.verdict == "CORRECT" and answer.drop is None and not answer.nearest


# --- reasons


@pytest.fixture
def gallery():
    """Two modalities in the plane, around 0 and around 10, of variance 1; limit 4 is a distance of 2."""
    cases = [{"id": str(i)} for i in range(3)]
    features = np.array([[0, 0], [1, 0], [10, 10]], dtype=np.float32)
    means = np.array([[0.0, 0], [10, 10]])
    return Gallery(features, cases, means, np.stack([np.eye(2)] * 2), np.array([4.0, 4.0]), ["xray", "mri"])


@pytest.mark.parametrize(
    ("place", "modality", "said"),
    [
        ((0, 1.9), "xray", None),
        ((0, 2.1), "xray", "unlike the images"),
        ((10, 9), "xray", "looks like mri, not like xray"),
        ((10, 9), "unspecified", None),
        ((5, 5), "unspecified", "unlike the images"),
        ((0, 0), "ct", "no image of the modality ct"),
    ],
)
def test_reasons_from_the_image(gallery, place, modality, said):
    [distances] = gallery.distances(np.array([place]))
    reason = unlike(gallery, modality, distances)
    assert reason is None if said is None else said in reason


@pytest.mark.parametrize(("place", "said"), [((0, 1.9), None), ((0, 2.1), "unlike the images")])
def test_training_images_without_a_modality_are_compared_with_all(gallery, place, said):
    one = {name: getattr(gallery, name)[:1] for name in ("means", "precisions", "limits")}
    unstated = dataclasses.replace(gallery, **one, modalities=["unspecified"])
    reason = unlike(unstated, "xray", unstated.distances(np.array([place]))[0])
    assert reason is None if said is None else said in reason


def test_distances_are_squared_and_in_units_of_the_limit(gallery):
    assert gallery.distances(np.array([[0.0, 4.0]]))[0].tolist() == [4.0, (100 + 36) / 4]


def test_a_reference_survives_the_disk(gallery, tmp_path):
    made = reference.Reference(reference.Decision(float(np.nextafter(1, 2)), "none", 1.7), gallery)
    reference._write(tmp_path / "r.npz", made)
    read = reference._read(tmp_path / "r.npz")
    assert read.decision == made.decision and read.gallery.cases == gallery.cases
    assert np.array_equal(read.gallery.precisions, gallery.precisions) and read.agreement is None
    told = Agreement(0.25, 2, 100, 38, 40)
    reference._write(tmp_path / "r.npz", reference.Reference(made.decision, gallery, agreement=told))
    assert reference._read(tmp_path / "r.npz").agreement == told
    reference._write(tmp_path / "r.npz", reference.Reference(made.decision, None))
    assert reference._read(tmp_path / "r.npz").gallery is None
