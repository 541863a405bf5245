"""What 00_quickstart shows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from medlib import stats
from medlib.config import RunConfig
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.models import loading, scoring


def counterfactual_pair(scenarios: list[LabelledCase], kind: str = "image") -> list[LabelledCase]:
    """The two members of the first pair of a kind; one case of each verdict if there is none."""
    members = [s for s in scenarios if s.factors.get("pair_kind") == kind]
    if not members:
        return list({s.verdict: s for s in reversed(scenarios)}.values())
    return [s for s in members if s.factors["pair"] == members[0].factors["pair"]]


def base_answers(config: RunConfig, suite: Suite, scenarios: list[LabelledCase]) -> pd.DataFrame:
    """What the untouched model says to a few scenarios, beside the gold verdict."""
    answered = scoring.ask(loading.load_for(config), replace(suite, scenarios=scenarios))
    frame = stats.predictions_table(scenarios, answered)
    return pd.DataFrame(
        {
            "Scenario": frame["id"],
            "Gold verdict": frame["verdict"],
            "The model's own words": [text.strip() or "(nothing)" for text in frame["generated"]],
            "Verdict read from them": frame["parsed"].fillna("none"),
            "P(CORRECT) by likelihood": frame["p_correct"].round(3),
        }
    )


def answers_sentence(answers: pd.DataFrame) -> str:
    """How many of the free answers are a verdict at all, and how many are the right one."""
    read, gold = answers["Verdict read from them"], answers["Gold verdict"]
    return (
        f"Of {len(answers)} free answers {(read != 'none').sum()} can be read as a verdict and "
        f"{(read == gold).sum()} agree with the gold verdict. So few cases show what an answer "
        "looks like, not how good the model is; `04_evaluate` measures that."
    )
