"""Do note and image disagree? The model itself is asked whether the image shows the finding of the note.

The adapter is off for this question: it was trained to weigh image, note and treatment into one verdict, while the
base still tells what it sees. From which probability on an answer counts is chosen on the run's validation cases,
of which it is known whether their note fits the image. Where none is known to contradict its image, or where the
answers do not tell the two kinds apart, nothing is chosen and no case is ever held back for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from scipy.special import expit, logit

from medlib import stats
from medlib.config import RunConfig
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.models import prompts, scoring
from medlib.models.last_layer import read_at_the_end
from medlib.models.verdict_model import VerdictModel

#: Share of the validation cases whose note fits the image that may be held back at most.
FALSE_ALARMS = 0.05
BATCH = 16
SPELLINGS = (("yes", "Yes"), ("no", "No"))


@dataclass(frozen=True)
class Agreement:
    """Below which probability that the image shows the finding a case is held back, and what that rests on.

    Attributes
    ----------
    limit : float
    false_alarms, fitting : how many validation cases are below it, of those whose note fits the image
    found, contradicting : the same of those whose note contradicts the image
    """

    limit: float
    false_alarms: int
    fitting: int
    found: int
    contradicting: int

    def reason(self, shows: float) -> str | None:
        """Why the case may not pass, with the price of the limit; None where note and image agree."""
        if not shows < self.limit:
            return None
        return (
            f"the note and the image disagree: that the image shows the finding has a probability of {shows:.2g}, "
            f"below {self.limit:.2g} (so have {self.found} of {self.contradicting} validation cases with a "
            f"contradicting note, and {self.false_alarms} of {self.fitting} without)"
        )


# --- asking ---------------------------------------------------------------------------------------


@torch.no_grad()
def shows(model: VerdictModel, suite: Suite, batch_size: int = BATCH) -> np.ndarray:
    """Probability of yes against no that each image shows the finding of its note, float array (n,)."""
    tokenizer = model.processor.tokenizer
    first = [[ids[0] for ids in tokenizer([*words], add_special_tokens=False).input_ids] for words in SPELLINGS]
    answers, order = np.empty(len(suite)), scoring.by_length(suite)
    with _base_of(model) as base, read_at_the_end(base.network, 1):
        for start in range(0, len(suite), batch_size):
            rows = order[start : start + batch_size]
            batch = scoring.batch(base, suite, rows, prompts.shows_messages)
            logits = base.network(**batch, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
            yes, no = (logits[:, ids].logsumexp(-1) for ids in first)
            answers[rows] = (yes - no).sigmoid().cpu().numpy()
    return answers


@contextlib.contextmanager
def _base_of(model: VerdictModel) -> Iterator[VerdictModel]:
    off = model.network.disable_adapter() if isinstance(model.network, PeftModel) else contextlib.nullcontext()
    with off:
        yield model


# --- choosing -------------------------------------------------------------------------------------


def of_run(config: RunConfig, model: VerdictModel) -> Agreement | None:
    """The limit of a run, chosen on its validation cases and those with contradicting notes."""
    suites = [sources.suite(config, "val"), sources.contradiction(config, "val")]
    known = [_one_per_note(suite) for suite in suites]
    answers = [shows(model, suite) for suite in known]
    fits = [s.factors["image_finding"] == s.factors["note_finding"] for suite in known for s in suite.scenarios]
    return choose(np.concatenate(answers), np.array(fits, dtype=bool))


def _one_per_note(suite: Suite) -> Suite:
    """The cases of which it is known whether note and image agree, each note beside an image once."""
    names = {"image_finding", "note_finding"}
    rows = {(s.image, s.finding): row for row, s in enumerate(suite.scenarios) if names <= s.factors.keys()}
    return suite.rows(rows.values())


def choose(answers: np.ndarray, fits: np.ndarray) -> Agreement | None:
    """The limit that tells fitting from contradicting notes best at no more than `FALSE_ALARMS`.

    It lies halfway (in log-odds) to the next answer above. None unless the share found is above the share of
    false alarms beyond chance (95% intervals apart).

    Parameters
    ----------
    answers : float array (n,), of `shows`
    fits : bool array (n,), whether the note fits the image
    """
    if fits.all() or not fits.any():
        return None
    levels = np.unique(answers)
    below = [np.searchsorted(np.sort(answers[kind]), levels, side="right") for kind in (fits, ~fits)]
    alarms, found = (counts / kind.sum() for counts, kind in zip(below, (fits, ~fits)))
    best = int(np.argmax(np.where(alarms <= FALSE_ALARMS, found - alarms, -1)))
    above = levels[best + 1] if best + 1 < len(levels) else 1.0
    limit = float(expit(logit(np.clip([levels[best], above], 1e-9, 1 - 1e-9)).mean()))
    counts = int(below[0][best]), int(fits.sum()), int(below[1][best]), int((~fits).sum())
    made = Agreement(limit, *counts)
    worth = stats.proportion(made.found, made.contradicting)["low"]
    return made if worth > stats.proportion(made.false_alarms, made.fitting)["high"] else None
