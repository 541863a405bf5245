"""Errors that a user can fix; the command line shows their message without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """An unknown profile, an unknown name or a value out of range."""


class DataError(ValueError):
    """A data problem that names file, row and field."""


class ModelError(RuntimeError):
    """A model that cannot be had, with what to do about it."""


class NotRun(RuntimeError):
    """Why a system cannot be asked here (no key, no adapter, no package); its row says so."""
