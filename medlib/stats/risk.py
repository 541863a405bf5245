"""The threshold on the probability of CORRECT, chosen so that few critical errors are missed.

A treatment is called CORRECT where ``p_correct >= threshold``. A higher threshold misses fewer errors and
raises more false alarms (valid treatments called ERROR). The threshold is chosen on calibration cases by
learn then test, through `mapie`: of all thresholds whose rate of missed critical errors is shown to be at
most ``level``, the one with the fewest false alarms. The guarantee is:

    With probability ``confidence`` over the draw of the calibration cases, at most a share ``level`` of the
    critical errors among new cases *of the same kinds, without contradicting notes,* is missed.

It does not cover new kinds of cases, other hospitals, other wording or other images, a single modality or
severity, false alarms or a single case: these are measured, see `measure`. If the same cases also serve to pick
one of several systems, the guarantee must hold for all of them at once: pass their number as ``systems``, and
the error probability is divided among them (Bonferroni).

The test of one threshold is the exact binomial test, so "shown" means: the one-sided Clopper-Pearson limit of
its rate of missed critical errors at ``confidence`` is at most ``level``. The rate can only fall as the
threshold rises, so thresholds are tested from the highest down until one fails (fixed sequence), all at one
level of significance; for the same reason the calibration cases themselves may supply the candidates.

Zero misses on n critical cases show a rate of ``1 - (1 - confidence) ** (1 / n)``, and n cases can show no
lower one. At that level, learn then test *is* the rule "no critical miss at the fewest false alarms"; it is
the default of `choose`.

Tables are those of `medlib.stats.scores`; cases are assumed to be independent. Those of one cell (what is shown
and what is done) are not, so `Choice.level_by_cell` says what the same cases show if a cell counts as one case.

References
----------
A. Angelopoulos, S. Bates, E. Candès, M. Jordan and L. Lei (2021), "Learn then test: calibrating predictive
algorithms to achieve risk control".
A. Angelopoulos, S. Bates, A. Fisch, L. Lei and T. Schuster (2022), "Conformal risk control".
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mapie.risk_control import BinaryClassificationController
from scipy.stats import binom, ks_2samp
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from medlib.stats.calibration import checked_probabilities
from medlib.stats.proportions import proportion
from medlib.stats.scores import score
from medlib.stats.text import TOO_FEW, cells_text, misses_text, percent, rate_text, spread_text, targets_table

EVEN = 0.5
#: Above every probability: every treatment is called an ERROR, so no error is missed and every valid one is
#: a false alarm.
REFUSE_ALL = float(np.nextafter(1, 2))
#: What the last rung of the ladder must reach on the held-out suite.
TARGETS = {"accuracy": 0.95, "critical_misses": 0, "false_alarms": 0.05, "spread": 2.0}


class RiskError(ValueError):
    """No threshold can guarantee the requested level; the message says which level is possible."""


@dataclass(frozen=True)
class Choice:
    """A threshold and its guarantee.

    Attributes
    ----------
    rule : str
        How it was chosen.
    threshold : float
        CORRECT if the probability of CORRECT is at least this; 0 to 1, or `REFUSE_ALL`.
    critical, misses : int
        Critical errors among the calibration cases, and how many of them are called CORRECT.
    false_alarms : dict
        `stats.proportion` of the valid treatments among them that are called ERROR.
    level, confidence : float or None
        The guarantee, see the module; None without one.
    allowed : int or None
        Most misses on calibration that still show the level; it depends only on ``critical``, ``level``,
        ``confidence`` and ``systems``.
    systems : int
        Number of systems for which the guarantee holds at once.
    cells : int or None
        Cells in which the critical errors lie; None if they are not known.
    """

    rule: str
    threshold: float
    critical: int
    misses: int
    false_alarms: dict
    level: float | None = None
    confidence: float | None = None
    allowed: int | None = None
    systems: int = 1
    cells: int | None = None

    @property
    def level_by_cell(self) -> float | None:
        """Share of the cells in which a critical error is missed, at most; None unless none was missed."""
        if self.confidence is None or not self.cells or self.misses:
            return None
        return upper_limit(0, self.cells, _shared(self.confidence, self.systems))

    @property
    def expected(self) -> float | None:
        """Conformal risk control: bound on the mean rate of misses over draws of calibration cases.

        With n critical cases it cannot be below 1 / (n + 1). It holds for one system, picked beforehand.
        """
        return None if self.allowed is None else (self.allowed + 1) / (self.critical + 1)

    @property
    def guarantee(self) -> str:
        """The guarantee in one sentence."""
        if self.level is None:
            return "This threshold comes without a guarantee."
        together = f", for each of {self.systems} systems at once" if self.systems > 1 else ""
        misses = f"{self.allowed} or fewer misses" if self.allowed else "no miss"
        # the bound on the mean holds for one system, not for the one that the same cases have picked
        mean = f"; on average over such draws at most {percent(self.expected, 2)} (conformal risk control)"
        by_cell = ""
        if self.level_by_cell is not None:
            by_cell = (
                f" These cases lie in {self.cells:,} cells of what is shown and what is done: for new kinds of "
                f"cases they show no more than that at most {percent(self.level_by_cell)} of the cells have such "
                "a miss."
            )
        return (
            f"With probability at least {percent(self.confidence, 0)} over the draw of the {self.critical:,} "
            f"critical calibration cases{together}, at most {percent(self.level, 2)} of the critical errors among "
            "new cases of the same kinds, without contradicting notes, are called CORRECT (learn then test, shown "
            f"by {misses} on calibration){mean if self.systems == 1 else ''}.{by_cell}"
        )


def upper_limit(misses: int, n: int, confidence: float) -> float:
    """One-sided Clopper-Pearson limit of a rate; for 0 of n it is ``1 - (1 - confidence) ** (1 / n)``."""
    # the upper end of a two-sided interval at twice the error
    return float(proportion_confint(misses, n, alpha=2 * (1 - confidence), method="beta")[1])


def lowest_level(critical: int, confidence: float, systems: int = 1) -> float:
    """The lowest rate of missed critical errors that this number of critical calibration cases can show."""
    # slightly above the limit of zero misses, or rounding could make its own test fail
    return upper_limit(0, critical, _shared(confidence, systems)) * (1 + 1e-9)


def _shared(confidence: float, systems: int) -> float:
    """Confidence for one system, so that the guarantee holds for all at once (Bonferroni)."""
    return 1 - (1 - confidence) / systems


def choose(
    calibration: pd.DataFrame, level: float | None = None, confidence: float = 0.9, systems: int = 1
) -> Choice:
    """The threshold with the fewest false alarms among those that keep critical misses at a level.

    Parameters
    ----------
    calibration : DataFrame
        Predictions with ``verdict``, ``severity`` and ``p_correct``, on cases that nothing was fitted on.
    level : float, optional
        Share of critical errors that may be missed, 0 to 1; by default the lowest that can be shown, which
        allows no miss on the calibration cases.
    confidence : float
        Probability with which the level holds, see the module.
    systems : int
        Systems among which these cases pick one; the level then holds for all of them at once.

    Returns
    -------
    Choice
        Among thresholds with equally many false alarms the highest, which misses fewest errors.

    Raises
    ------
    RiskError
        Without a critical error or a valid treatment, or if no threshold can be shown to reach the level; the
        message names the lowest level that can be shown.
    """
    p, is_valid = _valid_and_critical(calibration)
    critical = int((~is_valid).sum())
    lowest = lowest_level(critical, confidence, systems)
    if level is not None and level < lowest:
        raise RiskError(
            f"risk_level {level:g} cannot be shown with {critical:,} critical calibration cases: even with none "
            f"missed, the limit at {percent(confidence, 0)} is {lowest:.3g}; raise risk_level to that, lower "
            "risk_confidence, or calibrate on more cases (calibration_pairs)"
        )
    rule = "no critical miss on calibration" if level is None else f"at most {100 * level:.3g}% missed"
    level, alone = lowest if level is None else float(level), _shared(confidence, systems)
    allowed = np.flatnonzero(binom.cdf(np.arange(critical + 1), critical, level) <= 1 - alone).max()
    threshold = _learn_then_test(p, is_valid, level, alone)
    return _choice(
        rule,
        p,
        is_valid,
        threshold,
        level=level,
        confidence=confidence,
        allowed=int(allowed),
        systems=systems,
        cells=_cells(calibration),
    )


def _learn_then_test(p: np.ndarray, is_valid: np.ndarray, level: float, confidence: float) -> float:
    """The choice itself, by mapie, on valid treatments (positive) and critical errors (negative).

    mapie rounds ``n * (misses / n)`` up, so it is sometimes one miss stricter than the exact test.
    """
    controller = BinaryClassificationController(
        lambda probability: np.column_stack([1 - probability, probability]),
        risk="fpr",  # critical errors called CORRECT
        target_level=level,
        confidence_level=confidence,
        best_predict_param_choice="recall",  # valid treatments recognised
        # false alarms change only at the probability of a valid treatment
        list_predict_params=np.append(np.unique(p[is_valid]), REFUSE_ALL),
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All p", module="mapie")  # all p are 0 or 1; any will do
        controller.calibrate(p, is_valid)
    return controller.best_predict_param


def _choice(rule: str, p: np.ndarray, is_valid: np.ndarray, threshold: float, **guarantee) -> Choice:
    alarms = proportion(int((p[is_valid] < threshold).sum()), int(is_valid.sum()))
    misses = int((p[~is_valid] >= threshold).sum())
    return Choice(rule, float(threshold), int((~is_valid).sum()), misses, alarms, **guarantee)


def _cells(frame: pd.DataFrame) -> int | None:
    """Cells of the critical errors; None if the table does not name them."""
    is_critical = (frame["verdict"] == "ERROR") & (frame["severity"] == "critical")
    return int(frame.loc[is_critical, "cell"].nunique()) or None if "cell" in frame else None


def _valid_and_critical(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Probability of CORRECT of valid treatments and critical errors, and which are valid; without the others."""
    absent = [name for name in ("verdict", "severity", "p_correct") if name not in frame]
    if absent:
        raise ValueError(f"predictions: no column {', '.join(map(repr, absent))}")
    counted = (frame["verdict"] == "CORRECT") | (frame["severity"] == "critical")
    is_valid = (frame.loc[counted, "verdict"] == "CORRECT").to_numpy()
    for kind, present in {"critical error": (~is_valid).any(), "valid treatment": is_valid.any()}.items():
        if not present:
            raise RiskError(f"no {kind} among {len(frame):,} cases: more pairs are needed")
    return checked_probabilities(frame.loc[counted, "p_correct"], is_valid)[0], is_valid


def rules(
    calibration: pd.DataFrame, level: float = 0.02, confidence: float = 0.9, systems: int = 1
) -> list[Choice]:
    """The threshold of one half, the one without a critical miss, and the one that guarantees the level.

    The last is left out if the calibration cases are too few for the level; `choose` says why.
    """
    chosen = [
        _choice("one half", *_valid_and_critical(calibration), EVEN),
        choose(calibration, None, confidence, systems),
    ]
    if level >= lowest_level(chosen[1].critical, confidence, systems):
        chosen.append(choose(calibration, level, confidence, systems))
    return chosen


def apply(frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The predictions with ``predicted`` by the threshold; nothing else changes."""
    # in float32 `REFUSE_ALL` would be 1 and pass cases with a probability of 1
    passes = frame["p_correct"].to_numpy(dtype=float) >= threshold
    return frame.assign(predicted=np.where(passes, "CORRECT", "ERROR"))


def measure(frame: pd.DataFrame) -> dict:
    """The figures that a threshold trades against each other.

    Parameters
    ----------
    frame : DataFrame
        Predictions, for example from `apply`.

    Returns
    -------
    dict
        ``critical_misses`` (``count``, ``n``, ``upper``: one-sided 95% Clopper-Pearson limit), ``false_alarms``
        and ``accuracy`` (`stats.proportion`, two-sided 95%), ``accuracy_by_cell`` (None without cells), ``spread``
        (points, over modalities) and ``spread_interval``.
    """
    scores = score(frame)
    valid = frame["verdict"] == "CORRECT"
    alarms = proportion(int((frame.loc[valid, "predicted"] == "ERROR").sum()), int(valid.sum()))
    return {
        "critical_misses": scores["critical_misses"],
        "false_alarms": alarms,
        "accuracy": scores["accuracy"],
        # or 2.0 points would count as 2.0000000000000018
        "spread": round(scores["spread"], 9),
        "spread_interval": scores["spread_interval"],
        "accuracy_by_cell": scores.get("accuracy_by_cell"),
    }


def curve(frame: pd.DataFrame) -> pd.DataFrame:
    """Both error rates at every threshold that makes a difference, highest first.

    Returns
    -------
    DataFrame
        threshold; critical_misses: share of critical errors called CORRECT; false_alarms: share of valid
        treatments called ERROR.
    """
    p, is_valid = _valid_and_critical(frame)
    missed, recognised, thresholds = roc_curve(is_valid, p, drop_intermediate=False)
    thresholds[0] = REFUSE_ALL  # infinite there
    return pd.DataFrame({"threshold": thresholds, "critical_misses": missed, "false_alarms": 1 - recognised})


def same_distribution(calibration: pd.DataFrame, other: pd.DataFrame) -> float:
    """p-value of "critical errors get the same probabilities in both frames" (Kolmogorov-Smirnov, two-sided).

    The guarantee rests on that. A small p speaks against it; a large one does not prove it.
    """
    (p, valid), (q, other_valid) = map(_valid_and_critical, (calibration, other))
    return float(ks_2samp(p[~valid], q[~other_valid]).pvalue)


def targets(frame: pd.DataFrame) -> pd.DataFrame:
    """The four targets of the last rung beside the measured figures, each met or not.

    Parameters
    ----------
    frame : DataFrame
        Predictions on the held-out suite, for example from `apply`.
    """
    figures = measure(frame)
    missed, spread = figures["critical_misses"], figures["spread"]
    accuracy, alarms = figures["accuracy"], figures["false_alarms"]
    by_cell = f"; by cell {cells_text(figures['accuracy_by_cell'])}" if figures["accuracy_by_cell"] else ""
    return targets_table(
        [
            (
                "Accuracy",
                f"≥ {percent(TARGETS['accuracy'], 0)}",
                f"{rate_text(accuracy)}{by_cell}",
                accuracy["value"] >= TARGETS["accuracy"],
            ),
            (
                "Critical errors missed (one-sided 95% limit)",
                "none",
                misses_text(missed, 2),
                missed["n"] > 0 and missed["count"] <= TARGETS["critical_misses"],
            ),
            (
                "False alarms",
                f"< {percent(TARGETS['false_alarms'], 0)}",
                rate_text(alarms),
                alarms["value"] < TARGETS["false_alarms"],
            ),
            (
                "Spread across modalities",
                f"< {TARGETS['spread']:.0f} points",
                f"{spread_text(figures)} points" if spread == spread else TOO_FEW,
                spread < TARGETS["spread"],
            ),
        ]
    )
