"""The rungs below the model: what a constant answer, a few rules and a bag of words achieve."""

from __future__ import annotations

import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from medlib.evaluation import prediction
from medlib.schema import Scenario

NORMAL_WORDS = ("normal", "clear", "benign", "no ", "unremarkable", "cyst", "without", "bi-rads 1", "bi-rads 2")
INVASIVE_WORDS = ("surg", "resect", "ectomy", "chemo", "radio", "radiation", "biopsy", "antibiotic", "steroid",
                  "antiviral", "craniotomy", "angiography", "dissection", "ceftriaxone", "oxygen", "remdesivir")


def frame(scenarios: list[Scenario], p_correct) -> pd.DataFrame:
    """Predictions table of a system that gives one probability of CORRECT a scenario."""
    return pd.DataFrame([prediction(s, float(p)) for s, p in zip(scenarios, p_correct)])


def constant(scenarios: list[Scenario]) -> pd.DataFrame:
    """Always CORRECT: what an auditor who reads nothing achieves."""
    return frame(scenarios, [1.0] * len(scenarios))


def heuristics(scenarios: list[Scenario]) -> pd.DataFrame:
    """An error is an invasive treatment of a normal finding, or no treatment of an abnormal one."""
    def rule(scenario: Scenario) -> float:
        finding, treatment = scenario.finding.lower(), scenario.treatment.lower()
        normal = any(word in finding for word in NORMAL_WORDS)
        invasive = any(word in treatment for word in INVASIVE_WORDS) and not treatment.startswith(("no ", "reassur"))
        return 0.0 if normal == invasive else 1.0

    return frame(scenarios, [rule(s) for s in scenarios])


def keyword_probe(train: list[Scenario], scenarios: list[Scenario], seed: int = 0) -> pd.DataFrame:
    """TF-IDF and logistic regression on the words, trained on the training split."""
    def words(rows):
        return [f"{s.modality} {s.finding} {s.treatment} {s.patient.complaint}" for s in rows]

    probe = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000, random_state=seed))
    probe.fit(words(train), [s.verdict == "CORRECT" for s in train])
    return frame(scenarios, probe.predict_proba(words(scenarios))[:, 1])
