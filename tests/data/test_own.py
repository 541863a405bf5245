"""Data sets that the project did not make: their forms, their dirt, and what is said about both."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medlib.config import ROOT, DataError
from medlib.data import own
from medlib.data.cases import Patient, read_scenarios, write_scenarios

SHARED = ROOT.parent / "shared"
AGES = ("62Y", "062Y", "018M", "<1", ">89", "40", "", "unknown")
SEXES = ("F", "M", "O", "unknown", "female", "Male", "", "w")
VERDICTS = ("yes", "no", "1", "0", "appropriate", "inappropriate", "CORRECT - fits", "ERROR - does not fit")


def noise(seed: int, size: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8))


def images(folder, number: int, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        noise(i).save(folder / f"scan{i:02d}.{suffix}")


@pytest.fixture
def dirty(tmp_path):
    """A folder with 40 rows as a spreadsheet in Windows-1252 writes them, four of them bad."""
    folder = tmp_path / "clinic"
    images(folder / "images", 40)
    lines = ["Case ID;Picture;Modality;Age;Sex;Chief complaint;Diagnosis;Therapy;Appropriate?;Patient name;Ward"]
    for i in range(40):
        cells = [
            f"c{i}",
            f"scan{i:02d}.png",
            ("CT", "CXR", "dermatology")[i % 3],
            AGES[i % 8],
            SEXES[i % 8],
            "Größe nimmt zu",
            f"Lesion {i}; size 5 mm.".replace(";", ","),
            "biopsy",
            VERDICTS[i % 8],
            "Doe",
            "7",
        ]
        lines.append(";".join(cells))
    lines[5] = lines[5].replace("yes", "").replace("appropriate", "perhaps")
    lines[10] = lines[10].replace("scan09.png", "../../secret.png")
    lines[20] = lines[20].replace("c19", "c18")
    lines[30] += ";one;more"
    (folder / "cases.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    return folder


def test_a_dirty_spreadsheet(dirty):
    with pytest.raises(DataError, match="4 problems in clinic") as error:
        own.read(dirty)
    assert all(f"cases.csv, row {row}" in str(error.value) for row in (6, 11, 21, 31))
    data = own.read(dirty, strict=False)
    assert (data.kind, len(data), data.unread, len(data.problems)) == ("cases", 36, 4, 4)
    assert "field 'Appropriate?': 'perhaps' is no verdict" in "\n".join(data.problems)
    assert "field 'Picture': '../../secret.png' leads outside the folder" in "\n".join(data.problems)
    assert "field 'Case ID': 'c18' was used in cases.csv, row 20" in "\n".join(data.problems)
    by_id = {case.id: case for case in data.cases}
    assert [by_id[f"c{i}"].patient.age for i in (0, 1, 2, 3, 5, 6, 7)] == [62, 62, 1, 0, 40, None, None]
    assert [by_id[f"c{i}"].patient.sex for i in (0, 1, 2, 3, 5, 6, 7)] == [
        "female", "male", "other", None, "male", None, "female",
    ]  # fmt: skip
    first = by_id["c0"]
    assert (first.modality, first.image, first.verdict) == ("ct", "images/scan00.png", "CORRECT")
    assert first.patient.complaint == "Größe nimmt zu" and first.finding == "Lesion 0, size 5 mm"
    assert first.error_type is first.severity is first.cost_impact is None
    assert first.factors == {"Ward": "7"}
    notes = "\n".join(data.notes)
    for said in (
        "cp1252",
        "finding is read from column 'Diagnosis'",
        "'yes' is read as CORRECT (",
        "'Patient name'",
    ):
        assert said in notes
    assert "not stated: group, split, error_type, severity, cost_impact" in notes
    assert "Doe" not in notes + "\n".join(data.problems)


def simple_rows(number: int) -> list[dict]:
    return [
        {"id": f"c{i}", "image": f"scan{i:02d}.png", "finding": "mass", "treatment": "biopsy", "verdict": "yes"}
        for i in range(number)
    ]


def test_a_needed_column_is_known_by_its_last_word(tmp_path):
    images(tmp_path, 3)
    names = {"finding": "Radiological finding", "treatment": "Plan / treatment", "verdict": "Final verdict"}
    table = pd.DataFrame(simple_rows(3)).rename(columns=names)
    table.assign(**{"treatment date": "2024"}).to_csv(tmp_path / "cases.csv", index=False)
    data = own.read(tmp_path)
    assert (data.cases[0].finding, data.cases[0].treatment, data.cases[0].verdict) == ("mass", "biopsy", "CORRECT")
    assert "finding is read from column 'Radiological finding', by its last word" in data.notes
    table.assign(**{"First finding": "x"}).to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match="no column for finding"):  # two of them: nothing is guessed
        own.read(tmp_path)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_cases_and_hash(tmp_path, form):
    read = []
    for suffix in (form, "csv"):
        folder = tmp_path / suffix
        images(folder, 3)
        frame = pd.DataFrame(simple_rows(3))
        path = folder / f"cases.{suffix}"
        if suffix == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        elif suffix == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
        read.append(own.read(folder))
    assert read[0].cases == read[1].cases and read[0].sha256 == read[1].sha256
    assert read[0].cases[0].modality == "unspecified" and read[0].cases[0].patient == Patient()
    noise(99).save(tmp_path / "csv" / "scan00.png")
    assert own.read(tmp_path / "csv").sha256 != read[0].sha256  # another image is another data set
    assert len(own.read(tmp_path / "csv" / "cases.csv")) == 3


def test_files_of_a_split(tmp_path):
    images(tmp_path, 4)
    rows = simple_rows(4)
    pd.DataFrame(rows[:2]).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame(rows[2:3]).to_csv(tmp_path / "valid.csv", index=False)
    pd.DataFrame(rows[2:]).to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "summary.csv").write_text("a,b\n1,2\n")
    data = own.read(tmp_path)
    # c2 stands on two sides: read here, refused by the check of the split
    assert list(data.rows["split"]) == ["test", "test", "train", "train", "val"]
    assert "not read: summary.csv" in data.notes


def test_a_table_that_cannot_be_told_is_asked_for(tmp_path):
    images(tmp_path, 1)
    for name in ("one.csv", "two.csv"):
        pd.DataFrame(simple_rows(1)).to_csv(tmp_path / name, index=False)
    with pytest.raises(DataError, match=r"which table is it\? Name it under 'table:'.*one.csv, two.csv"):
        own.read(tmp_path)
    (tmp_path / "dataset.yaml").write_text("table: two.csv")
    assert len(own.read(tmp_path)) == 1


def test_the_card_maps_columns_and_values(tmp_path):
    images(tmp_path / "bilder", 2)
    (tmp_path / "daten.csv").write_text(
        "Nr,Bild,Befund,Plan,Urteil,Geschlecht,Herkunft\n1,scan00,Masse,OP,richtig,weiblich,A\n2,scan01.PNG,o.B.,OP,2,m,B\n"
    )
    (tmp_path / "dataset.yaml").write_text(
        "name: Klinik\nkind: cases\nimages: bilder\nmodality: ct\nlicence: CC BY 4.0\nreal_images: yes\n"
        "columns: {id: Nr, image: Bild, finding: Befund, treatment: Plan, verdict: Urteil, sex: Geschlecht}\n"
        "values: {verdict: {richtig: CORRECT, 2: ERROR}, sex: {weiblich: female}}\n"
    )
    data = own.read(tmp_path)
    assert data.name == "Klinik" and data.card.real_images is True and data.card.licence == "CC BY 4.0"
    assert [(s.verdict, s.patient.sex, s.modality) for s in data.cases] == [
        ("CORRECT", "female", "ct"),
        ("ERROR", "male", "ct"),
    ]
    assert [s.image for s in data.cases] == ["bilder/scan00.png", "bilder/scan01.png"]
    assert any("2 images were found elsewhere" in note for note in data.notes)
    assert data.cases[1].factors == {"Herkunft": "B"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense: 1", "dataset.yaml, key 'nonsense'"),
        ("kind: films", "dataset.yaml, key 'kind'"),
        ("name: ../evil", "dataset.yaml, key 'name': 1 to 100 letters, digits"),
        ("name: /tmp/x", "dataset.yaml, key 'name': 1 to 100 letters"),
        ("name: .hidden", "dataset.yaml, key 'name'"),
        ("name: ''", "dataset.yaml, key 'name'"),
        ("columns: {befund: a}", "dataset.yaml, key 'columns.befund'"),
        ("columns: {finding: Befund}", "key 'columns.finding': no column 'Befund'; there are id, image"),
        ("values: {x: {a: b}}", "dataset.yaml, key 'values.x'"),
        ("splits: {dev: a.csv}", "dataset.yaml, key 'splits.dev'"),
        ("table: ../elsewhere.csv", "dataset.yaml, key 'table': no file elsewhere.csv inside"),
        ("a: [", "dataset.yaml: not valid YAML"),
        ("- a", "dataset.yaml"),
        ("!!python/object/apply:os.system [ls]", "dataset.yaml"),
    ],
)
def test_a_bad_card_names_file_and_key(tmp_path, text, said):
    images(tmp_path, 1)
    pd.DataFrame(simple_rows(1)).to_csv(tmp_path / "cases.csv", index=False)
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(DataError) as error:
        own.read(tmp_path)
    assert said in str(error.value)


def test_needed_columns_are_named(tmp_path):
    images(tmp_path, 1)
    frame = pd.DataFrame(simple_rows(1))
    frame.drop(columns="verdict").to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match="'treatment' is a treatment, but there is no verdict"):
        own.read(tmp_path)
    frame.drop(columns="image").to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match="no column for image.*there are: id, finding, treatment, verdict"):
        own.read(tmp_path)
    with pytest.raises(DataError, match="no such folder or file"):
        own.read(tmp_path / "nowhere")


def test_what_says_nothing_is_no_finding_and_no_treatment(tmp_path):
    images(tmp_path, 8)
    words = [
        ("mass", "None"), ("mass", "-"), ("nan", "biopsy"), ("N/A", "biopsy"), ("-", "biopsy"), ("mass", "NaN"),
        ("mass", "n/a"), ("mass", "?"),
    ]  # fmt: skip
    rows = [row | {"finding": f, "treatment": t} for row, (f, t) in zip(simple_rows(8), words)]
    pd.DataFrame(rows).to_json(tmp_path / "cases.jsonl", orient="records", lines=True)
    data = own.read(tmp_path, strict=False)
    assert [case.treatment for case in data.cases] == ["None", "-"]  # may be meant as no treatment
    assert data.problems[0] == "cases.jsonl, row 3, field 'finding': 'nan' says nothing" and data.unread == 6


def test_words_for_errors_that_the_project_does_not_have(tmp_path):
    images(tmp_path, 3)
    rows = [
        row | {"verdict": v, "error_type": e, "severity": s, "cost": c, "source": "site A", "note_id": "7"}
        for row, v, e, s, c in zip(
            simple_rows(3),
            ("1", "0", "0"),
            ("none", "Overtreatment", "wrong dose"),
            ("", "severe", "tiny"),
            ("0", "$5,000", ""),
        )
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "cases.csv", index=False)
    data = own.read(tmp_path)
    assert [(s.error_type, s.severity, s.cost_impact) for s in data.cases] == [
        ("none", None, 0),
        ("overtreatment", "high", 5000),
        (None, None, None),
    ]
    assert data.cases[2].factors["stated_error_type"] == "wrong dose"
    assert data.cases[2].factors["dataset"] == "site A"  # a factor `source` is how a verdict was made
    assert any(note.startswith("error_type: 'wrong dose' is read as not stated") for note in data.notes)


def test_a_column_that_asks_for_errors(tmp_path):
    images(tmp_path, 2)
    frame = pd.DataFrame(simple_rows(2)).rename(columns={"verdict": "is_error"}).assign(is_error=["yes", "no"])
    frame.to_csv(tmp_path / "cases.csv", index=False)
    assert [s.verdict for s in own.read(tmp_path).cases] == ["ERROR", "CORRECT"]


def test_a_contradiction_inside_a_row_is_named(tmp_path):
    images(tmp_path, 1)
    pd.DataFrame(simple_rows(1)).assign(error_type="overtreatment").to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(
        DataError, match="cases.csv, row 2, field 'verdict': error_type: 'overtreatment' contradicts"
    ):
        own.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.png", "C:\\x.png", "https://a.b/x.png", "link.png", "a" * 300]
)
def test_image_names_stay_inside_the_folder(tmp_path, name):
    folder = tmp_path / "data"
    images(folder, 1)
    noise(1).save(tmp_path / "x.png")
    (folder / "link.png").symlink_to(tmp_path / "x.png")
    rows = simple_rows(1) + [simple_rows(1)[0] | {"id": "bad", "image": name}]
    pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
    data = own.read(folder, strict=False)
    assert len(data) == 1 and "cases.csv, row 3, field 'image'" in data.problems[0]


@pytest.mark.parametrize(
    ("there", "name", "found"),
    [
        (["mri/1.png", "xray/2.png"], "xray/1.png", None),  # another patient's: its folder is there, without it
        (["mri/1.png"], "xray/1.jpg", None),  # of another ending only without a folder
        (["p1/xray/1.png", "p2/mri/2.png"], "p2/xray/1.png", None),
        (["xray/1.png", "p2/mri/2.png"], "p2/xray/1.png", None),
        (["p1/xray/1.png", "p2/xray/2.png"], "xray/1.png", None),  # two folders of that name
        (["a/1.png", "b/1.png"], "1.png", None),
        (["scan.png"], "scan.7", None),  # .7 is no ending of an image
        (["mri/1.png"], "1.png", "mri/1.png"),
        (["mri/1.png"], "1", "mri/1.png"),
        (["mri/1.png"], "1.jpg", "mri/1.png"),
        (["mri/1.png"], "old\\pictures\\1.PNG", "mri/1.png"),  # a folder of another machine
        (["mri/1.png", "ct/1.png"], "data/mri/1.png", "mri/1.png"),
        (["all/mri/1.png", "all/ct/1.png"], "MRI/1.PNG", "all/mri/1.png"),
    ],
)
def test_no_image_of_another_folder_is_taken(tmp_path, there, name, found):
    for number, place in enumerate(there):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(tmp_path / place)
    pd.DataFrame([simple_rows(1)[0] | {"image": name}]).to_csv(tmp_path / "cases.csv", index=False)
    if found is None:
        with pytest.raises(DataError, match=r"cases.csv, row 2, field 'image': image .* not found"):
            own.read(tmp_path)
    else:
        data = own.read(tmp_path)
        assert data.cases[0].image == found and any(f": {found}" in note for note in data.notes)


def test_a_name_that_two_rows_mean_differently_is_not_guessed(tmp_path):
    images(tmp_path / "p2", 1)
    names = ("p1/scan00.png", "p2/scan00.png")
    rows = [row | {"image": name} for row, name in zip(simple_rows(2), names)]
    pd.DataFrame(rows).to_csv(tmp_path / "cases.csv", index=False)
    data = own.read(tmp_path, strict=False)
    assert [case.id for case in data.cases] == ["c1"] and "'p1/scan00.png' not found" in data.problems[0]


def test_guesses_are_listed_and_counted(tmp_path):
    images(tmp_path / "scans", 13)
    pd.DataFrame(simple_rows(13)).to_csv(tmp_path / "cases.csv", index=False)
    [note] = [note for note in own.read(tmp_path).notes if "elsewhere" in note]
    assert "'scan00.png': scans/scan00.png; 'scan01.png'" in note and note.endswith("; … and 3 more")


def test_ids_are_made_where_there_are_none(tmp_path):
    images(tmp_path / "train", 2)
    images(tmp_path / "test", 2)
    for side in ("train", "test"):
        frame = pd.DataFrame(simple_rows(2)).drop(columns="id").rename(columns={"image": "file_name"})
        frame.to_json(tmp_path / side / "metadata.jsonl", orient="records", lines=True)
    data = own.read(tmp_path)
    assert list(data.rows["id"]) == [
        "test-metadata-1", "test-metadata-2", "train-metadata-1", "train-metadata-2",
    ]  # fmt: skip
    assert list(data.rows["file"])[:2] == ["test/scan00.png", "test/scan01.png"]
    assert list(data.rows["split"]) == ["test", "test", "train", "train"]


def test_labelled_images_in_a_table(tmp_path):
    images(tmp_path / "mri", 3)
    pd.DataFrame(
        {
            "file": ["mri/scan00.png", "mri/scan01.png", "mri/scan00.png"],
            "label": ["normal", "glioma", "normal"],
            "modality": "MR",
            "patient_id": ["p1", "p2", "p1"],
            "source": "S",
            "dataset": "D",
            "marks": ["none", "", ""],
        }
    ).to_csv(tmp_path / "metadata.csv", index=False)
    data = own.read(tmp_path, strict=False)
    assert data.kind == "images" and not data.cases
    assert list(data.table) == [
        "file", "modality", "finding", "group", "split", "source", "population", "dataset", "marks",
    ]  # fmt: skip
    assert list(data.table["group"]) == ["patient-1", "patient-2"] and list(data.table["modality"]) == [
        "mri",
        "mri",
    ]
    assert "row 4, field 'file': 'mri/scan00.png' was used in metadata.csv, row 2" in data.problems[0]
    assert data.table["dataset"].tolist() == ["D", "D"] and data.table["source"].tolist() == ["S", "S"]


def test_unknown_groups_are_no_group(tmp_path):
    images(tmp_path, 4)
    frame = pd.DataFrame({"file": [f"scan{i:02d}.png" for i in range(4)], "finding": "mass"})
    frame.assign(group=["a", "unknown", "", "a"]).to_csv(tmp_path / "metadata.csv", index=False)
    assert list(own.read(tmp_path).table["group"]) == ["a", "", "", "a"]


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["scan00.png", "yes", "0", "../a", "62Y", "F", "train", "none", "\x00", "1e99", "<1", "-"]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sets(st.sampled_from("id age sex severity cost group split".split())),
    st.lists(st.lists(cells, min_size=11, max_size=11), min_size=1, max_size=4),
)
def test_any_table_is_read_or_refused(tmp_path, columns, rows):
    """No cell ends in a traceback, and every row is read or named."""
    folder = tmp_path / "set"
    images(folder, 1)
    names = ["image", "finding", "treatment", "verdict", *sorted(columns)]
    frame = pd.DataFrame([row[: len(names)] for row in rows], columns=names)
    frame.to_json(folder / "cases.jsonl", orient="records", lines=True)
    try:
        data = own.read(folder, strict=False)
    except DataError as error:
        assert str(error)
    else:
        assert len(data) + data.unread == len(rows)


def test_folders_name_split_modality_finding_and_group(tmp_path):
    for folder in ("train/ct/normal/p1", "train/ct/nodule/p2", "test/ct/nodule"):
        images(tmp_path / folder, 2)
    (tmp_path / "train/ct/notes.txt").write_text("x")
    noise(7).save(tmp_path / "loose.png")
    data = own.read(tmp_path, strict=False)
    assert data.kind == "images" and len(data) == 6
    assert data.problems == ["loose.png: no folder names its finding"]
    row = data.table[data.table["file"] == "train/ct/nodule/p2/scan00.png"].iloc[0]
    assert (row["split"], row["modality"], row["finding"], row["group"]) == ("train", "ct", "nodule", "p2")
    assert any("no images by their ending: 1 files (.txt)" in note for note in data.notes)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "loose.png").unlink()
    assert own.read(tmp_path / "test" / "ct").table["finding"].tolist() == ["nodule"] * 2


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """A local image folder through the door by which a name of the hub goes."""
    import datasets

    for side in ("train", "test"):
        images(tmp_path / "src" / side / "benign", 2)
        images(tmp_path / "src" / side / "malignant", 2, "jpg")
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name: load("imagefolder", data_dir=str(tmp_path / "src"), cache_dir=str(tmp_path / "cache")),
    )
    data = own.read("someone/breast", extract_to=tmp_path / "own")
    assert data.kind == "images" and data.name == "someone-breast"
    assert data.table[["finding", "split"]].value_counts().to_dict() == {
        (finding, split): 2 for finding in ("benign", "malignant") for split in ("train", "test")
    }
    assert data.images_dir == (tmp_path / "own" / "someone-breast").resolve()
    assert all((data.images_dir / file).is_file() for file in data.table["file"])


def test_images_inside_a_parquet_file(tmp_path):
    images(tmp_path / "src", 2)
    rows = [
        row | {"image": {"bytes": (tmp_path / "src" / row["image"]).read_bytes(), "path": None}}
        for row in simple_rows(2)
    ]
    (tmp_path / "set" / "data").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    data = own.read(tmp_path / "set", extract_to=tmp_path / "own")
    assert [s.image.endswith(".png") for s in data.cases] == [True, True]
    assert (data.images_dir / data.cases[0].image).read_bytes() == (tmp_path / "src" / "scan00.png").read_bytes()


def test_a_parquet_file_names_images_of_its_folder_only(tmp_path, monkeypatch):
    images(tmp_path / "private", 1)
    images(tmp_path / "set" / "scans", 2)
    monkeypatch.chdir(tmp_path)  # a relative name is not one of the working directory
    content = (tmp_path / "set" / "scans" / "scan01.png").read_bytes()
    cells = [
        {"bytes": None, "path": str(tmp_path / "private" / "scan00.png")},
        {"bytes": None, "path": "private/scan00.png"},
        {"bytes": None, "path": "../private/scan00.png"},
        {"bytes": None, "path": "scans/scan00.png"},
        {"bytes": content, "path": "any.png"},
    ]
    images(tmp_path / "set" / "private", 0)
    rows = [row | {"image": cell} for row, cell in zip(simple_rows(5), cells)]
    pd.DataFrame(rows).to_parquet(tmp_path / "set" / "cases.parquet")
    data = own.read(tmp_path / "set", extract_to=tmp_path / "own", strict=False)
    assert [case.id for case in data.cases] == ["c3", "c4"]
    assert "row 1, field 'image'" in data.problems[0] and "leads outside the folder" in data.problems[0]
    assert len(list((tmp_path / "own" / "set").iterdir())) == 2  # nothing else was copied


def test_a_name_that_is_neither_folder_nor_hub(monkeypatch):
    import datasets

    def fail(name):
        raise OSError(f"no {name}\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"no/such: neither a folder nor a data set of the hub that loads \(no no/such\)"
    ):
        own.read("no/such")


def test_scenarios_of_the_project_are_read_as_they_are(suite, tmp_path):
    scenarios, images_dir = suite
    shutil.copytree(images_dir, tmp_path / "set" / "images")
    write_scenarios(tmp_path / "set" / "cases.jsonl", scenarios)
    data = own.read(tmp_path / "set")
    strict = read_scenarios(tmp_path / "set" / "cases.jsonl")
    for read, written in zip(data.cases, strict, strict=True):
        assert read.image == f"images/{written.image}"
        same = {"factors": {}, "image": ""}
        assert read.model_copy(update=same) == written.model_copy(update=same)


@pytest.mark.skipif(not (SHARED / "core24").is_dir(), reason="the published scenarios are not here")
def test_the_published_instruction_files():
    data = own.read(SHARED / "core24")
    assert len(data) == 24 and not data.problems
    published = {
        record["id"]: record
        for side in ("train", "val")
        for record in map(json.loads, (SHARED / "core24" / f"{side}.jsonl").read_text().splitlines())
    }
    for case in data.cases:
        record = published[case.id]
        assert record["output"].startswith(case.verdict)
        assert f"- Age: {case.patient.age}\n" in record["input"] and case.finding in record["input"]
        assert case.cost_impact == record["metadata"]["cost_impact"] and case.image == record["image_path"]


@pytest.mark.skipif(not (SHARED / "real").is_dir(), reason="the collection of real scans is not here")
def test_the_collection_of_real_scans():
    data = own.read(SHARED / "real")
    assert data.kind == "images" and len(data) == 3105 and not data.problems
    assert data.table["group"].ne("").all() and data.table["source"].nunique() == 10
    assert {"marks", "licence", "population"} <= set(data.table)
