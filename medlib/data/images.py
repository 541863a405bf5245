"""Loading images as every model sees them, and checking that an image can be a scan.

`load_image` is the one function that makes pixels of a file: training, scoring, APIs and the rating view
go through it (see `medlib.data.suite.shown`). What it returns holds pixels and nothing else of the file.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import BinaryIO, Iterable

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from medlib.config import DataError
from medlib.data import dicom_limits
from medlib.data.cases import LabelledCase

#: Part of what kept features and answers are known by: raise it whenever the pixels of some image change.
PIXELS_VERSION = 2
#: Pixels of an image, above which it is not decoded; a mammogram has 30 million.
MAX_PIXELS = 80_000_000
#: Formats that Pillow may read; none that runs a program, such as EPS.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
#: Percentiles of a deep grey image that become black and white; a dead pixel is beyond them.
PERCENTILES = (0.1, 99.9)
#: CT windows for red, green and blue, in Hounsfield units: wide, soft tissue, brain. MedGemma 1.5 was trained so.
CT_WINDOWS = ((-1024, 1024), (-135, 215), (0, 80))

_ORIENTATION = 0x0112  # EXIF
_OTHER = "B" if sys.byteorder == "little" else "L"
#: Pillow's names for 16 bits a colour -> the same in the other byte order.
_DEEP_COLOUR = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", _OTHER))
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MANY_PAGES = (
    "{path}: {pages} pages, a stack or a whole-slide image; cut tiles of the region in question from it, choose a "
    "page (frame: 0 is the first) or take a small copy of the whole (thumbnail: 1024), in dataset.yaml or as an "
    "option of `medlib audit`"
)


class NoFrame(DataError):
    """A frame that a file does not have; ``frames`` says how many it has."""

    def __init__(self, message: str, frames: int = 0) -> None:
        super().__init__(message)
        self.frames = frames


def load_image(
    path: str | Path,
    *,
    square: bool = False,
    frame: int | None = None,
    thumbnail: int | None = None,
    looked_at: bool = False,
) -> Image.Image:
    """Load an image as RGB.

    EXIF rotation is applied. Transparent parts become black. Grey images of more than 8 bits are scaled by
    their `PERCENTILES`, colour images by the bits that they use. DICOM is recognised by its content and shown
    through its own rescale and VOI LUT or window, without one by percentiles; padding pixels are black,
    MONOCHROME1 is inverted, and CT becomes the three `CT_WINDOWS`. No tag of it but those of the pixels is read.

    Parameters
    ----------
    square : bool
        Pad to a square with black, see `pad_to_square`.
    frame : int, optional
        Frame or page, counted from 0. By default the middle one of a multi-frame DICOM; a file of any other
        format that has several pages is refused.
    thumbnail : int, optional
        Longest side in pixels of a smaller copy. A whole-slide TIFF is then read at its smallest sufficient
        level.
    looked_at : bool
        Somebody has looked at this very file: a saved screen is accepted without its tag.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Raises
    ------
    DataError
        If the file is missing, truncated or not an image, has several pages or too many pixels, pixels that
        are not numbers, or patient data in them by its own account; or if it is a saved screen that does not say
        that there are none. No message repeats a DICOM value.
    """
    path = Path(path)
    if not os.path.isfile(path):  # False for what no path can be, such as too long a name
        raise DataError(f"{str(path)[:300]}: image not found")
    with path.open("rb") as file:
        start = file.read(132)
        if is_dicom(path, start):
            image = Image.fromarray(_dicom_pixels(path, frame, looked_at)).convert("RGB")
        else:
            try:
                image = _load(path, file, start[:4] in _TIFF, frame, thumbnail)
            except DataError:
                raise
            except UnidentifiedImageError:
                raise DataError(f"{path}: {_kind(start)}") from None
            except Exception as error:  # Pillow raises many types for a broken file
                raise DataError(f"{path}: truncated or unreadable image ({error})") from None
    image.info.clear()  # comments and EXIF
    if thumbnail:
        image.thumbnail((thumbnail, thumbnail))
    return pad_to_square(image) if square else image


def is_dicom(path: Path, start: bytes) -> bool:
    """Whether a file is a DICOM, by its first 132 bytes or, without the preamble, by its name."""
    return start[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}


def _kind(start: bytes) -> str:
    """What a file may be that begins so and is no image."""
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the image; `git lfs pull` fetches it"
    known = ", ".join(FORMATS)
    return f"truncated or unreadable image (none of {known}; DICOM without a preamble must be named .dcm)"


def inside(folder: str | Path, name: str) -> Path:
    """A file of a folder by its name; DataError if that leads outside, also through ``..`` or a link."""
    folder, file = Path(folder), Path(folder) / name
    try:
        is_inside = file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long a name, a byte that no name can have, a loop of links
        is_inside = False
    if not is_inside:
        raise DataError(f"image {name[:80]!r} leads outside the folder {folder.name}; put the file into it")
    return file


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square, as Google's chest x-ray notebooks for MedGemma do.

    A model resizes what it is given to a square; without padding it would see a distorted patient.
    """
    side = max(image.size)
    return image if image.width == image.height else ImageOps.pad(image, (side, side), color="black")


# --- files that Pillow reads ----------------------------------------------------------------------


def _load(path: Path, file: BinaryIO, is_tiff: bool, frame: int | None, thumbnail: int | None) -> Image.Image:
    with _open(file, is_tiff) as image:
        page = _page(path, image, frame, thumbnail)
        image.seek(page)
        _check_size(path, *image.size)
        raw = image.tile[0].args if image.tile else None
        image.load()
        turn = image.getexif().get(_ORIENTATION, 1)
        if image.mode.startswith(("I", "F")):  # more than 8 bits; Pillow would clip at 255
            values = np.asarray(image)
            image = Image.fromarray(_eight_bits_by_percentiles(path, values, np.zeros(values.shape, bool)))
        elif (raw[0] if raw and isinstance(raw, tuple) else raw) in _DEEP_COLOUR:
            with _open(file, is_tiff) as again:
                again.seek(page)
                values = np.asarray(image).astype(np.uint16) << 8 | _lower_bytes(again)
            image = Image.fromarray(_eight_bits(values), image.mode)
        image.getexif()[_ORIENTATION] = turn  # images from arrays have none
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return image.convert("RGB")


def _open(file: BinaryIO, is_tiff: bool) -> Image.Image:
    # a file and no path: Pillow would map it to memory, and then turns uncompressed TIFF wrongly
    file.seek(0)
    # the class itself: Image.open refuses a whole slide before its smaller pages can be looked at
    return TiffImagePlugin.TiffImageFile(file) if is_tiff else Image.open(file, formats=FORMATS)


def _page(path: Path, image: Image.Image, frame: int | None, thumbnail: int | None) -> int:
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # the second of an MPO is a preview
    if frame is not None or pages == 1:
        return _checked_frame(path, frame or 0, pages)
    if not thumbnail:
        raise DataError(_MANY_PAGES.format(path=path, pages=pages))
    shape, sizes = image.width / image.height, {}
    for number in range(pages):
        image.seek(number)
        if abs(image.width / image.height / shape - 1) < 0.02:  # not the label of a slide
            sizes[number] = max(image.size)
    return min(sizes, key=lambda number: (sizes[number] < thumbnail, abs(sizes[number] - thumbnail)))


def _checked_frame(path: Path, frame: int, frames: int) -> int:
    if not 0 <= frame < frames:
        raise NoFrame(f"{path}: frame {frame} of {frames} (counted from 0) does not exist", frames)
    return frame


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width} x {height} pixels, more than {MAX_PIXELS:,}; cut tiles of the region in question "
            "from it or save it smaller"
        )


def _lower_bytes(image: Image.Image) -> np.ndarray:
    """The lower 8 of 16 bits for each colour, uint8.

    Pillow keeps the upper 8 bits, which are almost empty if the data have 12: read in the other byte
    order it gives the lower ones.
    """
    image.tile = [
        tile._replace(
            args=(_DEEP_COLOUR[tile.args[0]], *tile.args[1:])
            if isinstance(tile.args, tuple)
            else _DEEP_COLOUR[tile.args]
        )
        for tile in image.tile
    ]
    return np.asarray(image)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Colours of any depth as bytes: by the number of bits in use, so that no contrast is changed."""
    if values.dtype == np.uint8:
        return values
    highest = np.percentile(values, PERCENTILES[1])
    bits = next(bits for bits in (8, 10, 12, 14, 16, 32) if highest < 2**bits)
    return _between(values, 0, 2**bits - 1)


def _eight_bits_by_percentiles(path: Path, values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Grey values of any depth as bytes; padding does not count and is black."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise DataError(f"{path}: {wrong:,} pixels are not numbers (nan or infinite)")
    inside = values[~padding] if not padding.all() else values
    low, high = np.percentile(inside, PERCENTILES)
    if low == high:  # nearly one value, such as a mask of little area
        low, high = inside.min(), inside.max()
    return np.where(padding, 0, _between(values, low, high)).astype(np.uint8)


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Bytes: black at ``low`` and below, white at ``high`` and above."""
    share = (values.astype(float) - low) / max(high - low, 1e-9)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


# --- DICOM ----------------------------------------------------------------------------------------

#: All that is read of a DICOM file; name, birth date and every other tag of the patient stay in it.
_TAGS = [
    *dicom_limits.TAGS,
    *("Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


def _dicom_pixels(path: Path, frame: int | None, looked_at: bool = False) -> np.ndarray:
    """Grey (rows, columns) or colour (rows, columns, 3) bytes of a DICOM file."""
    import pydicom
    from pydicom.pixels import apply_color_lut, pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

    syntax = "unknown transfer syntax"
    try:
        dicom_limits.check_deflated(path)
        # force: old files lack the preamble
        dataset = pydicom.dcmread(path, specific_tags=_TAGS, force=True)
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise DataError(f"{path}: truncated, or a DICOM file without an image")
        dicom_limits.check_annotation(path, dataset, looked_at)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = dataset.file_meta.TransferSyntaxUID.name
        frames = int(dataset.get("NumberOfFrames") or 1)
        if dataset.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage and frame is None:
            raise DataError(_MANY_PAGES.format(path=path, pages=frames))
        frame = _checked_frame(path, frames // 2 if frame is None else frame, frames)
        _check_size(path, dataset.Columns, dataset.Rows)
        dicom_limits.check_frame(path, dataset, frame, frames)
        stored = pixel_array(dataset, index=frame)  # RGB, if the file has YBR
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        if stored.ndim == 3:
            return _eight_bits(stored)
        return _grey(path, stored, _of_frame(dataset, frame))
    except DataError:
        raise
    except Exception as error:  # pydicom raises many types, and its messages may quote values
        raise DataError(
            f"{path}: unreadable DICOM ({type(error).__name__}, {syntax}); converting it to an uncompressed "
            "transfer syntax or to PNG may help"
        ) from None


def _of_frame(dataset, frame: int):
    """The dataset with rescale and window of this frame, which multi-frame files keep in sequences."""
    for groups, number in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if len(dataset.get(groups) or ()) > number and dataset[groups][number].get(name):
                dataset.update(dataset[groups][number][name][0])
    return dataset


def _grey(path: Path, stored: np.ndarray, dataset) -> np.ndarray:
    from pydicom.pixels import apply_rescale

    values, padding = apply_rescale(stored, dataset), _padding(stored, dataset)
    rescaled = dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None
    if dataset.get("Modality") == "CT" and rescaled:
        grey = np.stack([_between(values, *window) for window in CT_WINDOWS], axis=-1)
    else:
        shown = _windowed(values, dataset)
        grey = _eight_bits_by_percentiles(path, values, padding) if shown is None else shown
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = 0
    return grey


def _padding(stored: np.ndarray, dataset) -> np.ndarray:
    """Which pixels are no part of the image."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    ends = [value, dataset.get("PixelPaddingRangeLimit") or value]
    low, high = sorted(np.array(ends).astype(stored.dtype))  # a signed value may be written unsigned
    return (stored >= low) & (stored <= high)


def _windowed(values: np.ndarray, dataset) -> np.ndarray | None:
    """Bytes by VOI LUT or window, from the ends of its output range; None if there is none that works."""
    from pydicom.pixels import apply_voi, apply_windowing

    if lut := dataset.get("VOILUTSequence"):
        entries, first, _ = lut[0].LUTDescriptor
        whole = apply_voi(np.arange(first, first + (entries or 2**16)), dataset)
        return _between(apply_voi(np.rint(values).astype(np.int64), dataset), whole.min(), whole.max())
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    try:
        with np.errstate(over="ignore"):  # a sigmoid at its ends
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            return _between(apply_windowing(values, dataset), low, high)
    except ValueError:  # of no width
        return None


def is_whole(path: Path) -> bool:
    """True for a PNG or JPEG file that ends as such files end; an image that was cut off is drawn again."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(12, path.stat().st_size), os.SEEK_END)
            return file.read().endswith((b"IEND\xaeB`\x82", b"\xff\xd9"))
    except OSError:
        return False


# --- checks ---------------------------------------------------------------------------------------


def scan_problem(image: Image.Image) -> str | None:
    """Say why an image cannot be a scan, or None if it can.

    A photograph of tissue or an echo has hundreds of grey levels. An image whose pixels are
    (nearly) all of one or two levels is a blank page or a segmentation mask.
    """
    grey = np.asarray(image.convert("L"))
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    top = np.sort(share)[::-1]
    if top[0] > 0.999:
        return "one-colour image"
    dark, bright = share[:16].sum(), share[240:].sum()
    # the second test finds masks whose two levels a JPEG or a resize has blurred
    if top[:2].sum() > 0.99 or (dark + bright > 0.97 and min(dark, bright) > 0.001):
        return "two-valued segmentation mask, not a scan"
    return None


def check_images(
    scenarios: Iterable[LabelledCase], images_dir: str | Path, allow_masks: bool = False, name: str = ""
) -> None:
    """Refuse scenarios whose images are missing, broken, blank or masks.

    Raises
    ------
    DataError
        Naming data set, row, field and file of every problem.
    """
    problems, seen = [], {}
    for row, scenario in enumerate(scenarios, start=1):
        if scenario.image not in seen:
            seen[scenario.image] = _image_problem(images_dir, scenario.image, allow_masks)
        if problem := seen[scenario.image]:
            where = f"{name or images_dir}, row {row} ({scenario.id}), field 'image'"
            problems.append(f"{where}: {problem}")
    if problems:
        if any("mask, not a scan" in problem for problem in problems):
            problems.append("(pass --allow-masks to use masks all the same)")
        raise DataError("\n".join(problems))


def _image_problem(images_dir: str | Path, name: str, allow_masks: bool) -> str | None:
    try:
        path = inside(images_dir, name)
        problem = scan_problem(load_image(path))
    except DataError as error:
        return str(error)
    if problem and not (allow_masks and "mask" in problem):
        return f"{path}: {problem}"
    return None


def check_split(train: Iterable[LabelledCase], val: Iterable[LabelledCase], images_dir: str | Path) -> None:
    """Refuse a split in which an id or an image (by content) stands on both sides."""
    train, val = list(train), list(val)
    train_ids = {s.id for s in train}
    train_images = {pixel_hash(load_image(Path(images_dir) / s.image)): s for s in train}
    problems = []
    for row, scenario in enumerate(val, start=1):
        if scenario.id in train_ids:
            problems.append(f"val, row {row}, field 'id': {scenario.id!r} is in train too")
        twin = train_images.get(pixel_hash(load_image(Path(images_dir) / scenario.image)))
        if twin is not None:
            problems.append(
                f"val, row {row} ({scenario.id}), field 'image': {scenario.image} is the image "
                f"of {twin.id} in train ({twin.image})"
            )
    if problems:
        raise DataError("\n".join(problems))


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 over size and pixels: the same image in another file format has the same one."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
