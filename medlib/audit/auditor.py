"""Asks a run about cases: loads what that takes once, and makes answers of what was measured."""

from __future__ import annotations

import contextlib
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medlib import stats
from medlib.audit import agreement, reference
from medlib.audit.answer import CaseAudit, decide
from medlib.audit.rationale import GRID, without_parts
from medlib.audit.reference import Reference
from medlib.config import ADAPTER, BASE, ConfigError, NotRun, RunConfig, adapter_dir, path
from medlib.data.cases import Case
from medlib.data.suite import Suite
from medlib.models import adapter_files
from medlib.models.verdict_model import VerdictModel
from medlib.systems import Session

HOSTED = "openai"
NO_ADAPTER = (
    "{run}: no trained adapter, so there is nobody to ask. Two ways lead to one: train it with "
    "`python -m medlib report` (or `train`) and --run-dir {run}, or name a finished run with --run-dir or an "
    "adapter's folder with --adapter"
)

LEAVES = "image and note would leave this machine; --set api_allow_real_images=true says that they may"


class Auditor:
    """A run that can be asked.

    Parameters
    ----------
    config : RunConfig
        The settings of the run, see `medlib.config.runs.settings_for`.
    system : str
        A row of the benchmark; by default the run's adapter.

    Raises
    ------
    ConfigError
        If the run has no adapter yet; says how to get one.
    NotRun, ModelError
        If the system cannot be asked here.
    """

    def __init__(self, config: RunConfig, system: str = ADAPTER) -> None:
        if system == ADAPTER and not (adapter_dir(config) / adapter_files.WEIGHTS).is_file():
            raise ConfigError(NO_ADAPTER.format(run=config.run_dir))
        self.config, self.name = config, system
        self.hosted = system.partition(":")[0] == HOSTED
        if self.hosted and not config.api_allow_real_images:
            raise NotRun(f"{system}: {LEAVES}")
        if self.sees:
            import medlib.systems.medgemma  # noqa: F401  # registers it, without the packages of the other systems
        self.session = Session(config, {} if self.sees or self.hosted else _suites(config))
        self.system = self.session.system(system)

    @property
    def sees(self) -> bool:
        """Whether the system has a vision tower of its own here, for maps and similar images."""
        return self.name in (ADAPTER, BASE)

    @cached_property
    def model(self) -> VerdictModel | None:
        """The loaded model; None unless the system `sees`."""
        if not self.sees:
            return None
        return self.session.adapted if self.name == ADAPTER else self.session.base

    @property
    def has_reference(self) -> bool:
        """Whether the reference is on disk already."""
        return not self.sees or reference.place(self.config, self.system).is_file()

    @cached_property
    def reference(self) -> Reference:
        """What answers are held against; made on first use, which takes a minute."""
        return reference.of_run(self.session, self.name, self.model)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of model, adapter and training data, and the system's revision (prompt and pixels included)."""
        from medlib.models import loading

        known = {"revision": self.system.revision}
        if self.sees:
            known["model"] = loading.weights_hash(self.config.model)
        if self.name == ADAPTER:
            known["adapter"] = loading.file_hash(adapter_dir(self.config) / adapter_files.WEIGHTS)
        return known | ({"data": self.reference.data} if self.reference.data else {})

    @cached_property
    def label(self) -> str:
        """Who answers, as people should read it."""
        from medlib.models import loading

        names = {BASE: loading.model_label(self.config), ADAPTER: f"{loading.model_label(self.config)} + LoRA"}
        kind, _, model = self.name.partition(":")
        return names.get(self.name, f"{kind}:{Path(model).name}" if kind == "vllm" else self.name)

    # --- one case

    def case(self, case: Case, images_dir: str | Path, with_map: bool = False, grid: int = GRID) -> CaseAudit:
        """The answer to one case, with what it rests on.

        Parameters
        ----------
        images_dir : what ``case.image`` is relative to
        with_map : also measure the occlusion map, ``grid`` patches along each side

        Raises
        ------
        DataError
            If the image is missing or broken.
        """
        started = time.perf_counter()
        suite = Suite("case", [case], path(images_dir))  # type: ignore[list-item]  # no verdict is needed to ask
        measured = self.measure(suite, rest=True).iloc[0].to_dict()
        drop = self.map(suite, grid) if with_map else None
        return self.answer(case, measured, suite.keys()[0], time.perf_counter() - started, drop)

    def map(self, suite: Suite, grid: int = GRID) -> np.ndarray | None:
        """Occlusion map of a suite's only case; None for a system that is not loaded here."""
        if self.model is None:
            return None
        from medlib.models import occlusion

        case = suite.scenarios[0]
        return occlusion.occlusion_map(self.model, case, suite.image(case), grid, self.config.eval_batch_size)[0]

    # --- many cases

    def measure(self, suite: Suite, rest: bool = False) -> pd.DataFrame:
        """Ask about every case of a suite; nothing of them is kept, in memory or on disk.

        Parameters
        ----------
        rest : bool
            Also ask without parts of the case.

        Returns
        -------
        DataFrame
            A row for each case: ``p_correct``, whatever else the system told, and ``distances``, ``nearest``,
            ``similarity`` (lists) and ``shows`` of a system that `sees`; with ``rest`` also ``without_image`` and
            so on.
        """
        _ = self.reference  # made outside, where what is seen of training images may be kept
        with self._forgetting():
            return self._measure(suite, rest)

    def _forgetting(self) -> contextlib.AbstractContextManager:
        if self.model is None:
            return contextlib.nullcontext()
        from medlib.models import features

        return features.forgotten(self.model.network)

    def _measure(self, suite: Suite, rest: bool) -> pd.DataFrame:
        table = self._predict(suite)
        gallery = self.reference.gallery
        if self.model is not None and gallery is not None:
            from medlib.systems import novelty

            features = novelty.image_features(self.model, suite)
            nearest, similarity = gallery.nearest(features)
            table = table.assign(
                distances=gallery.distances(features).tolist(),
                nearest=nearest.tolist(),
                similarity=similarity.tolist(),
            )
        if self.model is not None and self.reference.agreement:
            table = table.assign(shows=agreement.shows(self.model, suite))
        if rest:
            without = without_parts(lambda part: self._predict(part)["p_correct"].to_numpy(), suite)
            table = table.assign(**{f"without_{name}": p for name, p in without.items()})
        return table

    def _predict(self, suite: Suite) -> pd.DataFrame:
        answers = self.system.predict(suite)
        if "refused" in answers and len(reasons := answers["refused"].dropna()):
            raise NotRun(reasons.iloc[0])
        return answers if isinstance(answers, pd.DataFrame) else pd.DataFrame({"p_correct": answers})

    def answer(
        self, case: Case, measured: dict[str, Any], key: str, seconds: float = 0.0, drop: np.ndarray | None = None
    ) -> CaseAudit:
        """What was measured of a case, as an answer; ``key`` is the case's of `Suite.keys`."""
        held, told = self.reference, measured.get("p_correct")
        p_correct = 0.5 if told is None or np.isnan(told) else float(told)  # none: no verdict was read
        threshold = held.decision.threshold
        without = {n.removeprefix("without_"): float(p) for n, p in measured.items() if n.startswith("without_")}
        decision, reasons = decide(p_correct, threshold, self._reasons(case, measured), self._doubts(measured))
        nearest = []
        if held.gallery and "nearest" in measured:
            pairs = zip(measured["nearest"], measured["similarity"])
            nearest = [held.gallery.cases[number] | {"similarity": round(alike, 4)} for number, alike in pairs]
        return CaseAudit(
            case=case.model_dump(include=set(Case.model_fields)),
            verdict="CORRECT" if p_correct >= 0.5 else "ERROR",
            p_correct=p_correct,
            probability=float(stats.apply_temperature(p_correct, held.decision.temperature)),
            decision=decision,
            threshold=threshold,
            guarantee=held.decision.guarantee,
            reasons=reasons,
            system=self.label,
            standin=self.standin,
            hashes=self.hashes | {"case": key},
            without=without or None,
            nearest=nearest,
            seconds=seconds,
            drop=drop,
        )

    def _reasons(self, case: Case, measured: dict) -> list[str]:
        reasons = []
        if (self.hosted or "parsed" in measured) and not isinstance(measured.get("parsed"), str):
            reasons.append("no verdict can be read from the answer")
        if self.reference.gallery and "distances" in measured:
            why = reference.unlike(self.reference.gallery, case.modality, measured["distances"])
            reasons += [why] if why else []
        return reasons

    def _doubts(self, measured: dict) -> list[str]:
        """What keeps a case from passing, and speaks for a query where it is one."""
        if not self.reference.agreement or "shows" not in measured:
            return []
        why = self.reference.agreement.reason(measured["shows"])
        return [why] if why else []

    @cached_property
    def standin(self) -> bool:
        """Whether a stand-in answers, which knows no medicine."""
        from medlib.models import loading

        return not self.hosted and loading.is_standin(self.config.model)


def _suites(config: RunConfig) -> dict[str, Suite]:
    from medlib.data import sources

    return sources.prepare(config)
