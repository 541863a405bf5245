"""What a run makes of a data set of one's own: suites of its cases, or counterfactual pairs around its images."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import DataError, RunConfig, path
from medlib.config.paths import generated
from medlib.data import counterfactual, leakage, own, split, variants
from medlib.data.cases import LabelledCase
from medlib.data.own import OwnData
from medlib.data.split import Assignment
from medlib.data.suite import Suite
from medlib.data.synthetic import lexicon
from medlib.data.synthetic.lexicon import Finding, Lexicon

#: Where the sides of a data set of one's own are written, in a folder named by its content.
ASSIGNMENTS = generated("own")


@dataclass(frozen=True, eq=False)  # one object a data set, which is a key of what is kept below
class OwnSuites:
    """A data set, the side of each of its rows, and the suites made of them."""

    data: OwnData
    sides: Assignment
    lexicon: Lexicon

    def notes(self) -> list[str]:
        """What was recognised and guessed, which rows are left out, and how the sides came about."""
        rows = [f"{self.data.unread} rows cannot be read and are left out:"] if self.data.unread else []
        problems = own.listing(self.data.problems).splitlines()
        severity = ["no severity is stated: every error counts as critical"] if self._no_severity else []
        return [
            *self.data.notes,
            *rows,
            *problems,
            *severity,
            *self.sides.notes,
            *filter(None, [self.sides.stamp]),
        ]

    def suite(self, config: RunConfig, side: str) -> Suite:
        """The cases of a side; for labelled images as many pairs as asked for and as the images can give."""
        if self.data.kind == "cases":
            return self._suite(side, self._cases(side))
        pairs = {"train": config.train_pairs, "val": config.val_pairs, "test": config.test_pairs}[side]
        return self._suite(f"{side}-{pairs}-{config.seed}", self._pairs(side, pairs, config.seed))

    def further(self, config: RunConfig, use: str, side: str, pairs: int, notes: int = 0) -> Suite:
        """More cases of a side: other pairs around its images; of given cases, some of those that there are.

        Of given cases, "tuning" and "calibration" share no group.
        """
        if self.data.kind == "cases":
            cases = _half(self._cases(side), use)
            rows = np.random.default_rng([config.seed, len(cases)]).permutation(len(cases))[: 2 * (pairs + notes)]
            return self._suite(f"{use}-{side}", [cases[i] for i in sorted(rows)])
        cases = self._pairs(side, pairs, config.seed, use) + self._notes(side, notes, config.seed, use)
        return self._suite(f"{use}-{pairs}-{notes}-{config.seed}", cases)

    def contradiction(self, config: RunConfig, side: str, pairs: int) -> Suite:
        """Pairs around labelled images whose note contradicts the image; empty for given cases."""
        cases = [] if self.data.kind == "cases" else self._notes(side, pairs, config.seed)
        return self._suite(f"contradiction-{side}-{pairs}-{config.seed}", cases)

    def paraphrase(self, config: RunConfig) -> Suite:
        """The held-out pairs around labelled images in other words; empty for given cases."""
        heldout = self.suite(config, "test")
        if self.data.kind == "cases":
            return heldout.rows([])
        return variants.paraphrase(heldout, config.seed, self.lexicon)

    def demographics(self, config: RunConfig) -> Suite:
        """The held-out pairs around labelled images with other patients; empty for given cases."""
        heldout = self.suite(config, "test")
        return heldout.rows([]) if self.data.kind == "cases" else variants.other_patients(heldout, self.lexicon)

    def findings_of(self, modality: str) -> list[Finding]:
        """Findings of a modality that the lexicon knows; of labelled images those that occur."""
        findings = self.lexicon.findings_of(modality)
        if self.data.kind == "cases":
            return findings
        table = self.data.table
        present = set(table.loc[table["modality"] == modality, "finding"])
        return [f for f in findings if f.name in present]

    def _suite(self, name: str, cases: list[LabelledCase]) -> Suite:
        # a folder may be named after a patient; what the data set's card calls it may be shown
        label = self.data.card.name or f"own-{self.data.sha256[:8]}"
        return Suite(f"{label}-{name}", cases, self.data.images_dir)

    def _cases(self, side: str) -> list[LabelledCase]:
        return [self._with_factors(i) for i in self.sides.rows(side)]

    def _with_factors(self, row: int) -> LabelledCase:
        case = self.data.cases[row]
        # twins and groups are what is not independent: both stand under the name "pair" in every table
        known = {
            "pair": f"group {self.sides.table['group'].iat[row]}",
            "pair_kind": "given",
            "source": _source(case),
        }
        update: dict[str, object] = {"factors": known | case.factors}
        if self._no_severity:
            update["severity"] = "critical" if case.verdict == "ERROR" else "none"
        return case.model_copy(update=update)

    @functools.cached_property
    def _no_severity(self) -> bool:
        return bool(self.data.cases) and all(case.severity in (None, "none") for case in self.data.cases)

    def _pairs(self, side: str, pairs: int, seed: int, use: str | None = None) -> list[LabelledCase]:
        return self._all_cases(counterfactual.cases, side, seed, use)[: 2 * pairs]

    def _notes(self, side: str, pairs: int, seed: int, use: str | None = None) -> list[LabelledCase]:
        return self._all_cases(counterfactual.note_pairs, side, seed, use)[: 2 * pairs]

    @functools.lru_cache(maxsize=32)
    def _all_cases(self, make: Callable, side: str, seed: int, use: str | None) -> list[LabelledCase]:
        """All that the images can give, in turns over the modalities: a run takes the first of those."""
        return make(self._table, side, None, seed, self.lexicon, use=use)

    @functools.cached_property
    def _table(self) -> pd.DataFrame:
        return self.data.table.assign(split=list(self.sides.table["split"]))


def of(config: RunConfig) -> OwnSuites:
    """The data set of a run, read and divided once a process."""
    return _of(str(config.data_dir), config.seed, config.allow_shared_groups)


def shared(config: RunConfig) -> str:
    """What the sides of a run's data set share although they should not, in a sentence that every figure needs."""
    return of(config).sides.stamp if config.data_dir and config.allow_shared_groups else ""


@functools.lru_cache(maxsize=2)
def _of(data_dir: str, seed: int, allow_shared: bool) -> OwnSuites:
    place = path(data_dir)
    data = own.read(place if place.exists() else data_dir, strict=False)
    words = lexicon.load([place / "lexicon"])
    folder: Path = ASSIGNMENTS / f"{data.name}-{data.sha256[:12]}-{seed}{'-shared' if allow_shared else ''}"
    data, sides = _divided(data, folder, seed, allow_shared)
    suites = OwnSuites(data, sides, words)
    print("\n".join(suites.notes()), file=sys.stderr, flush=True)  # what a command prints may be JSON
    return suites


def _divided(data: OwnData, folder: Path, seed: int, allow_shared: bool) -> tuple[OwnData, Assignment]:
    """The rows whose images can be read, and their sides as they were written or anew."""
    modalities = dict(zip(data.rows["file"], data.rows["modality"]))
    broken: dict[str, str] = {}
    if sides := split.read(folder):
        known = set(sides.table["file"])
        left_out = {file: kind for file, kind in modalities.items() if file not in known}
        leakage.image_prints(left_out, data.images_dir, broken)
        if len(broken) == len(left_out):
            return data.without(broken), sides
        broken.clear()  # an image that was left out can be read by now, such as with another setting
    prints = leakage.image_prints(modalities, data.images_dir, broken)
    data = data.without(broken)
    if not len(data):
        raise DataError(f"{data.name}: no image can be read\n{own.listing(data.problems)}")
    sides = split.assign(data.rows, data.images_dir, seed, allow_shared=allow_shared, prints=prints, folder=folder)
    return data, sides


def _half(cases: list[LabelledCase], use: str) -> list[LabelledCase]:
    """Every other group for tuning, the rest for calibration; all cases for any other use."""
    uses = ("tuning", "calibration")
    if use not in uses:
        return cases
    mine = set(sorted({str(case.factors["pair"]) for case in cases})[uses.index(use) :: 2])
    return [case for case in cases if str(case.factors["pair"]) in mine]


def _source(case: LabelledCase) -> str:
    return case.error_type if case.error_type not in (None, "none") else f"verdict {case.verdict}"
