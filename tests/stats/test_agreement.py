"""Kappa and alpha against worked examples, with gaps and with more than two raters."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from medlib.stats import agreement

NAN = float("nan")


def ratings(**said):
    """Verdicts by rater, one letter a case: C, E or - for none."""
    words = {"C": "CORRECT", "E": "ERROR"}
    rows = [
        {
            "rater": rater,
            "key": f"case {i}",
            "verdict": words[letter],
            "severity": "none" if letter == "C" else "high",
        }
        for rater, letters in said.items()
        for i, letter in enumerate(letters)
        if letter != "-"
    ]
    return pd.DataFrame(rows)


def test_cohens_kappa_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    first = rng.integers(3, size=80)
    second = np.where(rng.random(80) < 0.3, rng.integers(3, size=80), first)
    plain, ordered = agreement.cohen(first, second, 3), agreement.cohen(first, second, 3, ordered=True)
    assert plain["value"] == pytest.approx(cohen_kappa_score(first, second))
    assert ordered["value"] == pytest.approx(cohen_kappa_score(first, second, weights="linear"))
    assert plain["low"] < plain["value"] < plain["high"] <= 1 and plain["n"] == 80


def test_cohens_kappa_leaves_out_what_one_rater_has_not_rated():
    gaps = agreement.cohen([0, 1, NAN, 1, 0], [0, 1, 1, 0, NAN], 2)
    assert gaps["n"] == 3 and gaps["value"] == pytest.approx(agreement.cohen([0, 1, 1], [0, 1, 0], 2)["value"])


def test_alpha_of_krippendorffs_example():
    """Four observers, twelve units, gaps: K. Krippendorff (2011), "Computing Krippendorff's alpha"."""
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
    wide = pd.DataFrame(np.array(data).T - 1)
    nominal, ordinal = agreement.alpha(wide, 5), agreement.alpha(wide, 5, "ordinal")
    assert nominal["value"] == pytest.approx(0.743, abs=5e-4)
    assert ordinal["value"] == pytest.approx(0.815, abs=5e-4)
    assert nominal["n"] == 11  # the twelfth unit has one rating
    assert nominal["low"] < nominal["value"] < nominal["high"] <= 1


def test_alpha_of_two_observers_without_gaps():
    """Sections A and B of the same article: binary data give 0.095, five categories 0.692."""
    binary = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    letters = [list("aabbdcccedda"), list("babbbccceddd")]
    nominal = [["abcde".index(letter) for letter in observer] for observer in letters]
    assert agreement.alpha(pd.DataFrame(binary, dtype=float).T, 2)["value"] == pytest.approx(0.095, abs=5e-4)
    assert agreement.alpha(pd.DataFrame(nominal, dtype=float).T, 5)["value"] == pytest.approx(0.692, abs=5e-4)


def test_fleiss_kappa_of_his_example():
    """Fourteen raters, ten subjects, five categories: the table in Fleiss' article gives 0.210."""
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    wide = pd.DataFrame([np.repeat(range(5), row) for row in counts], dtype=float)
    found = agreement.fleiss(wide, 5)
    assert found["value"] == pytest.approx(0.210, abs=5e-4) and found["n"] == 10
    wide.iloc[0, 0] = NAN
    assert agreement.fleiss(wide, 5)["n"] == 9


def test_the_interval_of_alpha_covers_the_truth_as_often_as_it_says(monkeypatch):
    """Two raters who err in 10% of the cases: alpha is 0.64 in the long run."""
    monkeypatch.setattr(agreement, "RESAMPLES", 200)
    rng, hits = np.random.default_rng(1), 0
    for seed in range(40):
        gold = rng.integers(2, size=150)
        wide = pd.DataFrame([np.abs(gold - (rng.random(150) < 0.1)) for _ in range(2)], dtype=float).T
        found = agreement.alpha(wide, 2, seed=seed)
        hits += found["low"] <= 0.64 <= found["high"]
    assert hits >= 33


def test_no_disagreement_and_one_answer_only_are_told_apart():
    same = agreement.summary(ratings(a="CCEE", b="CCEE")).query("what == 'verdict'").set_index("measure")
    assert (same["value"] == 1).all()
    assert same.loc[same.index.str.contains("kappa|alpha"), ["low", "high"]].isna().all(axis=None)
    one = agreement.summary(ratings(a="CCC", b="CCC")).query("what == 'verdict'").set_index("measure")
    assert np.isnan(one.loc["Cohen's kappa", "value"]) and one.loc["same answer by all", "value"] == 1


def test_three_raters_with_gaps():
    table = agreement.summary(ratings(a="CCEE-", b="CCEC-", c="C-EEE"))
    verdicts = table[table["what"] == "verdict"].set_index(["measure", "raters"])["n"]
    assert verdicts["Cohen's kappa", "a, b"] == 4 and verdicts["Cohen's kappa", "a, c"] == 3
    assert verdicts["Fleiss' kappa", "a, b, c"] == 3
    assert verdicts["Krippendorff's alpha, nominal", "a, b, c"] == 4
    severities = table[table["what"] == "severity"].set_index(["measure", "raters"])["n"]
    assert severities["same answer by all", "a, b, c"] == 2  # where two call it an error


def test_one_rater_agrees_with_nobody():
    assert agreement.summary(ratings(a="CCEE")).empty
    assert agreement.summary(ratings(a="C").iloc[:0]).empty


def test_an_unknown_level_is_refused():
    strange = ratings(a="CE", b="CE").replace("CORRECT", "MAYBE")
    with pytest.raises(ValueError, match="MAYBE"):
        agreement.by_case(strange)
