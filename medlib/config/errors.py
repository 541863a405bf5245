"""Errors that a user can fix; the command line shows their message without a traceback."""

from __future__ import annotations

import re

#: Lines and characters of a message, beyond which a reader learns nothing more.
MAX_LINES, MAX_LENGTH = 100, 20_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text of a data set for a terminal: control characters are written out, so that none moves the cursor.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Told(Exception):
    """An error whose message a user reads."""

    def __init__(self, message: object = "") -> None:
        lines = str(message).split("\n")
        if len(lines) > MAX_LINES:
            lines = [*lines[:MAX_LINES], f"… and {len(lines) - MAX_LINES:,} more"]
        text = printable("\n".join(lines))
        super().__init__(text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…")


class ConfigError(_Told, ValueError):
    """An unknown profile, an unknown name or a value out of range."""


class DataError(_Told, ValueError):
    """A data problem that names file, row and field."""


class ModelError(_Told, RuntimeError):
    """A model that cannot be had, with what to do about it."""


class NotRun(_Told, RuntimeError):
    """Why a system cannot be asked here (no key, no adapter, no package); its row says so."""
