"""Images of one's own that are not shown as they lie.

``dataset.yaml`` may ask for one page of a stack (``frame``), a small copy of a slide (``thumbnail``) or for images
that fill the square instead of being padded (``pad: false``). They are written once as they are to be shown, and
everything else reads these files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from medlib.config import DataError, files
from medlib.data.cases import Case
from medlib.data.images import NoFrame, inside, load_image


def how(frame: int | None, thumbnail: int | None, pad: bool) -> str:
    """A name for a way of showing images; "" if they are shown as they lie."""
    parts = {"frame": frame, "thumbnail": thumbnail, "pad": None if pad else "no"}
    return "-".join(f"{name}-{value}" for name, value in parts.items() if value is not None)


def image(file: Path, frame: int | None = None, thumbnail: int | None = None, pad: bool = True) -> Image.Image:
    """An image as it is to be shown, RGB; DataError as of `load_image`."""
    try:
        loaded = load_image(file, frame=frame, thumbnail=thumbnail)
    except NoFrame as error:
        if error.frames != 1:
            raise
        loaded = load_image(file, thumbnail=thumbnail)  # a page is chosen where there are several
    side = max(loaded.size)
    return loaded if pad else loaded.resize((side, side), Image.Resampling.BILINEAR)


def one(case: Case, images_dir: Path, folder: Path, frame: int | None, thumbnail: int | None) -> tuple[Case, Path]:
    """A case and the folder of its image, which is written to ``folder`` if it is not shown as it lies."""
    if not how(frame, thumbnail, pad=True):
        return case, images_dir
    name = f"{case.image}.png"
    image(images_dir / case.image, frame, thumbnail).save(folder / name)
    return case.model_copy(update={"image": name}), folder


def data(own, folder: Path):
    """A data set (`medlib.data.own.OwnData`) whose images are shown as its card asks for them.

    Rows whose images cannot be read become problems. Itself if the card asks for nothing.

    Parameters
    ----------
    folder : Path
        Gets a folder for each way of showing; an image is written again when it has changed.
    """
    card = own.card
    name = how(card.frame, card.thumbnail, card.pad)
    if not name:
        return own
    target, new, problems = files.private_folder(folder / name), {}, {}
    for file in tqdm(dict.fromkeys(own.rows["file"]), desc="images as they are to be shown"):
        source = inside(own.images_dir, file)
        try:
            new[file] = _written(source, target, file, card)
        except DataError as error:
            problems[file] = str(error).removeprefix(f"{source}: ").replace(str(source), file)
    own = own.without(problems)
    return replace(
        own,
        cases=[case.model_copy(update={"image": new[case.image]}) for case in own.cases],
        table=own.table.assign(file=own.table["file"].map(new)) if len(own.table) else own.table,
        images_dir=target.resolve(),
    )


def _written(source: Path, target: Path, file: str, card) -> str:
    """Name inside ``target``; what is there already of the same state of the file stays."""
    name = f"{file}.png"
    place = target / name
    if not place.is_file() or place.stat().st_mtime_ns < source.stat().st_mtime_ns:
        shown = image(source, card.frame, card.thumbnail, card.pad)
        with files.replacement(place, sync=False, private=True) as unfinished:
            shown.save(unfinished, "PNG")
    return name
