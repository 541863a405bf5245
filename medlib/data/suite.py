"""A suite: scenarios, the folder of their images, and how the images are shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from medlib.config import DataError
from medlib.config.provenance import digest
from medlib.data import corruptions
from medlib.data.cases import Case, LabelledCase, scenario_hash
from medlib.data.images import inside, load_image


def shown(images_dir: Path, name: str, view: str = "") -> Image.Image:
    """What every auditor is shown of an image, in training and afterwards: RGB, padded to a square.

    Parameters
    ----------
    name : file inside ``images_dir``
    view : as in `Suite`
    """
    file = inside(images_dir, name)
    try:
        image = load_image(file, square=True)
    except DataError as error:  # reports show the message: the folder may be named after somebody
        raise DataError(str(error).replace(str(file), name)) from None
    return corruptions.apply(view, image, name) if view else image


def _content(images_dir: Path, name: str) -> str:
    """SHA-256 of an image's bytes; DataError if they cannot be read, without the folder, as of `shown`."""
    try:
        return hashlib.sha256(inside(images_dir, name).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{name}: image cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Suite:
    """Scenarios, the folder that holds their images, and how those are shown.

    ``view`` is "" for the images as they are, or names an alteration of `medlib.data.corruptions`,
    such as ``grey`` or ``noise-3``.
    """

    name: str
    scenarios: list[LabelledCase]
    images_dir: Path
    view: str = ""

    def __len__(self) -> int:
        return len(self.scenarios)

    @property
    def sha256(self) -> str:
        return scenario_hash(self.scenarios)

    def rows(self, numbers) -> Suite:
        """The scenarios of these row numbers, as a suite."""
        return replace(self, scenarios=[self.scenarios[i] for i in numbers])

    def image(self, scenario: Case) -> Image.Image:
        """What an auditor is shown, see `shown`."""
        return shown(self.images_dir, scenario.image, self.view)

    def keys(self) -> list[str]:
        """One SHA-256 a scenario over all that an auditor sees: words, image's bytes and view."""
        return self._keys

    @cached_property
    def _keys(self) -> list[str]:
        # every system asks for them; reading thousands of images once is enough
        files = {name: _content(self.images_dir, name) for name in {s.image for s in self.scenarios}}
        return [
            digest([s.modality, s.patient.model_dump(), s.finding, s.treatment, files[s.image], self.view])
            for s in self.scenarios
        ]
