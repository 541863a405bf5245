"""What tower and projector make of an image: computed once, kept in memory and, where told to, on disk.

An adapter on the decoder leaves these features alone, so base, adapters, training and the distance of
foreign images share them. On disk a feature is named by its image's bytes and by all that makes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medlib.config import files
from medlib.data.images import PIXELS_VERSION

#: Bytes of main memory after which no further image is kept (MedGemma: 1.3 MB an image in bfloat16).
MEMORY_BYTES = 2 << 30
#: Bytes on disk after which the oldest features are deleted.
DISK_BYTES = 4 << 30
_HOUR = 3600
#: What is known, for as long as a tower lives.
_KNOWN: weakref.WeakKeyDictionary[torch.nn.Module, _Features] = weakref.WeakKeyDictionary()


def pixels_of(processor, image: Image.Image) -> torch.Tensor:
    """An image as tower and projector take it, float tensor (crops, 3, height, width)."""
    return processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]


class View(NamedTuple):
    """An image as a model is shown it: its file, and the alteration of `Suite.view`."""

    file: Path
    view: str = ""


class _Features:
    """Features of one tower by view and state of the file; ``folder`` keeps them for later processes."""

    def __init__(self) -> None:
        self.memory: dict[tuple, torch.Tensor] = {}
        self.bytes, self.made_by = 0, ""
        self.folder: Path | None = None
        self.files: dict[str, Path] = {}  # name of a feature -> file that holds it
        self.listed: set[Path] = set()

    def add(self, key: tuple, feature: torch.Tensor) -> None:
        if self.bytes + feature.nbytes <= MEMORY_BYTES:
            self.memory[key] = feature
            self.bytes += feature.nbytes

    def name(self, image: View) -> str:
        content = hashlib.sha256(image.file.read_bytes()).hexdigest()
        return f"{content}-{image.view}"

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Features on disk by name; a file that is gone or broken holds none."""
        assert self.folder is not None
        if any(name not in self.files for name in names):  # another process may have added some
            for file in self.folder.glob(f"{self.made_by}-*.safetensors"):
                if file not in self.listed:
                    self.files |= dict.fromkeys(_names(file), file)
                    self.listed.add(file)
        features = {}
        for name in names:
            try:
                with safe_open(self.files[name], "pt") as held:
                    features[name] = held.get_tensor(name)
            except (KeyError, OSError, SafetensorError):
                self.files.pop(name, None)
        return features

    def write(self, features: dict[str, torch.Tensor]) -> None:
        """A new file for new features, put in place whole: writers never meet, a killed one leaves no half."""
        assert self.folder is not None
        files.private_folder(self.folder)
        _make_room(self.folder, sum(f.nbytes for f in features.values()))
        content = hashlib.sha256("".join(sorted(features)).encode()).hexdigest()[:16]
        file = self.folder / f"{self.made_by}-{content}.safetensors"
        with files.replacement(file, sync=False) as unfinished:
            save_file({name: f.contiguous() for name, f in features.items()}, unfinished)
        self.files |= dict.fromkeys(features, file)


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as held:
            return list(held.keys())
    except (OSError, SafetensorError):
        return []


def _make_room(folder: Path, wanted: int) -> None:
    """Delete what killed writers left, and the oldest features beyond `DISK_BYTES`."""
    files = []
    for file in folder.iterdir():
        try:
            files.append((file.stat().st_mtime, file.stat().st_size, file))
        except FileNotFoundError:  # another process deletes, too
            continue
    room = DISK_BYTES - wanted - sum(size for _, size, _ in files)
    for modified, size, file in sorted(files):
        left_over = file.suffix == ".tmp" and modified < time.time() - _HOUR
        if left_over or (room < 0 and file.suffix != ".tmp"):
            file.unlink(missing_ok=True)
            room += size


def keep_on_disk(network, image_processor, folder: Path) -> None:
    """Share the features of this network's tower with later processes, in ``folder``."""
    known = _known(network)
    if known is None:
        return
    digest = hashlib.sha256(f"{PIXELS_VERSION} {image_processor.to_json_string()}".encode())
    for part in _parts(network):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    known.folder, known.made_by = folder, digest.hexdigest()[:16]


@contextlib.contextmanager
def forgotten(network) -> Iterator[None]:
    """Nothing that is computed inside goes to disk, and none of it stays in memory."""
    known = _known(network)
    if known is None:
        yield
        return
    folder, known.folder = known.folder, None
    try:
        yield
    finally:
        known.memory.clear()
        known.bytes, known.folder = 0, folder


def are_fixed(network) -> bool:
    """Whether images have features that no adapter on this network changes."""
    return _known(network) is not None


def _parts(network) -> list[torch.nn.Module]:
    named = dict(network.named_modules())
    ends = ("vision_tower", "multi_modal_projector")
    return [module for end in ends for name, module in named.items() if name.endswith(end)]


def _known(network) -> _Features | None:
    parts = _parts(network)
    adapted = any("lora_" in name for part in parts for name, _ in part.named_parameters())
    if adapted or len(parts) < 2:
        return None
    return _KNOWN.setdefault(parts[0], _Features())


@torch.no_grad()
def of_images(
    network, images: Sequence[View], pixels: Sequence[Callable[[], torch.Tensor]]
) -> list[torch.Tensor] | None:
    """Features of each image, on the CPU, float tensors (crops, tokens, hidden size).

    Only images that are not known yet are loaded and go through the tower, all of them in one batch.

    Parameters
    ----------
    pixels : a function for each image that loads it, float tensor (crops, 3, height, width)

    Returns
    -------
    None where an adapter changes tower or projector
    """
    known = _known(network)
    if known is None:
        return None
    stats = [(image, image.file.stat()) for image in images]
    keys = [(image, s.st_mtime_ns, s.st_size) for image, s in stats]
    features = {key: known.memory[key] for key in keys if key in known.memory}
    missing = {key: load for key, load in zip(keys, pixels) if key not in features}
    names = {key: known.name(key[0]) for key in missing} if known.folder else {}
    if names:
        stored = known.read(list(names.values()))
        features |= {key: stored[name] for key, name in names.items() if name in stored}
    new = {key: load() for key, load in missing.items() if key not in features}
    if new:
        device = next(network.parameters()).device
        whole = network.get_image_features(torch.cat(list(new.values())).to(device)).pooler_output.cpu()
        # clones: a slice would keep the whole batch in memory
        made = [part.clone() for part in whole.split([len(p) for p in new.values()])]
        features |= dict(zip(new, made))
        if names:
            known.write({names[key]: feature for key, feature in zip(new, made)})
    for key in missing:
        known.add(key, features[key])
    return [features[key] for key in keys]
