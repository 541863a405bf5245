"""One answer to one case, which says how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from medlib.audit.rationale import certainty, sentences
from medlib.config import ANSWERS, NOT_A_DEVICE, STANDIN_NOTICE

PASS, QUERY, ABSTAIN = "pass", "query", "abstain"
#: Exit status of the command by decision.
EXIT = {PASS: 0, QUERY: 1, ABSTAIN: 3}
MEANING = {
    PASS: "no objection",
    QUERY: "ask the clinician in charge about this treatment",
    ABSTAIN: "do not rely on this answer",
}


def notice(standin: bool) -> str:
    """What every reader of an answer must know; more if a stand-in gave it."""
    return f"{NOT_A_DEVICE} {STANDIN_NOTICE}" if standin else NOT_A_DEVICE


@dataclass(frozen=True)
class CaseAudit:
    """What a run answers to a case.

    Attributes
    ----------
    case : dict
        What was asked, as `medlib.data.cases.Case` has it.
    verdict : str
        CORRECT or ERROR, whichever the model finds more likely.
    p_correct : float
        Its own probability of CORRECT, to which the threshold applies.
    probability : float
        The same, calibrated on the run's validation cases.
    decision : {"pass", "query", "abstain"}
    threshold, guarantee
        From which ``p_correct`` on a case passes, and what that guarantees under which assumption.
    reasons : list of str
        Why to abstain; of a query that note and image disagree, if they do. Empty of a pass.
    without : dict or None
        Probability of CORRECT without image, finding and treatment; None where the model was not asked.
    nearest : list of dict
        The training cases whose images are most alike: those of `Gallery.cases` with ``similarity``.
    system : str
        Who answered, as people should read it.
    standin : bool
        Whether that is a stand-in, which knows no medicine.
    hashes : dict
        SHA-256 of model, adapter, training data and image, as far as there are such.
    seconds : float
    drop : float array (grid, grid) or None
        Occlusion map, see `medlib.models.occlusion.occlusion_map`.
    """

    case: dict
    verdict: str
    p_correct: float
    probability: float
    decision: str
    threshold: float
    guarantee: str
    reasons: list[str]
    system: str
    standin: bool
    hashes: dict[str, str]
    without: dict[str, float] | None = None
    nearest: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    drop: np.ndarray | None = None

    @property
    def risk(self) -> float:
        """Calibrated probability of ERROR."""
        return 1 - self.probability

    @property
    def notice(self) -> str:
        """What every reader of an answer must know."""
        return notice(self.standin)

    def record(self) -> dict:
        """Everything as plain JSON types, the map as a list of rows."""
        record = asdict(self) | {"notice": self.notice}
        return record | {"drop": None if self.drop is None else np.round(self.drop, 4).tolist()}

    def text(self) -> str:
        """The answer for people."""
        sure = certainty(self.verdict, self.probability)
        lines = [
            f"{self.decision.upper()}: {MEANING[self.decision]}",
            *(f"  because {reason}" for reason in self.reasons),
            f"Verdict: {ANSWERS[self.verdict]} (calibrated probability {sure})",
            f"Passes from a probability of CORRECT of {self.threshold:.3g} on; here {self.p_correct:.3g}. "
            f"{self.guarantee}",
        ]
        if self.without:
            lines += [
                "What the verdict rests on:",
                *(f"  {line}" for line in sentences(self.verdict, self.without)),
            ]
        if self.nearest:
            lines += ["Training cases with the most similar images:", *map(_nearest_line, self.nearest)]
        hashes = ", ".join(f"{name} {value[:12]}" for name, value in self.hashes.items())
        lines += [f"Answered by {self.system} in {self.seconds:.2f} s ({hashes})", self.notice]
        return "\n".join(lines)


def _nearest_line(case: dict) -> str:
    return (
        f"  {case['similarity']:.2f}  {case['id']} ({case['modality']}): {case['finding']}; {case['treatment']}; "
        f"{case['verdict']}"
    )


def decide(
    p_correct: float, threshold: float, reasons: list[str], doubts: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Decision and all reasons for it. ``doubts`` hold back a pass; a query stays one and gives them as reasons.

    A case is too close to call where the verdict and the threshold disagree: it is more likely CORRECT than not
    and yet below the threshold, or the other way round. To abstain there lets no further case pass, so that the
    threshold's guarantee holds for those that do.

    >>> decide(0.7, 0.9, [])
    ('abstain', ['the model is unsure: its verdict and the threshold disagree'])
    """
    passes = p_correct >= threshold
    if passes != (p_correct >= 0.5):
        reasons = [*reasons, "the model is unsure: its verdict and the threshold disagree"]
    abstains = bool(reasons) or (passes and bool(doubts))
    return (ABSTAIN if abstains else PASS if passes else QUERY), [*reasons, *doubts]
