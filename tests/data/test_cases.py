"""Scenarios: what is accepted, and that each refusal names file, row and field."""

import json
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from medlib.config import DataError
from medlib.data.cases import LabelledCase, Patient, parse_scenario, read_scenarios, scenario_hash, write_scenarios
from medlib.data.images import check_images, check_split, load_image, scan_problem

ROW = {
    "id": "a",
    "modality": "xray",
    "image": "a.png",
    "patient": {"age": 40, "sex": "female", "complaint": "cough"},
    "finding": "clear lungs",
    "treatment": "none",
    "verdict": "CORRECT",
    "error_type": "none",
    "severity": "none",
    "cost_impact": 0,
}


def scenario(**changes) -> LabelledCase:
    return LabelledCase.model_validate(ROW | changes)


def noise(seed: int, size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(pixels)


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def scenarios(draw) -> LabelledCase:
    wrong = draw(st.booleans())
    return LabelledCase(
        id=draw(text),
        modality=draw(st.sampled_from(["xray", "histopathology", "mri", "ultrasound"])),
        image=draw(st.text("aé b/", min_size=1).map("a{}.png".format)),
        patient=Patient(
            age=draw(st.integers(0, 120)), sex=draw(st.sampled_from(["female", "male"])), complaint=draw(text)
        ),
        finding=draw(text),
        treatment=draw(text),
        verdict="ERROR" if wrong else "CORRECT",
        error_type=draw(st.sampled_from(["overtreatment", "contradiction"])) if wrong else "none",
        severity=draw(st.sampled_from(["moderate", "critical"])) if wrong else "none",
        cost_impact=draw(st.integers(0, 10**6)),
        factors=draw(st.dictionaries(text, text | st.integers(0, 9), max_size=2)),
    )


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(scenarios(), max_size=4, unique_by=lambda s: s.id))
def test_what_is_written_is_read_back(tmp_path, written):
    path = write_scenarios(tmp_path / "s.jsonl", written)
    read = read_scenarios(path)
    assert read == written
    assert scenario_hash(read) == scenario_hash(written)


def test_hash_sees_every_change():
    assert scenario_hash([scenario()]) != scenario_hash([scenario(treatment="rest")])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"modality": " "}, "modality"),
        ({"severity": "bad"}, "severity"),
        ({"cost_impact": -1}, "cost_impact"),
        ({"finding": ""}, "finding"),
        ({"surprise": 1}, "surprise"),
        ({"patient": ROW["patient"] | {"age": 300}}, "patient.age"),
        ({"patient": ROW["patient"] | {"name": "Doe"}}, "patient.name"),
        ({"verdict": "ERROR"}, "error_type"),
        ({"severity": "high"}, "severity"),
    ],
)
def test_bad_value_names_file_row_and_field(tmp_path, change, field):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "b"} | change) + "\n")
    with pytest.raises(DataError, match="rows.jsonl, row 2, field") as error:
        read_scenarios(path)
    assert field in str(error.value)


@pytest.mark.parametrize("field", ["id", "patient", "treatment", "cost_impact"])
def test_missing_field_is_named(tmp_path, field):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({k: v for k, v in ROW.items() if k != field}))
    with pytest.raises(DataError, match=f"rows.jsonl, row 1, field '{field}'"):
        read_scenarios(path)


def test_project_files_state_every_patient_fact_and_null_is_a_statement(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"patient": {"age": None, "sex": None}}))
    with pytest.raises(DataError, match="row 1, field 'patient.complaint': Field required") as error:
        read_scenarios(path)
    assert "patient.age" not in str(error.value)
    unstated = {"error_type": None, "severity": None, "cost_impact": None}
    path.write_text(json.dumps(ROW | unstated | {"patient": {"age": None, "sex": None, "complaint": None}}))
    assert read_scenarios(path)[0].cost_impact is None


def test_only_id_image_finding_treatment_and_verdict_are_needed():
    case = LabelledCase(id="a", image="a.png", finding="mass", treatment="biopsy", verdict="ERROR")
    assert case.modality == "unspecified" and case.severity is None and case.patient == Patient()
    with pytest.raises(ValueError, match="severity: 'none' contradicts verdict ERROR"):
        LabelledCase.model_validate(case.model_dump() | {"severity": "none"})
    assert scenario(modality="ct").modality == "ct"


def test_rows_and_hash_of_complete_cases_are_what_they_were():
    assert list(scenario().model_dump()) == [*ROW, "factors"]
    assert scenario_hash([scenario()]) == "4b6f4fe9ee9d796eb9290183159bdf6fa40b952a442876de126eeb66bca8e5dc"


@pytest.mark.parametrize("line", [b'{"id": "b",', b"\xff\xfe", b"[1, 2]", b'"text"', b"3"])
def test_malformed_row_is_named_and_every_bad_row_is_listed(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n" + line + b"\n{}\n")
    with pytest.raises(DataError) as error:
        read_scenarios(path)
    assert "rows.jsonl, row 3" in str(error.value)
    assert "rows.jsonl, row 4, field 'id'" in str(error.value)


def test_duplicate_id_names_both_rows(tmp_path):
    path = write_scenarios(tmp_path / "rows.jsonl", [scenario(), scenario(finding="other")])
    with pytest.raises(DataError, match="row 2, field 'id': 'a' was used in row 1"):
        read_scenarios(path)


def test_missing_file():
    with pytest.raises(DataError, match="nowhere.jsonl: no such file"):
        read_scenarios("nowhere.jsonl")


def test_truncated_missing_and_fake_images(tmp_path):
    buffer = BytesIO()
    noise(0).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:1000])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(DataError, match=f"{name}: truncated or unreadable"):
            load_image(tmp_path / name)
    with pytest.raises(DataError, match="none.png: image not found"):
        load_image(tmp_path / "none.png")


def test_16_bit_image_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    grey = np.asarray(load_image(tmp_path / "deep.png"))[..., 0]
    assert grey.min() == 0 and grey.max() == 255
    assert abs(float(grey.mean()) - 127) < 2


def drawn_mask() -> Image.Image:
    mask = Image.new("L", (120, 90))
    ImageDraw.Draw(mask).ellipse((30, 20, 70, 60), fill=255)
    return mask


def test_scan_problem():
    assert scan_problem(noise(0)) is None
    assert scan_problem(Image.new("RGB", (50, 50), "navy")) == "one-colour image"
    assert "mask" in scan_problem(drawn_mask())
    assert "mask" in scan_problem(drawn_mask().point(lambda level: level // 255))  # levels 0 and 1
    blurred = drawn_mask().filter(ImageFilter.GaussianBlur(0.5))
    assert len(set(np.asarray(blurred).ravel())) > 2
    assert "mask" in scan_problem(blurred)
    # dark surroundings and a small lesion alone make no mask
    brain = np.zeros((90, 90), np.uint8)
    brain[30:60, 30:60] = np.asarray(noise(1, 30)) // 2 + 40
    assert scan_problem(Image.fromarray(brain)) is None


def test_check_images_names_row_and_file_and_allows_masks_on_request(tmp_path):
    noise(0).save(tmp_path / "a.png")
    drawn_mask().save(tmp_path / "m.png")
    rows = [scenario(), scenario(id="b", image="m.png")]
    with pytest.raises(DataError, match=r"set, row 2 \(b\), field 'image'.*m.png") as error:
        check_images(rows, tmp_path, name="set")
    assert "--allow-masks" in str(error.value)
    check_images(rows, tmp_path, allow_masks=True)
    Image.new("L", (9, 9), 7).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="one-colour"):
        check_images(rows, tmp_path, allow_masks=True)


def test_check_split_finds_an_id_and_a_image_on_both_sides(tmp_path):
    noise(0).save(tmp_path / "a.png")
    noise(0).save(tmp_path / "renamed.bmp")  # other bytes, same pixels
    noise(1).save(tmp_path / "b.png")
    train = [scenario()]
    check_split(train, [scenario(id="b", image="b.png")], tmp_path)
    with pytest.raises(DataError, match=r"val, row 1 \(c\), field 'image': renamed.bmp.* a in"):
        check_split(train, [scenario(id="c", image="renamed.bmp")], tmp_path)
    with pytest.raises(DataError, match="val, row 1, field 'id': 'a' is in train too"):
        check_split(train, [scenario(image="b.png")], tmp_path)


def dicom(path, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "SECRET-17"
    dataset.Rows = dataset.Columns = 32
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = np.linspace(0, 3000, 32 * 32).astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_dicom_gives_pixels_and_loses_the_patient(tmp_path):
    dicom(tmp_path / "scan.dcm")
    assert b"Doe^Jane" in (tmp_path / "scan.dcm").read_bytes()
    image = load_image(tmp_path / "scan.dcm")
    assert image.mode == "RGB" and image.size == (32, 32)
    image.save(tmp_path / "scan.png")
    written = (tmp_path / "scan.png").read_bytes() + repr(image.info).encode()
    assert b"Doe" not in written and b"SECRET" not in written
    grey = np.asarray(image)[..., 0]
    assert grey[0, 0] == 0 and grey[-1, -1] == 255


def test_dicom_inverted_and_burned_in(tmp_path):
    dicom(tmp_path / "inverted.dcm", PhotometricInterpretation="MONOCHROME1")
    assert np.asarray(load_image(tmp_path / "inverted.dcm"))[0, 0, 0] == 255
    dicom(tmp_path / "burned.dcm", BurnedInAnnotation="YES")
    with pytest.raises(DataError, match="burned.dcm, field 'BurnedInAnnotation'"):
        load_image(tmp_path / "burned.dcm")


def test_dicom_stacks_of_colour_and_palettes(tmp_path):
    dicom(tmp_path / "stack.dcm")
    pydicom = pytest.importorskip("pydicom")
    frames = np.zeros((3, 8, 10, 3), np.uint8)
    frames[1, ..., 0] = np.arange(10) * 25  # the middle frame, a red ramp
    dataset = pydicom.dcmread(tmp_path / "stack.dcm")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel = 8, 10, 3, 3
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = frames.tobytes()
    dataset.save_as(tmp_path / "stack.dcm")
    image = np.asarray(load_image(tmp_path / "stack.dcm"))
    assert image.shape == (8, 10, 3) and image[..., 1:].max() == 0
    assert (np.diff(image[0, :, 0].astype(int)) > 0).all()

    palette = np.arange(256, dtype=np.uint16) * 257
    dataset.NumberOfFrames, dataset.SamplesPerPixel = 1, 1
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for colour, table in (("Red", palette), ("Green", 0 * palette), ("Blue", palette[::-1])):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    dataset.PixelData = np.tile(np.arange(10, dtype=np.uint8) * 25, (8, 1)).tobytes()
    dataset.save_as(tmp_path / "palette.dcm")
    first, *_, last = np.asarray(load_image(tmp_path / "palette.dcm"))[0]
    assert first[0] < first[2] and last[0] > last[2] and first[1] == last[1] == 0


@pytest.mark.parametrize("change", [
    {"finding": "  "}, {"treatment": "\t"}, {"id": " "}, {"cost_impact": True}, {"patient": {"age": True}},
    {"patient": {"complaint": " "}}, {"image": "../a.png"}, {"image": "/a.png"}, {"image": "C:\\a.png"},
    {"image": "b/..\\..\\a.png"},
])  # fmt: skip
def test_blank_text_truth_values_and_paths_that_lead_outside_are_refused(change):
    row = {"id": "a", "image": "b/a.png", "finding": "mass", "treatment": "biopsy", "verdict": "CORRECT"}
    parse_scenario("cases.jsonl", 3, row)
    (field,) = change
    with pytest.raises(DataError, match=f"^cases.jsonl, row 3, field '{field}"):
        parse_scenario("cases.jsonl", 3, row | change)
