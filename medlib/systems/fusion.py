"""Two signals in one verdict: does a dual encoder know something that the adapter does not?"""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from medlib.config import NotRun
from medlib.systems.registry import System, register
from medlib.systems.session import Session

PARTS = ("medgemma-lora", "biomedclip-probe")


@register("medgemma-lora+biomedclip")
def fused(session: Session) -> System:
    """Logistic regression on both log-odds, fitted on the validation suite that neither trained on."""
    val = session.suites["val"]
    if len({s.verdict for s in val.scenarios}) < 2:
        raise NotRun("validation has one verdict only, so the weights of the two cannot be fitted")
    weights = LogisticRegression(random_state=session.config.seed)
    weights.fit(log_odds(session, val), [s.verdict == "CORRECT" for s in val.scenarios])
    made_of = [session.system(part).revision for part in PARTS] + [val.sha256, str(session.config.seed)]

    def predict(suite) -> pd.DataFrame:
        started = time.perf_counter()
        seconds = sum(session.ask(part, suite)["seconds"].to_numpy() for part in PARTS)
        seconds -= (time.perf_counter() - started) / len(suite)  # or the parts would be counted twice
        p_correct = weights.predict_proba(log_odds(session, suite))[:, 1]
        return pd.DataFrame({"p_correct": p_correct, "seconds": seconds})

    return System("medgemma-lora+biomedclip", hashlib.sha256("".join(made_of).encode()).hexdigest(), predict)


def log_odds(session: Session, suite) -> np.ndarray:
    """Log-odds of CORRECT by either part, float array (n, 2), clipped where a part is certain."""
    return of_parts(*(session.ask(part, suite) for part in PARTS))


def of_parts(*answers: pd.DataFrame) -> np.ndarray:
    """Log-odds of CORRECT in tables of predictions on one suite, float array (n, tables)."""
    p = np.stack([frame["p_correct"].to_numpy(float) for frame in answers], axis=1).clip(1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))
