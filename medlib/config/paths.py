"""Where things are: the repository root, and one rule for relative paths."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def path(name: str | Path) -> Path:
    """A path given relative to the repository works from any notebook's folder."""
    name = Path(name).expanduser()
    return name if name.is_absolute() else ROOT / name
