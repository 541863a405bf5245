"""Decisions and the words of an answer."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlib.audit import answer, rationale
from medlib.audit.answer import CaseAudit, decide


@pytest.mark.parametrize(
    ("p", "threshold", "decision"),
    [
        (0.95, 0.9, "pass"),
        (0.9, 0.9, "pass"),
        (0.7, 0.9, "abstain"),  # CORRECT, but below the threshold
        (0.3, 0.9, "query"),
        (0.3, 0.2, "abstain"),  # ERROR, but above the threshold
        (0.1, 0.2, "query"),
        (1.0, float(np.nextafter(1, 2)), "abstain"),  # a threshold that refuses all
    ],
)
def test_decisions(p, threshold, decision):
    made, reasons = decide(p, threshold, [])
    assert made == decision and bool(reasons) == (decision == "abstain")


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.sampled_from(["unlike", "unread"])))
def test_nothing_passes_that_the_threshold_would_not_pass(p, threshold, reasons):
    decision, all_reasons = decide(p, threshold, reasons)
    assert decision != "pass" or (p >= threshold and not reasons)
    assert (decision == "abstain") == bool(all_reasons) and all_reasons[: len(reasons)] == reasons


def made(**changed) -> CaseAudit:
    known = {
        "case": {"id": "c", "finding": "a mass", "treatment": "none"},
        "verdict": "ERROR",
        "p_correct": 0.01,
        "probability": 0.004,
        "decision": "query",
        "threshold": 0.4,
        "guarantee": "With probability 90%.",
        "reasons": [],
        "system": "nano (stand-in)",
        "standin": True,
        "hashes": {"model": "ab" * 32},
        "without": {"image": 0.9, "finding": 0.004, "treatment": 0.3},
    }
    return CaseAudit(**known | changed)


def test_the_text_says_decision_verdict_guarantee_and_what_it_is_not():
    text = made().text()
    assert text.startswith("QUERY: ask the clinician")
    assert "ERROR - Treatment does not match imaging (calibrated probability more than 99%)" in text
    assert "With probability 90%." in text and "abab" in text
    assert (
        "Without the image the verdict changes." in text
        and "Without the treatment the verdict stays, at 70%." in text
    )
    assert "not a medical device" in text and "knows no medicine" in text
    assert "knows no medicine" not in made(standin=False).text()


def test_a_record_is_plain_json():
    record = json.loads(json.dumps(made(drop=np.array([[0.12345, -1]])).record()))
    assert (
        record["drop"] == [[0.1234, -1.0]]
        and record["decision"] == "query"
        and "medical device" in record["notice"]
    )


def test_every_decision_has_its_own_exit_status():
    assert answer.EXIT == {"pass": 0, "query": 1, "abstain": 3}


def test_certainty_is_never_certain():
    assert rationale.certainty("CORRECT", 1.0) == "more than 99%" and rationale.certainty("ERROR", 0.4) == "60%"
