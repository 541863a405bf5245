"""Every auditor that the benchmark compares, behind one interface; adding one takes a few lines.

    @register("always-error")
    def always_error(setting: Setting) -> System:
        \"\"\"What an auditor who trusts nobody achieves.\"\"\"
        return System("always-error", "1", lambda suite: np.zeros(len(suite)))

A name with a colon, such as ``openai:gpt-4o``, is looked up by what stands before the colon.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medlib import evaluation
from medlib.config import ConfigError, RunConfig, adapter_dir, path
from medlib.data import Suite
from medlib.schema import DataError, Scenario

MODULES = ("text", "biomedclip", "medgemma", "fusion", "openai_api")


class NotRun(RuntimeError):
    """Why a system cannot be asked here (no key, no adapter, no package); its row says so."""


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
        ``completion_tokens``, ``usd``; ``seconds`` are those spent elsewhere, and are added to.
    chunk : int
        Scenarios a call; what was answered is kept after each call.
    speak : callable, optional
        ``speak(suite)`` gives a table of what a language model writes: ``generated``, ``parsed``.
    """

    name: str
    revision: str
    predict: Callable[[Suite], np.ndarray | pd.DataFrame]
    chunk: int = 256
    speak: Callable[[Suite], pd.DataFrame] | None = None


REGISTRY: dict[str, Callable[[Setting], System]] = {}


def register(name: str):
    """Put a function that builds a system into the registry under a name."""

    def add(build: Callable[[Setting], System]):
        REGISTRY[name] = build
        return build

    return add


def names() -> list[str]:
    """Names of all registered systems; ``openai`` stands for ``openai:<model>``."""
    for module in MODULES:
        import_module(f"medlib.systems.{module}")
    return list(REGISTRY)


def is_system(name: str) -> bool:
    """True for a registered name, with or without a variant behind a colon."""
    return name.partition(":")[0] in names()


class Setting:
    """What systems are built from and asked in: configuration, suites, loaded models, kept answers.

    Nothing is loaded before a system asks for it.
    """

    def __init__(self, config: RunConfig, suites: dict[str, Suite]) -> None:
        self.config, self.suites = config, suites
        self.variant, self._systems = "", {}
        self.memo: dict = {}  # what a question has fitted, for the next one

    def training_scenarios(self) -> list[Scenario]:
        """The words that every trained system may learn from."""
        return self.suites["train"].scenarios + self.suites["core_train"].scenarios

    @cached_property
    def base(self):
        """(processor, base model)."""
        from medlib import models

        return models.load_for(self.config)

    @cached_property
    def adapted(self):
        """The base with the adapter on it."""
        from medlib import models

        return models.attach_adapter(self.base[1], adapter_dir(self.config))

    @property
    def has_adapter(self) -> bool:
        """True once the adapter has been put on the base."""
        return "adapted" in self.__dict__

    def system(self, name: str) -> System:
        """Build a system by name, once; ConfigError lists the names there are, NotRun says why not."""
        if name not in self._systems:
            if not is_system(name):
                raise ConfigError(f"no system {name!r}; systems: {', '.join(names())}")
            kind, _, self.variant = name.partition(":")
            self._systems[name] = REGISTRY[kind](self)
        return self._systems[name]

    def ask(self, name: str, suite: Suite, free: bool = False) -> pd.DataFrame:
        """Predictions of a system on a suite, in the suite's order.

        Answers are kept one by one under (system's revision, scenario's hash) in
        ``run_dir/answers/``: nothing is asked twice, and an interrupted call goes on where it
        stopped. ``free`` also has a language model answer in its own words.

        Returns
        -------
        DataFrame of `evaluation.prediction` rows with ``seconds`` a case and whatever else the
        system told.
        """
        system = self.system(name)
        answered = self.kept(name, system.revision, suite, system.predict, system.chunk)
        if free and system.speak:
            spoken = self.kept(f"{name} free", system.revision, suite, system.speak, system.chunk)
            answered = answered.join(spoken.drop(columns="seconds"))
        return evaluation.predictions(suite.scenarios, answered)

    def kept(self, label: str, revision: str, suite: Suite, question: Callable, chunk: int) -> pd.DataFrame:
        """Answers to one question, from disk where they are known, else asked and kept, chunk by chunk."""
        stem = label.translate(str.maketrans(":/ ", "___"))
        file = path(self.config.run_dir) / "answers" / f"{stem}-{revision[:16]}.jsonl"
        keys, known = suite.keys(), read_answers(file)
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        # cases of one length together, so that a batch carries little padding
        rows = sorted(missing.values(), key=lambda r: (_length(suite.scenarios[r]), r))
        with tqdm(total=len(rows), desc=f"{label} / {suite.name}", leave=False, disable=not rows) as bar:
            for part in (rows[i : i + chunk] for i in range(0, len(rows), chunk)):
                started = time.perf_counter()
                answers = _table(question(suite.rows(part)), len(part), label)
                answers["seconds"] = answers.get("seconds", 0) + (time.perf_counter() - started) / len(part)
                known |= keep_answers(file, [keys[r] for r in part], answers)
                bar.update(len(part))
        return pd.DataFrame([known[key] for key in keys])


def _length(scenario: Scenario) -> int:
    return len(scenario.finding) + len(scenario.treatment)


def _table(answers, n: int, name: str) -> pd.DataFrame:
    table = answers.copy() if isinstance(answers, pd.DataFrame) else pd.DataFrame({"p_correct": answers})
    if len(table) != n or ("p_correct" in table and not table["p_correct"].between(0, 1).all()):
        raise ValueError(f"{name}: expected {n} answers, each probability between 0 and 1")
    return table


def keep_answers(file: Path, keys: list[str], answers: pd.DataFrame) -> dict[str, dict]:
    """Append answers to a JSONL file, one line a scenario; returns them by key."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [evaluation.without_missing(row) for row in answers.to_dict(orient="records")]
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps({"key": key, **row}) + "\n" for key, row in zip(keys, rows))
    return dict(zip(keys, rows))


def read_answers(file: Path) -> dict[str, dict]:
    """Answers by key; a last line that an interruption cut off is dropped, any other bad one told."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    if torn:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            known[row.pop("key")] = row
        except (json.JSONDecodeError, KeyError) as error:
            raise DataError(f"{file.name}, row {number}: not an answer ({error}); delete the row and "
                            "run again") from None
    return known
