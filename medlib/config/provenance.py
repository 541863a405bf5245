"""What a run was made with, so that its numbers can be reproduced.

A run is one folder. ``run.json`` in it says which parameters, data, packages, code and device
gave the results; it names no person, no host and no folder outside the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import medlib
from medlib.config import hardware
from medlib.config.files import to_json
from medlib.config.paths import ROOT, expanded, path
from medlib.config.settings import RunConfig

# The packages that can change a number; the rest only carry it.
PACKAGES = (
    "torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes",
    "tokenizers", "safetensors", "numpy", "scipy", "pandas", "scikit-learn", "statsmodels",
    "pillow",
)  # fmt: skip

#: Parts of ``run.json``.
PARTS = (
    "timestamp", "parameters", "seed", "data_hashes", "device", "git", "medlib", "python", "platform", "packages",
    "report",
)  # fmt: skip
#: Settings that say where a user's own data are.
PLACES = ("data_dir", "images_dir", "ratings", "adapter")


def new_run_id(seed_text: str = "") -> str:
    """Name for a new run, such as ``20261124-203015-ab12cd``: it sorts by UTC time.

    Parameters
    ----------
    seed_text : str
        Anything that describes the run. The nanosecond clock and the process are mixed in, so
        two runs of one second and one description still get two names.
    """
    now = datetime.now(timezone.utc)
    unique = f"{seed_text}|{time.time_ns()}|{os.getpid()}"
    return f"{now:%Y%m%d-%H%M%S}-{hashlib.sha256(unique.encode()).hexdigest()[:6]}"


def digest(made_of) -> str:
    """SHA-256 over anything that JSON can hold: equal settings and data give an equal name."""
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def run_record(parameters: dict, data_hashes: dict[str, str], device: str | None = None) -> dict:
    """Describe a run.

    Parameters
    ----------
    parameters : dict
        Every setting of the run; ``parameters["seed"]`` is also shown on its own.
    data_hashes : dict of str to str
        Content hash of each data file, by its name in the project.
    device : str, optional
        ``cuda``, ``mps`` or ``cpu``; detected by default.

    Returns
    -------
    dict
        ``parameters``, ``data_hashes``, ``packages`` (name to version), ``medlib``, ``python``,
        ``platform``, ``git``, ``device``, ``seed`` and ``timestamp`` (UTC, ISO 8601). Parameters are those that
        `public` lets through.
    """
    return {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "parameters": public({"parameters": to_json(parameters)})["parameters"],
        "seed": to_json(parameters.get("seed")),
        "data_hashes": dict(data_hashes),
        "device": _device(device),
        "git": _git(),
        "medlib": medlib.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _package_versions(),
    }


def public(record: dict) -> dict:
    """What of a record may be shown and published: the parts known here, and of settings what names nobody."""
    parts = {name: value for name, value in record.items() if name in PARTS}
    parameters = parts.get("parameters") or {}
    known = {*RunConfig.model_fields, "model_kind"}
    return parts | {"parameters": {name: public_value(v, name) for name, v in parameters.items() if name in known}}


def public_value(value, name: str = ""):
    """A setting as it may be shown.

    Of an address remains scheme and host. A path inside the working folder is written relative to it; any other
    one, and every place of a user's own data, is a hash: folders are named after people.
    """
    if isinstance(value, dict):
        return {key: public_value(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_value(item, name) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    if "://" in text:
        try:
            parts = urlsplit(text)
        except ValueError:
            return _hashed("address", text)
        return f"{parts.scheme}://{parts.hostname or ''}"
    place = expanded(text)
    if re.match("(path|address)-[0-9a-f]{12}$", text) or not text:
        return text
    if name == "api_base_url":
        return _hashed("address", text)
    if name in PLACES and (place.is_absolute() or path(place).exists()):
        return _hashed("path", text)
    if text.startswith(("~", "\\\\")) or ".." in re.split(r"[\\/]", text):
        return _hashed("path", text)
    if place.is_absolute() or re.match(r"[A-Za-z]:[\\/]", text):
        inside = place.is_relative_to(Path.cwd())
        return place.relative_to(Path.cwd()).as_posix() if inside else _hashed("path", text)
    return text


def _hashed(what: str, text: str) -> str:
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _package_versions() -> dict[str, str | None]:
    """Version of each main package; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git(folder: str | Path | None = None) -> dict:
    """Revision of the project's checkout, and whether tracked or new files differ from it."""
    folder = Path(folder or ROOT).resolve()
    nothing = {"revision": None, "dirty": None}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        # An installed medlib may lie inside some other project's checkout: not our revision.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:
            return nothing
        return {"revision": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return nothing


def _device(device: str | None) -> dict:
    """Kind and name of the device, and the number of CPU threads that torch uses."""
    import torch  # Imported here so that the command line starts fast.

    device = device or hardware.device()
    kind = str(device).split(":")[0]
    name = torch.cuda.get_device_name(torch.device(device)) if kind == "cuda" else kind
    return {"type": kind, "name": name, "threads": torch.get_num_threads()}
