"""The registry of systems: a function under a name builds each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medlib.config import NotRun
from medlib.data.suite import Suite

if TYPE_CHECKING:
    from medlib.systems.session import Session

MODULES = (
    "text",
    "image_statistics",
    "biomedclip",
    "medgemma",
    "two_questions",
    "fusion",
    "openai_api",
    "vllm_engine",
)


class Interrupted(NotRun):
    """NotRun in the middle of a call: ``answers`` holds those that came before, by row number, to be kept."""

    def __init__(self, reason: str, answers: dict[int, dict] | None = None) -> None:
        super().__init__(reason)  # whose only argument this is, so that it can come from another process
        self.answers = answers or {}


def refused(reason: str) -> dict:
    """The answer of a case that could not be judged: no verdict, which counts as wrong, and the reason why."""
    return {"p_correct": 0.5, "generated": "", "parsed": None, "read": False, "refused": reason}


@dataclass(frozen=True)
class System:
    """One auditor.

    Attributes
    ----------
    name : str
        The row's name.
    revision : str
        Changes whenever an answer could change: it keys the cache of answers.
    predict : callable
        ``predict(suite)`` gives the probability of CORRECT, float array (n,); or a table of n rows
        with a column ``p_correct`` and any of ``generated``, ``parsed``, ``prompt_tokens``,
        ``completion_tokens``, ``usd``; ``seconds`` are those spent elsewhere, and are added to. ``read`` is
        False where no verdict could be read, ``refused`` says why a case was not judged (see `refused`).
    chunk : int
        Scenarios a call; what was answered is kept after each call.
    speak : callable, optional
        ``speak(suite)`` gives a table of what a language model writes: ``generated``, ``parsed``. It is
        asked for cases whose ``predict`` left ``generated`` missing.
    """

    name: str
    revision: str
    predict: Callable[[Suite], np.ndarray | pd.DataFrame]
    chunk: int = 256
    speak: Callable[[Suite], pd.DataFrame] | None = None


REGISTRY: dict[str, Callable[[Session], System]] = {}


#: Suites about which a system can be asked, where that is not every one.
_ANSWERS: dict[str, Callable[[Suite], bool]] = {}


def register(name: str, answers: Callable[[Suite], bool] | None = None):
    """Put a function that builds a system into the registry under a name.

    ``answers`` tells of a suite whether the system can be asked about it; by default it can.
    """

    def add(build: Callable[[Session], System]):
        REGISTRY[name] = build
        if answers:
            _ANSWERS[name] = answers
        return build

    return add


def names() -> list[str]:
    """Names of all registered systems; ``openai`` stands for ``openai:<model>``, ``vllm`` likewise."""
    for module in MODULES:
        import_module(f"medlib.systems.{module}")
    return list(REGISTRY)


def can_answer(name: str, suite: Suite) -> bool:
    """Whether a system can be asked about a suite."""
    names()  # registers all
    return _ANSWERS[name](suite) if name in _ANSWERS else True


def is_system(name: str) -> bool:
    """True for a registered name, with or without a variant behind a colon."""
    kind = name.partition(":")[0]
    return kind in REGISTRY or kind in names()  # no further modules for one that is there
