"""What systems are built from and asked in: configuration, suites, loaded models, cached answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from medlib import stats
from medlib.config import ConfigError, DataError, RunConfig, adapter_dir, jobs, path
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.models import prompts
from medlib.systems.answers import keep_answers, read_answers
from medlib.systems.registry import REGISTRY, Interrupted, System, is_system, names, refused


class Session:
    """What systems are built from and asked in: configuration, suites, loaded models, kept answers.

    Nothing is loaded before a system asks for it.
    """

    def __init__(self, config: RunConfig, suites: dict[str, Suite]) -> None:
        self.config, self.suites = config, suites
        self.variant, self._systems = "", {}
        self.memo: dict = {}  # what a question has fitted, for the next one

    def training_scenarios(self) -> list[LabelledCase]:
        """The words that every trained system may learn from."""
        return self.suites["train"].scenarios + self.suites["core_train"].scenarios

    @cached_property
    def base(self):
        """The base model, as the configuration says."""
        from medlib.models import loading

        return loading.load_for(self.config)

    @cached_property
    def adapted(self):
        """The base with the adapter on it."""
        return self.base.with_adapter(adapter_dir(self.config))

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
        DataFrame of `stats.prediction_row` rows with ``seconds`` a case and whatever else the
        system told.
        """
        system = self.system(name)
        answered = self.kept(name, system.revision, suite, sound_only(system.predict), system.chunk)
        if system.speak:
            answered = self._in_words(system, suite, answered, free)
        return stats.predictions_table(suite.scenarios, answered)

    def _in_words(self, system: System, suite: Suite, answered: pd.DataFrame, free: bool) -> pd.DataFrame:
        """Answers in words, asked for where the prediction did not tell them already; none unless ``free``."""
        table = answered.drop(columns="generated", errors="ignore")
        if not free or system.speak is None:
            return table
        texts = answered.get("generated", pd.Series(None, range(len(answered)), dtype=object))
        rest = texts.index[texts.isna()]
        if len(rest):
            spoken = self.kept(
                f"{system.name} free", system.revision, suite.rows(rest), sound_only(system.speak), system.chunk
            )
            texts = texts.astype(object)
            texts[rest] = spoken["generated"].to_numpy()
        return table.assign(generated=texts, parsed=[prompts.parse_verdict(text) for text in texts])

    def unanswered(self, name: str, suite: Suite, free: bool = False) -> int:
        """How many scenarios of a suite a system has not answered yet, with ``free`` in words too."""
        system, keys = self.system(name), set(suite.keys())
        answers = read_answers(self._file(name, system.revision))
        if free and system.speak:
            spoken = read_answers(self._file(f"{name} free", system.revision))
            answers = {key: row for key, row in answers.items() if "generated" in row or key in spoken}
        return len(keys - answers.keys())

    def was_asked(self, name: str) -> bool:
        """Whether this run keeps any answer of a system."""
        return self._file(name, self.system(name).revision).is_file()

    def _file(self, label: str, revision: str) -> Path:
        stem = label.translate(str.maketrans(":/ ", "___"))
        return path(self.config.run_dir) / "answers" / f"{stem}-{revision[:16]}.jsonl"

    def kept(self, label: str, revision: str, suite: Suite, question: Callable, chunk: int) -> pd.DataFrame:
        """Answers to one question, from disk where they are known, else asked and kept, chunk by chunk."""
        file = self._file(label, revision)
        keys, known = suite.keys(), read_answers(file)
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        # cases of one length together, so that a batch carries little padding
        rows = sorted(missing.values(), key=lambda r: (_length(suite.scenarios[r]), r))
        hidden = {} if rows else {"disable": True}  # False would overrule the environment
        with tqdm(total=len(rows), desc=f"{label} / {suite.name}", leave=False, **hidden) as bar:
            for done in range(0, len(rows), chunk):
                part = rows[done : done + chunk]
                jobs.progress(f"{label} on {suite.name}: {done} of {len(rows)}")
                started = time.perf_counter()
                try:
                    answers = _table(question(suite.rows(part)), len(part), label)
                except Interrupted as stop:  # what was answered before is paid for
                    keep_answers(file, [keys[part[r]] for r in stop.answers], pd.DataFrame(stop.answers.values()))
                    raise
                answers["seconds"] = answers.get("seconds", 0) + (time.perf_counter() - started) / len(part)
                known |= keep_answers(file, [keys[r] for r in part], answers)
                bar.update(len(part))
        return pd.DataFrame([known[key] for key in keys])


def _length(scenario: LabelledCase) -> int:
    return len(scenario.finding) + len(scenario.treatment)


def sound_only(question: Callable) -> Callable:
    """The question, put about the cases whose image can be read; the others are `refused` with the reason."""

    def ask(part: Suite) -> pd.DataFrame:
        try:
            return question(part)
        except DataError:
            problems = {row: problem for row, s in enumerate(part.scenarios) if (problem := _problem(part, s))}
            if not problems:
                raise
        sound = [row for row in range(len(part)) if row not in problems]
        answers = {row: refused(problem) for row, problem in problems.items()}
        if sound:
            table = _table(question(part.rows(sound)), len(sound), part.name)
            answers |= dict(zip(sound, table.to_dict(orient="records")))
        return pd.DataFrame([answers[row] for row in range(len(part))])

    return ask


def _problem(suite: Suite, scenario: LabelledCase) -> str:
    """Why an image cannot be read; "" if it can."""
    try:
        suite.image(scenario)
    except DataError as error:
        return str(error)
    return ""


def _table(answers, n: int, name: str) -> pd.DataFrame:
    table = answers.copy() if isinstance(answers, pd.DataFrame) else pd.DataFrame({"p_correct": answers})
    if len(table) != n or ("p_correct" in table and not table["p_correct"].between(0, 1).all()):
        raise ValueError(f"{name}: expected {n} answers, each probability between 0 and 1")
    return table
