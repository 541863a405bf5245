"""Cases from options, DICOM and dirty tables."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlib.audit import cases
from medlib.config import DataError
from medlib.data import own

pydicom = pytest.importorskip("pydicom")


def dicom(file, **tags):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    pixels = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype("uint8")
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 64, 64, 1
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", pixels.tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PatientName = "Doe^Jane"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(file, enforce_file_format=True)
    return file


def test_a_dicom_states_age_sex_and_modality(tmp_path):
    file = dicom(tmp_path / "film.dcm", PatientAge="018M", PatientSex="F", Modality="DX")
    case, folder = cases.one(file, "A mass.", "Biopsy")
    assert (case.patient.age, case.patient.sex, case.modality) == (1, "female", "xray") and folder == tmp_path
    assert (case.finding, case.treatment, case.image) == ("A mass", "Biopsy", "film.dcm")
    assert "Doe" not in case.model_dump_json()


def test_what_is_said_outranks_the_dicom(tmp_path):
    file = dicom(tmp_path / "no_ending", PatientAge="070Y", PatientSex="O", Modality="US")
    case, _ = cases.one(file, "A mass", "Biopsy", age="62", modality="MRI")
    assert (case.patient.age, case.patient.sex, case.modality) == (62, "other", "mri")


def test_a_plain_image_states_nothing(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    case, _ = cases.one(tmp_path / "a.png", "A mass", "Biopsy", sex="")
    assert (case.patient.age, case.patient.sex, case.modality) == (None, None, "unspecified")


def test_what_no_reader_knows_is_not_stated_by_the_dicom(tmp_path):
    with pydicom.config.disable_value_validation():
        file = dicom(tmp_path / "film.dcm", PatientAge="ADULT", PatientSex="N", Modality="DX")
    case, _ = cases.one(file, "A mass", "Biopsy")
    assert (case.patient.age, case.patient.sex, case.modality) == (None, None, "xray")
    with pytest.raises(DataError, match="age: 'ADULT' is no age"):  # what is said must be readable
        cases.one(file, "A mass", "Biopsy", age="ADULT")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"age": "old"}, "age: 'old' is no age"),
        ({"sex": "q"}, "sex: 'q' is not a sex"),
        ({"finding": " "}, "finding: "),
        ({"image": "absent.png"}, "image: absent.png: no such file"),
    ],
)
def test_an_error_names_the_field(tmp_path, given, message):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    known = {"image": tmp_path / "a.png", "finding": "A mass", "treatment": "Biopsy"}
    with pytest.raises(DataError, match=message):
        cases.one(**known | given)


# --- worklists


def dirty(folder):
    """A spreadsheet as it comes: Windows-1252 with a BOM-less ü, guessed columns, seven bad rows among nine."""
    images = folder / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.arange(64, dtype="uint8").reshape(8, 8)).save(images / name)
    (folder / "outside.png").write_bytes((images / "a.png").read_bytes())
    lines = [
        "No;Image;Finding;Therapy;Age;Decision",
        "1;a.png;Tumor, gro\xdf;Biopsy;62Y;",
        "2;b.png;A mass;Surgery;;ERROR",
        "3;absent.png;A mass;Surgery;;",
        "4;../outside.png;A mass;Surgery;;",
        "5;a.png;;Surgery;;",
        "6;a.png;A mass;Surgery;old;",
        "7;a.png;A mass",
        "8;http://x/a.png;A mass;Surgery;;",
        "9;a.png;A mass;Surgery;40;pending",
    ]
    file = folder / "list.csv"
    file.write_bytes("\r\n".join(lines).encode("cp1252"))
    return file, images


def test_every_row_of_a_dirty_table_is_a_case_or_has_a_reason(tmp_path):
    rows, folder, notes = cases.rows(*dirty(tmp_path))
    assert [row.place for row in rows] == [f"list.csv, row {n}" for n in range(2, 11)]  # none lost, in order
    assert [row.case is not None for row in rows] == [True, True, False, False, False, False, False, False, True]
    reasons = [row.problem for row in rows if row.case is None]
    for reason, said in zip(
        reasons,
        ["'absent.png' not found", "leads outside", "missing", "'old' is no age", "3 cells", "web address"],
    ):
        assert said in reason
    first, second, last = (row.case for row in rows if row.case)
    assert (first.finding, first.patient.age, first.image) == (
        "Tumor, groß",
        62,
        "a.png",
    ) and folder.name == "images"
    assert second.verdict == "ERROR" and not hasattr(first, "verdict") and not hasattr(last, "verdict")
    assert any("'pending' is read as not stated" in note for note in notes)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="cases: .*none.csv: no such file"):
        cases.rows(tmp_path / "none.csv")
    file, _ = dirty(tmp_path)
    with pytest.raises(DataError, match="images: .*nowhere: no such folder"):
        cases.rows(file, tmp_path / "nowhere")


def test_without_a_folder_of_images_they_lie_beside_the_table(tmp_path):
    file, _ = dirty(tmp_path)
    rows, folder, _ = cases.rows(file)
    assert rows[0].case.image == "images/a.png" and folder == tmp_path.resolve()


def test_a_film_states_the_same_in_a_worklist_as_alone(tmp_path):
    dicom(tmp_path / "film.dcm", PatientAge="070Y", PatientSex="F", Modality="DX")
    lines = [
        "id,image,finding,treatment,age,sex,modality,complaint",
        "film,film.dcm,A mass,Biopsy,,unknown,,",
        "2,film.dcm,A mass,Biopsy,40,M,CT,Cough",
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    rows, _, _ = cases.rows(tmp_path / "list.csv")
    assert rows[0].case == cases.one(tmp_path / "film.dcm", "A mass", "Biopsy")[0]
    stated = rows[1].case
    assert (stated.patient.age, stated.patient.sex, stated.modality) == (40, "male", "ct")  # the list outranks it


def test_images_inside_a_worklist_are_written_where_the_caller_says(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "EXTRACTED", tmp_path / "elsewhere")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    cells = [{"bytes": (tmp_path / "a.png").read_bytes(), "path": "x.png"}, {"bytes": None, "path": "b.png"}]
    (tmp_path / "images").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "images" / "b.png")
    frame = pd.DataFrame({"id": ["1", "2"], "image": cells, "finding": "A mass", "treatment": "Biopsy"})
    frame.to_parquet(tmp_path / "list.parquet")
    rows, folder, _ = cases.rows(tmp_path / "list.parquet", tmp_path / "images", extract_to=tmp_path / "out")
    assert folder == (tmp_path / "out" / "list").resolve() and not (tmp_path / "elsewhere").exists()
    assert all((folder / row.case.image).is_file() for row in rows)
