"""Pixels of odd files: rotation, depth, transparency, colour spaces, pages, DICOM; and that nobody is named."""

import ast
import hashlib
import struct
import warnings
import zlib

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from medlib.config import ROOT, DataError
from medlib.data import blind, dicom_limits, images
from medlib.data.core24 import load_facts
from medlib.data.images import inside, load_image, pad_to_square, pixel_hash
from medlib.data.suite import Suite, shown

REAL = ROOT.parent / "shared/real"
RAMP = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)


def grey(path, **options):
    """The one channel of an image whose channels are equal."""
    pixels = np.asarray(load_image(path, **options)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# --- what must not change -------------------------------------------------------------------------


def test_drawn_images_load_as_they_always_did(suite):
    scenarios, images_dir = suite
    for scenario in scenarios:
        with Image.open(images_dir / scenario.image) as image:
            expected = image.convert("RGB")
        assert load_image(images_dir / scenario.image).tobytes() == expected.tobytes()
        assert shown(images_dir, scenario.image).tobytes() == expected.tobytes()
        assert pixel_hash(load_image(images_dir / scenario.image)) == pixel_hash(expected)


def test_an_ordinary_jpeg_and_a_palette_load_as_they_always_did(tmp_path):
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    colour.save(tmp_path / "a.jpg")
    colour.convert("P").save(tmp_path / "p.png")
    colour.convert("L").save(tmp_path / "l.bmp")
    for name in ("a.jpg", "p.png", "l.bmp"):
        with Image.open(tmp_path / name) as image:
            assert load_image(tmp_path / name).tobytes() == image.convert("RGB").tobytes()


# --- a square -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_padding_keeps_every_pixel_in_the_middle_of_black(width, height):
    pixels = np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)
    padded = np.asarray(pad_to_square(Image.fromarray(pixels)))
    side = max(width, height)
    assert padded.shape == (side, side, 3)
    rows, columns = np.nonzero(padded.any(-1))
    top, left = rows.min(), columns.min()
    assert (padded[top : top + height, left : left + width] == pixels).all()
    assert np.count_nonzero(padded) == pixels.size
    assert abs(2 * top + height - side) <= 1 and abs(2 * left + width - side) <= 1


def test_square_is_a_parameter(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == (40, 30)
    assert load_image(tmp_path / "a.png", square=True).size == (40, 40)
    assert load_image(tmp_path / "a.png", square=True, thumbnail=20).size == (20, 20)


def test_training_and_scoring_get_the_same_pixels_of_an_image_that_is_no_square(nano, tmp_path):
    from medlib.models import features
    from medlib.training import encoding

    processor, *_ = nano
    Image.fromarray(np.repeat(RAMP, 3, axis=1)).save(tmp_path / "wide.png")
    case = load_facts()[0].model_copy(update={"image": "wide.png"})
    suite = Suite("wide", [case], tmp_path)
    assert suite.image(case).size == (120, 120)
    (row,) = encoding.encode(processor, [case], [tmp_path])
    assert torch.equal(row["pixels"](), features.pixels_of(processor, suite.image(case)))
    squashed = features.pixels_of(processor, load_image(tmp_path / "wide.png"))
    assert not torch.equal(row["pixels"](), squashed)


# --- files that Pillow reads ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "deep.png", "deep.tif"])
def test_exif_rotation_is_applied(tmp_path, name):
    pixels = np.zeros((20, 30), np.uint16 if name.startswith("deep") else np.uint8)
    pixels[:, :15] = 60_000 if name.startswith("deep") else 230  # the left half is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    turned = grey(tmp_path / name)
    assert turned.shape == (30, 20)
    assert turned[:14].min() > 200 and turned[16:].max() < 50


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_dead_pixel_does_not_change_a_16_bit_image(tmp_path, suffix):
    ramp = np.linspace(1000, 3000, 100 * 100).reshape(100, 100).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"sound.{suffix}")
    ramp[50, 50], ramp[20, 20] = 65_535, 0
    Image.fromarray(ramp).save(tmp_path / f"dead.{suffix}")
    sound, dead = (grey(tmp_path / f"{name}.{suffix}") for name in ("sound", "dead"))
    assert sound.min() == 0 and sound.max() == 255
    difference = np.abs(sound - dead)
    assert np.sort(difference.ravel())[-3] <= 1


def test_a_16_bit_mask_stays_a_mask_and_a_blank_page_blank(tmp_path):
    mask = np.zeros((100, 100), np.uint16)
    mask[:2, :2] = 900  # less than a percentile
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert set(grey(tmp_path / "mask.png").ravel()) == {0, 255}
    Image.fromarray(0 * mask + 500).save(tmp_path / "blank.png")
    assert images.scan_problem(load_image(tmp_path / "blank.png")) == "one-colour image"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_named(tmp_path, value):
    pixels = np.linspace(0, 1, 900).reshape(30, 30).astype(np.float32)
    Image.fromarray(pixels).save(tmp_path / "float.tif")
    assert grey(tmp_path / "float.tif").max() == 255
    pixels[3, :2] = value
    Image.fromarray(pixels).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="float.tif: 2 pixels are not numbers"):
        load_image(tmp_path / "float.tif")


def deep_png(path, pixels):
    """A PNG of 16 bits for each colour, which Pillow cannot write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_colour_is_scaled_by_the_bits_in_use(tmp_path, bits):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 2**bits, (30, 40, 3)).astype(np.uint16)
    expected = pixels / (2**bits - 1) * 255
    deep_png(tmp_path / "a.png", pixels)
    tifffile.imwrite(tmp_path / "raw.tif", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "zip.tif", pixels, photometric="rgb", compression="zlib", predictor=True)
    tifffile.imwrite(tmp_path / "motorola.tif", pixels, photometric="rgb", byteorder=">", compression="zlib")
    for name in ("a.png", "raw.tif", "zip.tif", "motorola.tif"):
        assert np.abs(np.asarray(load_image(tmp_path / name)) - expected).max() <= 0.51, name
    opaque = np.dstack([pixels, np.full((30, 40), 65_535, np.uint16)])
    opaque[0, 0, 3] = 0
    deep_png(tmp_path / "alpha.png", opaque)
    if bits == 16:
        shown = np.asarray(load_image(tmp_path / "alpha.png"))
        assert not shown[0, 0].any() and np.abs(shown - expected)[1:].max() <= 1.01


def test_transparent_parts_are_black(tmp_path):
    pixels = np.full((10, 10, 4), 200, np.uint8)
    pixels[:, :5, 3], pixels[:, 5:, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., [0, 3]], "LA").save(tmp_path / "la.png")
    coloured = Image.fromarray(np.repeat([[0] * 5 + [7] * 5], 10, axis=0).astype(np.uint8), "P")
    coloured.putpalette([255, 255, 255] * 7 + [200] * 3)
    coloured.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "la.png", "palette.png"):
        loaded = grey(tmp_path / name)
        assert not loaded[:, :5].any() and (loaded[:, 5:] == 200).all(), name


def test_cmyk(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(load_image(tmp_path / "a.jpg"))[8, 8].astype(int) - [200, 30, 40]).max() <= 8


def test_comments_and_gps_do_not_come_along(tmp_path):
    exif = Image.Exif()
    exif[0x013B], exif[0x9286] = "Jane Doe", "Jane Doe"
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", comment="Jane Doe", exif=exif)
    image = load_image(tmp_path / "a.jpg")
    assert not image.info and not image.getexif()


def test_pages_are_chosen_or_refused(tmp_path):
    pages = [Image.fromarray(np.full((40, 60), level, np.uint8)) for level in (10, 20, 30)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.gif", save_all=True, append_images=pages[1:])
    for name in ("stack.tif", "film.gif"):
        with pytest.raises(DataError, match=rf"{name}: 3 pages.*tiles.*frame: 0.*thumbnail:"):
            load_image(tmp_path / name)
        assert grey(tmp_path / name, frame=1)[0, 0] == 20
        with pytest.raises(DataError, match="frame 3 of 3"):
            load_image(tmp_path / name, frame=3)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="frame 1 of 1"):
        load_image(tmp_path / "a.png", frame=1)


def test_a_whole_slide_is_read_at_its_smallest_sufficient_level(tmp_path, monkeypatch):
    levels = [Image.new("RGB", (800 // 2**n, 400 // 2**n), (100 + n, 0, 0)) for n in range(4)]
    levels.insert(2, Image.new("RGB", (300, 300), "white"))  # the slide's label
    levels[0].save(tmp_path / "slide.svs.tif", save_all=True, append_images=levels[1:], compression="jpeg")
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150_000)  # Image.open would refuse the slide
    for wanted, size, red in (
        (100, (100, 50), 103),
        (150, (150, 75), 102),
        (390, (390, 195), 101),
        (50, (50, 25), 103),
    ):
        image = load_image(tmp_path / "slide.svs.tif", thumbnail=wanted)
        assert image.size == size and abs(image.getpixel((5, 5))[0] - red) <= 1
    with pytest.raises(DataError, match="800 x 400 pixels, more than 100,000"):
        load_image(tmp_path / "slide.svs.tif", thumbnail=700)


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DataError, match="a.png: 40 x 30 pixels, more than 1,199"):
        load_image(tmp_path / "a.png")


def test_a_format_that_runs_a_program_is_not_read(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="truncated or unreadable"):
        load_image(tmp_path / "a.png")


# --- DICOM ----------------------------------------------------------------------------------------

NAME = "Doe^Jane"


def dicom(path, pixels, **tags):
    """A DICOM file with a patient's name; tags may replace all that follows from the pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", pydicom.uid.ComputedRadiographyImageStorage)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, "SECRET-17", "19500101"
    colours = pixels.shape[-1] == 3 and pixels.ndim > 2
    frames = pixels.shape[: -3 if colours else -2]
    dataset.Rows, dataset.Columns = pixels.shape[len(frames) : len(frames) + 2]
    if frames:
        dataset.NumberOfFrames = frames[0]
    dataset.SamplesPerPixel = 3 if colours else 1
    if colours:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


STORED = np.linspace(0, 3000, 32 * 32).reshape(32, 32).astype(np.uint16)


def item(**tags):
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def expected_window(values, centre, width):
    """DICOM PS3.3 C.11.2.1.2, output 0 to 255."""
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1) * 255


@settings(max_examples=15, deadline=None)
@given(centre=st.integers(-500, 3500), width=st.integers(2, 4000), inverted=st.booleans())
def test_a_window_is_applied_and_nothing_is_stretched_behind_it(tmp_path_factory, centre, width, inverted):
    path = tmp_path_factory.mktemp("dicom") / "a.dcm"
    dicom(
        path,
        STORED,
        WindowCenter=centre,
        WindowWidth=width,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    expected = expected_window(STORED.astype(float), centre, width)
    assert np.abs(grey(path) - (255 - expected if inverted else expected)).max() <= 0.51


def test_rescale_comes_before_the_window_and_the_first_window_counts(tmp_path):
    path = dicom(
        tmp_path / "a.dcm",
        STORED,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[1000, 5],
        WindowWidth=[3000, 5],
    )
    assert np.abs(grey(path) - expected_window(STORED * 2.0 - 1000, 1000, 3000)).max() <= 0.51


def test_without_a_window_percentiles_decide_and_a_window_of_no_width_is_none(tmp_path):
    dead = STORED.copy()
    dead[5, 5] = 65_535
    for name, tags in (("a.dcm", {}), ("b.dcm", {"WindowCenter": 50, "WindowWidth": 0})):
        loaded = grey(dicom(tmp_path / name, dead, **tags))
        assert np.abs(np.delete(loaded.ravel() - STORED.ravel() / 3000 * 255, 5 * 33)).max() < 2


def test_a_sigmoid_and_a_voi_lut(tmp_path):
    path = dicom(tmp_path / "a.dcm", STORED, WindowCenter=1500, WindowWidth=800, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (STORED - 1500.0) / 800))
    assert np.abs(grey(path) - expected).max() <= 0.51
    table = (np.sqrt(np.arange(3001) / 3000) * 4000).astype(np.uint16)  # 12 bits, though 16 are declared
    lut = item(LUTDescriptor=[3001, 0, 16], LUTData=table.tobytes())
    lut["LUTData"].VR = "OW"
    path = dicom(tmp_path / "b.dcm", STORED, VOILUTSequence=[lut], WindowCenter=1, WindowWidth=2)
    assert np.abs(grey(path) - np.sqrt(STORED / 3000) * 255).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path, photometric):
    padded = (STORED + 1000).astype(np.int16)
    padded[:, :4], padded[:, 28:] = -2000, -1990
    path = dicom(
        tmp_path / "a.dcm",
        padded,
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1990,
        PhotometricInterpretation=photometric,
    )
    loaded = grey(path)
    assert not loaded[:, :4].any() and not loaded[:, 28:].any()
    inside = loaded[:, 4:28] if photometric == "MONOCHROME2" else 255 - loaded[:, 4:28]
    assert np.abs(inside - (STORED[:, 4:28] - STORED[0, 4]) / np.ptp(STORED[:, 4:28]) * 255).max() < 3


def test_ct_is_three_windows(tmp_path):
    hounsfield = np.array([[-2000, -1024, -135, 0, 40, 80, 215, 1024]] * 8)
    path = dicom(
        tmp_path / "a.dcm",
        (hounsfield + 1024).astype(np.int16),
        Modality="CT",
        SOPClassUID=CTImageStorage,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=40,
        WindowWidth=80,
    )
    row = np.asarray(load_image(path))[0]
    assert row[:, 0].tolist() == [0, 0, 111, 128, 132, 137, 154, 255]
    assert row[:, 1].tolist() == [0, 0, 0, 98, 128, 157, 255, 255]
    assert row[:, 2].tolist() == [0, 0, 0, 0, 128, 255, 255, 255]
    # without a rescale the numbers are no Hounsfield units
    assert len(np.unique(grey(dicom(tmp_path / "b.dcm", STORED, Modality="CT")))) > 200


def test_frames_have_windows_of_their_own(tmp_path):
    frames = np.stack([STORED] * 3)
    groups = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")],
            FrameVOILUTSequence=[item(WindowCenter=1000 * n + 500, WindowWidth=200)],
        )
        for n in range(3)
    ]
    path = dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=groups, Modality="MR")
    assert (grey(path) == grey(path, frame=1)).all()
    for n in range(3):
        expected = expected_window(STORED.astype(float), 1000 * n + 500, 200)
        assert np.abs(grey(path, frame=n) - expected).max() <= 0.51
    with pytest.raises(DataError, match="frame 3 of 3"):
        load_image(path, frame=3)
    shared = [item(FrameVOILUTSequence=[item(WindowCenter=500, WindowWidth=200)])]
    path = dicom(tmp_path / "b.dcm", frames, SharedFunctionalGroupsSequence=shared)
    assert np.abs(grey(path) - expected_window(STORED.astype(float), 500, 200)).max() <= 0.51


def test_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (np.asarray(load_image(dicom(tmp_path / "a.dcm", pixels))) == pixels).all()


def test_dicom_is_known_by_its_content(tmp_path):
    path = dicom(tmp_path / "IM0001", STORED)
    assert grey(path).max() == 255
    dataset = pydicom.dcmread(path)
    dataset.preamble, dataset.file_meta = None, FileMetaDataset()
    dataset.save_as(tmp_path / "old.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    assert (grey(tmp_path / "old.dcm") == grey(path)).all()


def broken(tmp_path):
    """Files that cannot be shown, each with a patient's name in it."""
    slide = np.zeros((3, 8, 8, 3), np.uint8)
    yield dicom(tmp_path / "slide.dcm", slide, SOPClassUID=VLWholeSlideMicroscopyImageStorage), "3 pages.*tiles"
    yield dicom(tmp_path / "burned.dcm", STORED, BurnedInAnnotation="YES"), "'BurnedInAnnotation'"
    path = dicom(tmp_path / "cut.dcm", STORED)
    path.write_bytes(path.read_bytes()[:-500])
    yield path, r"unreadable DICOM \(ValueError, Explicit VR Little Endian\)"
    path = dicom(tmp_path / "report.dcm", STORED)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    yield path, "a DICOM file without an image"
    path = dicom(tmp_path / "rows.dcm", STORED)
    dataset = pydicom.dcmread(path)
    del dataset.Rows
    dataset.save_as(path)
    yield path, "unreadable DICOM"
    path = tmp_path / "text.dcm"
    path.write_text(f"not a DICOM file, {NAME}")
    yield path, "text.dcm: "
    yield dicom(tmp_path / "large.dcm", STORED, Rows=20_000, Columns=20_000), "20000 x 20000 pixels"


def test_no_message_no_warning_and_no_log_names_the_patient(tmp_path, caplog, capsys):
    for path, message in broken(tmp_path):
        assert NAME.encode() in path.read_bytes()
        with warnings.catch_warnings(record=True) as caught, pytest.raises(DataError, match=message) as error:
            warnings.simplefilter("always")
            load_image(path)
        said = [str(error.value), caplog.text, *capsys.readouterr(), *(str(w.message) for w in caught)]
        assert error.value.__cause__ is None
        for word in ("Doe", "Jane", "SECRET", "1950"):
            assert not any(word in text for text in said), path


def test_no_tag_of_the_patient_is_read(tmp_path, monkeypatch):
    path, read = dicom(tmp_path / "a.dcm", STORED), []
    original = pydicom.dcmread

    def remember(*args, **options):
        read.append(original(*args, **options))
        return read[-1]

    monkeypatch.setattr(pydicom, "dcmread", remember)
    image = load_image(path)
    assert read and "PixelData" in read[0] and "PatientName" not in read[0] and "PatientID" not in read[0]
    assert not image.info


# --- what a file may cost, and what it may show -----------------------------------------------------


def test_a_png_that_is_postscript_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match="x.png: truncated or unreadable image"):
        load_image(path)
    assert blind.file_size(path) is None


def test_every_file_is_opened_as_one_of_named_formats():
    """Without a list Pillow tries all of its formats, among them EPS, which starts Ghostscript."""
    for file in (ROOT / "medlib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {word.arg for word in node.keywords}, f"{file}, line {node.lineno}"


def compressed(path, syntax, packed=None, **tags):
    """A DICOM file in another transfer syntax; ``packed``: its one frame as it is stored."""
    dataset = pydicom.dcmread(dicom(path, STORED, **tags))
    dataset.file_meta.TransferSyntaxUID = syntax
    if packed is not None:
        dataset.PixelData = pydicom.encaps.encapsulate([packed])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_a_deflated_file_loads_and_a_deflated_bomb_does_not_unpack(tmp_path, monkeypatch):
    path = compressed(tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    assert (grey(path) == grey(dicom(tmp_path / "plain.dcm", STORED))).all()
    bomb = compressed(tmp_path / "bomb.dcm", DeflatedExplicitVRLittleEndian, Rows=8, TextComments="0" * 5_000_000)
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(dicom_limits, "MAX_BYTES", 2 << 20)
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(DataError, match="bomb.dcm: unpacks to more than 2 MiB"):
        load_image(bomb)


def rle(*segments):
    """One frame of run-length code."""
    starts = [64 + sum(map(len, segments[:n])) for n in range(len(segments))]
    header = struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def test_run_length_code_loads_and_a_bomb_of_it_does_not_unpack(tmp_path, monkeypatch):
    runs = b"\x81\x07" * 8  # 128 times 7, eight times: 32 x 32 pixels
    path = compressed(tmp_path / "a.dcm", RLELossless, rle(runs, runs))
    assert grey(path).shape == (32, 32)
    bomb = compressed(tmp_path / "bomb.dcm", RLELossless, rle(b"\x81\x07" * 50_000, runs))
    assert dicom_limits._rle_bytes(b"\x81\x07\x02abc\x80\x00z") == 128 + 3 + 1
    monkeypatch.setattr(dicom_limits, "MAX_BYTES", 2 << 20)
    monkeypatch.setattr(pydicom.pixels.decoders.rle, "_rle_decode_frame", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(DataError, match="bomb.dcm: unpacks to more than 2 MiB"):
        load_image(bomb)


def test_a_compression_that_cannot_be_read_is_named_with_what_helps(tmp_path):
    path = dicom(tmp_path / "a.dcm", STORED)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"a\.dcm: unreadable DICOM \(.*JPEG Lossless.*\); converting it"):
        load_image(path)


def test_of_many_frames_one_is_decoded(tmp_path, monkeypatch):
    decoded, decode = [], pydicom.pixels.decoders.base.DecodeRunner._decode_frame
    monkeypatch.setattr(
        pydicom.pixels.decoders.base.DecodeRunner,
        "_decode_frame",
        lambda runner, src: decoded.append(1) or decode(runner, src),
    )
    runs = rle(b"\x81\x07" * 8, b"\x81\x07" * 8)
    dataset = pydicom.dcmread(compressed(tmp_path / "a.dcm", RLELossless, runs, NumberOfFrames=300))
    dataset.PixelData = pydicom.encaps.encapsulate([runs] * 300)
    dataset.save_as(tmp_path / "a.dcm")
    assert grey(tmp_path / "a.dcm").shape == (32, 32) and len(decoded) == 1


@pytest.mark.parametrize(
    "tags",
    [
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"SOPClassUID": MultiFrameTrueColorSecondaryCaptureImageStorage},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"ConversionType": "WSD"},
        {"Modality": "OT"},
    ],
)
def test_a_saved_screen_must_say_that_no_patient_data_is_in_it(tmp_path, monkeypatch, tags):
    path = dicom(tmp_path / "screen.dcm", STORED, **tags)
    with pytest.raises(DataError, match=f"screen.dcm, field 'BurnedInAnnotation'.*{dicom_limits.SWITCH}=1"):
        load_image(path)
    assert load_image(dicom(tmp_path / "clean.dcm", STORED, BurnedInAnnotation="NO", **tags)).size == (32, 32)
    assert load_image(path, looked_at=True).size == (32, 32)
    monkeypatch.setenv(dicom_limits.SWITCH, "1")
    assert load_image(path).size == (32, 32)
    with pytest.raises(DataError, match="patient data is burned into the pixels"):
        load_image(dicom(tmp_path / "burned.dcm", STORED, BurnedInAnnotation="YES", **tags))


# --- real images ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_real_images_become_squares():
    files = sorted(path for folder in REAL.iterdir() if folder.is_dir() for path in folder.rglob("*.jpg"))
    for path in files[:: len(files) // 40]:
        image = load_image(path, square=True)
        with Image.open(path) as plain:
            assert image.size == (max(plain.size),) * 2
        assert images.scan_problem(load_image(path)) is None


def test_hash_of_pixels_is_what_it_was():
    image = Image.fromarray(RAMP).convert("RGB")
    assert pixel_hash(image) == hashlib.sha256(b"(40, 30)" + image.tobytes()).hexdigest()


@pytest.mark.parametrize("content, message", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer, not the image"),
    (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", "DICOM without a preamble must be named .dcm"),
])  # fmt: skip
def test_a_file_that_is_no_image_says_what_it_may_be(tmp_path, content, message):
    (tmp_path / "scan").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_image(tmp_path / "scan")


@pytest.mark.parametrize("name", ["../a.png", "link.png", "sub/../../a.png", "a\0.png"])
def test_an_image_stays_inside_its_folder(tmp_path, name):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "a.png", folder / "b.png"):
        Image.new("RGB", (8, 8)).save(file)
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    assert inside(folder, "sub/../b.png").is_file()
    with pytest.raises(DataError, match="leads outside the folder images"):
        inside(folder, name)
    with pytest.raises(DataError, match="image not found"):
        shown(folder, "x" * 5000)


def palette(path, bits, *segments, **tags):
    """A DICOM file of the values 0 to 3 whose palette has these segments, for each colour."""
    packed = np.array(segments, "u1" if bits == 8 else "<u2").tobytes()
    names = {f"Segmented{colour}PaletteColorLookupTableData": packed for colour in ("Red", "Green", "Blue")}
    names |= {f"{colour}PaletteColorLookupTableDescriptor": [4, 0, bits] for colour in ("Red", "Green", "Blue")}
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    return dicom(path, pixels, PhotometricInterpretation="PALETTE COLOR", **names | tags)


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (16, 65535)])
def test_a_palette_of_segments_loads(tmp_path, bits, white):
    path = palette(tmp_path / "a.dcm", bits, 0, 2, 0, 0, 1, 2, white)  # two as they are, two on a line to white
    assert np.asarray(load_image(path))[:, :, 0].tolist() == [[0, 0], [128, 255]]


@pytest.mark.parametrize(
    ("bits", "segments", "said"),
    [
        (16, [0, 1, 7, *[1, 65535, 7] * 100], "more than 65,536 entries"),
        (8, [0, 1, 7, *[1, 255, 7] * 300], "more than 65,536 entries"),
        (16, [0, 1, 7, 2, 65535, 0, 0], "indirect segments"),
        (8, [0, 1, 7, 2, 255, 0, 0, 0, 0], "indirect segments"),
    ],
)
def test_a_palette_that_would_expand_without_end_is_refused_before(tmp_path, monkeypatch, bits, segments, said):
    monkeypatch.setattr(pydicom.pixels.processing, "_expand_segmented_lut", lambda *_: pytest.fail("expanded"))
    with pytest.raises(DataError, match=f"bomb.dcm: a palette of .*{said}"):
        load_image(palette(tmp_path / "bomb.dcm", bits, *segments))
