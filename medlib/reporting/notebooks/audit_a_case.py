"""Cases, table and sentences of 11_audit_a_case."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.audit.answer import ABSTAIN, PASS, QUERY, CaseAudit
from medlib.audit.auditor import Auditor
from medlib.config import RunConfig
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.reporting import maps
from medlib.stats.text import rate_text

CASES = 48  # of each kind in `kinds_table`


def pair(config: RunConfig) -> Suite:
    """Two held-out cases of one image whose treatments differ, or the first two cases there are."""
    suite = sources.suite(config, "test")
    rows: dict[tuple[str, str], list[int]] = {}
    for row, s in enumerate(suite.scenarios):
        same = rows.setdefault((s.image, s.finding), [])
        same.append(row)
        if len(same) == 2:
            return suite.rows(same)
    return suite.rows(range(2))


def figure(answers: list[CaseAudit], suite: Suite, title: str) -> Figure:
    """Answers to the first cases of a suite, with image and map."""
    return maps.answered(answers, [suite.image(case) for case, _ in zip(suite.scenarios, answers)], title)


def answer_text(answer: CaseAudit) -> str:
    """An answer's words as Markdown, line by line."""
    return "```\n" + answer.text() + "\n```"


def what_if_sentence(first: CaseAudit, other: CaseAudit) -> str:
    """What another treatment changes."""
    changes = "changes" if first.verdict != other.verdict else "stays"
    return (
        f"With the treatment “{other.case['treatment']}” in place of “{first.case['treatment']}” the verdict "
        f"**{changes}** ({first.verdict}, then {other.verdict}), and the decision is **{other.decision}** after "
        f"{first.decision}."
    )


# --- when it abstains -----------------------------------------------------------------------------


def kinds(config: RunConfig, count: int = CASES) -> dict[str, Suite]:
    """Held-out cases as they are, and four kinds that an auditor should not answer, by name."""
    suite = sources.suite(config, "test")
    suite = suite.rows(range(min(count, len(suite))))
    shown = {
        "held-out cases": suite,
        "the same, heavy noise": replace(suite, view="noise-5"),
        "the same, a plain grey image": replace(suite, view="grey"),
    }
    notes = sources.contradiction(config, "test")
    if len(notes):
        shown["notes that contradict the image"] = notes.rows(range(min(count, len(notes))))
    names = list(dict.fromkeys(s.modality for s in sources.suite(config, "train").scenarios))
    if len(names) < 2:
        return shown
    other = dict(zip(names, [*names[1:], names[0]]))
    claimed = [s.model_copy(update={"modality": other.get(s.modality, names[0])}) for s in suite.scenarios]
    return shown | {"the same under another modality's name": replace(suite, scenarios=claimed)}


def kinds_table(auditor: Auditor) -> pd.DataFrame:
    """Decisions on each of `kinds`, and how often those that pass or are queried are right."""
    rows = []
    for name, suite in kinds(auditor.config).items():
        answers = all_answers(auditor, suite)
        counts = Counter(answer.decision for answer in answers)
        row = {
            decision: rate_text(stats.proportion(counts[decision], len(answers)))
            for decision in (PASS, QUERY, ABSTAIN)
        }
        rows.append({"Cases": name, "n": len(answers), **row})
    return pd.DataFrame(rows)


def all_answers(auditor: Auditor, suite: Suite) -> list[CaseAudit]:
    """Answers to every case of a suite, asked together, without what they rest on."""
    measured = auditor.measure(suite).to_dict(orient="records")
    return [auditor.answer(*parts) for parts in zip(suite.scenarios, measured, suite.keys())]


def answered_sentence(auditor: Auditor) -> str:
    """How often the verdict is right where the auditor does not abstain, on the held-out cases shown."""
    suite = kinds(auditor.config)["held-out cases"]
    answers = all_answers(auditor, suite)
    given = [(a.verdict == s.verdict) for a, s in zip(answers, suite.scenarios) if a.decision != ABSTAIN]
    if not given:
        return "It abstained on every held-out case shown."
    right = rate_text(stats.proportion(sum(given), len(given)), n=True)
    return f"Where it did not abstain on held-out cases, its verdict was right in {right}."
