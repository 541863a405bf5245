"""What a DICOM file may cost before anything of it is unpacked, and whether it may show patient data."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from medlib.config import DataError

#: Bytes that one file, or one of its frames, may unpack to; a mammogram's 30 million pixels of 16 bits are 60 MB.
MAX_BYTES = 512 << 20
#: Entries of a palette for one colour, the most that its descriptor can tell.
MAX_ENTRIES = 1 << 16
#: Screens that somebody saved: they carry names and dates unless their own tag says that they do not.
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
SWITCH = "MEDLIB_ALLOW_UNMARKED_CAPTURES"
#: Read beside the tags of the pixels, to recognise them.
TAGS = ("SOPClassUID", "BurnedInAnnotation", "ImageType", "ConversionType", "Modality")


def check_deflated(path: Path) -> None:
    """DataError for a deflated file that unpacks to more than `MAX_BYTES`; a part at a time is in memory."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        read_preamble(file, force=True)
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := unpacker.unconsumed_tail or file.read(1 << 16):
            size += len(unpacker.decompress(packed, 1 << 20))
            _check_bytes(path, size)
            if unpacker.eof:
                return


def check_frame(path: Path, dataset, frame: int, frames: int) -> None:
    """DataError if one frame takes more than `MAX_BYTES`, by its own account or by what its RLE segments hold.

    Likewise for a palette whose segments stand for more entries than a palette can have.
    """
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    _check_palette(path, dataset)
    pixels = dataset.Rows * dataset.Columns
    _check_bytes(path, pixels * dataset.SamplesPerPixel * dataset.BitsAllocated // 8)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        packed = get_frame(dataset.PixelData, frame, number_of_frames=frames)
        if 64 * len(packed) > MAX_BYTES:  # two bytes stand for 128 at most
            _check_bytes(path, _rle_bytes(packed[64:]))


def _check_palette(path: Path, dataset) -> None:
    for colour in ("Red", "Green", "Blue"):
        packed = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
        if not packed:
            continue
        kind = "u1" if dataset.RedPaletteColorLookupTableDescriptor[2] == 8 else "u2"
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        if _palette_entries(path, np.frombuffer(packed, order + kind, len(packed) // int(kind[1]))) > MAX_ENTRIES:
            raise DataError(f"{path}: a palette of more than {MAX_ENTRIES:,} entries; convert the image to RGB")


def _palette_entries(path: Path, segments: np.ndarray) -> int:
    """Entries that the segments of a palette stand for, counted until they are too many."""
    size = place = 0
    while place + 1 < len(segments) and size <= MAX_ENTRIES:
        kind, length = int(segments[place]), int(segments[place + 1])
        if kind > 1:  # such a segment repeats others, and may repeat itself
            raise DataError(f"{path}: a palette of indirect segments; convert the image to RGB")
        size += length
        place += 3 if kind else 2 + length
    return size


def _rle_bytes(packed: bytes) -> int:
    """Bytes that run-length code unpacks to, counted until they are too many."""
    size = place = 0
    while place < len(packed) and size <= MAX_BYTES:
        head = packed[place]
        size += 257 - head if head > 128 else head + 1 if head < 128 else 0
        place += 2 if head > 128 else head + 2 if head < 128 else 1
    return size


def _check_bytes(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MiB; save the image smaller")


def check_annotation(path: Path, dataset, looked_at: bool = False) -> None:
    """DataError for patient data in the pixels: by the file's own tag, or for want of it in a saved screen."""
    told = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    if told == "YES":
        raise DataError(f"{path}, field 'BurnedInAnnotation': patient data is burned into the pixels")
    if told != "NO" and not looked_at and _is_capture(dataset) and os.environ.get(SWITCH) != "1":
        raise DataError(
            f"{path}, field 'BurnedInAnnotation': a saved screen whose tag does not say NO may show a name; look "
            f"at the image, then set the tag to NO, or the environment variable {SWITCH}=1 for all such files"
        )


def _is_capture(dataset) -> bool:
    """Secondary captures by class, conversion or modality, and screen saves by their type."""
    kind = str(dataset.get("SOPClassUID") or "")
    return (
        kind == CAPTURES
        or kind.startswith(f"{CAPTURES}.")
        or bool(dataset.get("ConversionType"))
        or dataset.get("Modality") in ("SC", "OT")
        or "SCREEN" in str(dataset.get("ImageType")).upper()
    )
