"""The rungs that never look: a constant answer, a few rules, and what a bag of words leaks."""

from __future__ import annotations

import hashlib

import numpy as np

from medlib.data.blind import words, words_model
from medlib.data.cases import LabelledCase, scenario_hash
from medlib.systems.registry import System, register
from medlib.systems.session import Session

NORMAL_WORDS = ("normal", "clear", "benign", "no ", "unremarkable", "cyst", "without", "bi-rads 1", "bi-rads 2")
INVASIVE_WORDS = (
    "surg",
    "resect",
    "ectomy",
    "chemo",
    "radio",
    "radiation",
    "biopsy",
    "antibiotic",
    "steroid",
    "antiviral",
    "craniotomy",
    "angiography",
    "dissection",
    "ceftriaxone",
    "oxygen",
    "remdesivir",
)


@register("constant")
def constant(session: Session) -> System:
    """Always CORRECT: what an auditor who reads nothing achieves."""
    return System("constant", "1", lambda suite: np.ones(len(suite)))


@register("heuristics")
def heuristics(session: Session) -> System:
    """An error is an invasive treatment of a normal finding, or no treatment of an abnormal one."""
    words = repr((NORMAL_WORDS, INVASIVE_WORDS)).encode()
    return System(
        "heuristics", hashlib.sha256(words).hexdigest(), lambda suite: np.array([rule(s) for s in suite.scenarios])
    )


def rule(scenario: LabelledCase) -> float:
    """1.0 (CORRECT) if the treatment is invasive exactly where the finding is not normal, else 0.0."""
    finding, treatment = scenario.finding.lower(), scenario.treatment.lower()
    normal = any(word in finding for word in NORMAL_WORDS)
    spared = treatment.startswith(("no ", "reassur"))
    invasive = any(word in treatment for word in INVASIVE_WORDS) and not spared
    return 0.0 if normal == invasive else 1.0


@register("keyword-probe")
def keyword_probe(session: Session) -> System:
    """TF-IDF and logistic regression on the words of the training split: what text alone leaks."""
    train = session.training_scenarios()
    probe = fit_keywords(train, session.config.seed)
    return System(
        "keyword-probe",
        f"{scenario_hash(train)}-{session.config.seed}",
        lambda suite: probe.predict_proba(words(suite.scenarios))[:, 1],
    )


def fit_keywords(train: list[LabelledCase], seed: int = 0):
    """A fitted scikit-learn pipeline over `words`; its class 1 is CORRECT."""
    return words_model(seed).fit(words(train), [s.verdict == "CORRECT" for s in train])
