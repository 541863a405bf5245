"""Do the licences of all packages that medlib needs, directly or not, fit Apache-2.0?  python tests/licences.py

The extra ``lint`` is left out: those are programs that this project runs, no code that it builds on.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = re.compile(r"MIT|BSD|Apache|ISC\b|PSF|Python Software Foundation|MPL|Mozilla Public|CNRI-Python")
COPYLEFT = re.compile(r"GPL|General Public|SSPL|CC-BY-(NC|SA)", re.IGNORECASE)
#: Read in the package's own LICENSE, because its metadata name none.
READ = {"torchrl": "MIT"}
#: PyTorch's builds for NVIDIA cards bring these along under NVIDIA's own terms; nobody else needs them.
NVIDIA = re.compile(r"nvidia-|cuda-")


def licence(distribution: metadata.Distribution) -> str:
    """What the metadata say: the SPDX expression, else the classifiers, else the first line of the free text."""
    told = distribution.metadata
    classifiers = [c.split(" :: ")[-1] for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    free = (told["License"] or "").strip().partition("\n")[0]
    return told["License-Expression"] or ", ".join(classifiers) or free


def needed(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions by name: those required, and whatever they require in turn."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            try:
                found[name] = metadata.distribution(name)
            except metadata.PackageNotFoundError:  # of an extra that is not installed here
                continue
            further = map(Requirement, found[name].requires or [])
            todo += [item for item in further if item.marker is None or item.marker.evaluate({"extra": extra})]
    return found


def problems(distributions: dict[str, metadata.Distribution]) -> list[str]:
    """One line for each package whose licence is copyleft, or unknown."""
    lines = []
    for name, distribution in sorted(distributions.items()):
        text = READ.get(name) or licence(distribution)
        if NVIDIA.match(name) or (PERMISSIVE.search(text) and not COPYLEFT.search(text)):
            continue
        lines.append(f"{name} {distribution.version}: licence {text or 'not stated'}")
    return lines


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [r for name in extras if name != "lint" for r in extras[name]]
    found = needed(requirements)
    if listed := problems(found):
        sys.exit("licences that do not fit Apache-2.0, or are unknown:\n" + "\n".join(listed))
    print(f"licences of {len(found)} packages: fit")


if __name__ == "__main__":
    main()
