"""All predictions of a run in one long table; each part of it is scored once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import METHODS, ROWS, NotRun

#: The columns that name a part of the table: its predictions are those of one system on one suite.
KEY = ["system", "suite", "ablation"]


def run_seed(name: str) -> tuple[str, str]:
    """("medgemma-ppo", "1") of a further seed of a method, (name, "") of any other system."""
    system, _, seed = name.partition(":")
    return (system, seed) if system.removeprefix("medgemma-") in METHODS else (name, "")


class Results:
    """Predictions of every system on every suite.

    A further seed of a method, such as ``medgemma-ppo:1``, stands for the spread and is no system of its own.

    Parameters
    ----------
    table : DataFrame
        One row per system, suite, ablation and scenario. Columns ``system``; ``suite``; ``ablation``: what was
        withheld of the input, "" for nothing; and those of `medlib.stats.predictions`. It is not changed
        afterwards.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.parts = {key: part.reset_index(drop=True) for key, part in table.groupby(KEY, sort=False)}
        self._scores: dict[tuple, dict] = {}

    @classmethod
    def join(cls, parts: Mapping[tuple[str, ...], pd.DataFrame]) -> Results:
        """Predictions by (system, suite) or (system, suite, ablation) in one table, whatever their order."""
        named = {(*key, "")[:3]: part for key, part in parts.items()}
        tables = [named[key].assign(**dict(zip(KEY, key))) for key in sorted(named)]
        return cls(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=KEY))

    @classmethod
    def read(cls, file: Path) -> Results:
        """The table that `medlib.stats.write_predictions` wrote."""
        table = stats.read_predictions(file)
        if "ablation" not in table:  # earlier runs named it behind the system
            names = table["system"].str.partition(" ")
            table = table.assign(system=names[0], ablation=names[2])
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    def has(self, system: str, suite: str, ablation: str = "") -> bool:
        return (system, suite, ablation) in self.parts

    def of(self, system: str, suite: str, ablation: str = "") -> pd.DataFrame:
        """Predictions of one system on one suite; NotRun if there are none."""
        if not self.has(system, suite, ablation):
            raise NotRun(f"{system} {ablation}".strip() + f": no predictions on the suite {suite}")
        return self.parts[system, suite, ablation]

    def score(self, system: str, suite: str, ablation: str = "") -> dict:
        """`medlib.stats.score` of one system on one suite."""
        key = system, suite, ablation
        if key not in self._scores:
            self._scores[key] = stats.score(self.of(*key))
        return self._scores[key]

    def systems(self, suite: str) -> list[str]:
        """Systems that were asked about the whole input of a suite, lowest rung first."""
        names = [name for name in self._names(suite) if not run_seed(name)[1]]
        return sorted(names, key=lambda name: ROWS.index(name) if name in ROWS else len(ROWS))

    def on(self, suite: str) -> dict[str, pd.DataFrame]:
        """Predictions of `systems` by name."""
        return {name: self.of(name, suite) for name in self.systems(suite)}

    def scores(self, suite: str) -> dict[str, dict]:
        """Scores of `systems` by name."""
        return {name: self.score(name, suite) for name in self.systems(suite)}

    def seeds(self, system: str, suite: str) -> list[str]:
        """Names of a method's runs, the first seed's first."""
        names = [name for name in self._names(suite) if run_seed(name)[0] == system]
        return sorted(names, key=lambda name: int(run_seed(name)[1] or -1))

    def _names(self, suite: str) -> list[str]:
        return [system for system, *rest in self.parts if rest == [suite, ""]]
