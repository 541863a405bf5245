"""The blind auditors find what was planted, and nothing in noise."""

import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from medlib.data import blind
from medlib.data.cases import Case


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(blind, "TREES", 30)


def table(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.random((n, len(blind.STATISTICS))), columns=list(blind.STATISTICS))


def cases(texts) -> list[Case]:
    return [Case(id=str(i), image="a.png", finding=text, treatment="rest") for i, text in enumerate(texts)]


def test_statistics_of_a_known_image():
    grey = np.zeros((40, 60), np.uint8)
    grey[:, 30:] = 255
    found = blind.image_statistics(Image.fromarray(grey))
    assert (found["width"], found["height"]) == (60, 40)
    assert found["mean"] == found["spread"] == 127.5 and found["black"] == found["white"] == 0.5
    assert (found["p5"], found["p95"]) == (0, 255) and found["border"] == 127.5
    assert found["gradient"] == pytest.approx(255 / 59)
    assert blind.image_statistics(Image.fromarray(grey[:1, :1]), (7, 8))["width"] == 7


def test_a_file_keeps_its_own_size(tmp_path):
    Image.new("L", (700, 20), 9).save(tmp_path / "a.png")
    found = blind.statistics_of_file(tmp_path / "a.png")
    assert (found["width"], found["height"]) == (700, 20) and found["mean"] == 9


def test_image_statistics_that_give_the_verdict_away_are_found():
    labels = np.array(["ERROR", "CORRECT"] * 60)
    statistics = table(120).assign(width=np.where(labels == "ERROR", 300, 200))
    score = blind.blind_image_accuracy(labels, statistics, np.arange(120) // 2)
    assert score.value == 1 and score.low > 0.9 and score.chance == 0.5 and (score.n, score.groups) == (120, 60)
    noise = blind.blind_image_accuracy(labels, table(120), np.arange(120))
    assert noise.low < 0.5  # below chance is what stratified folds make of noise
    assert "passed to 100% [" in blind.sentence([noise, score]) and "commoner verdict alone 50%" in blind.sentence(
        [score]
    )


def test_a_group_is_never_remembered():
    """Statistics that name the group give its label only to a model that has seen the group."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 5)
    labels = np.where(rng.permutation(40) < 20, "a", "b")[group]
    statistics = (0 * table(200)).assign(mean=rng.random(40)[group])
    by_group = blind.blind_image_accuracy(labels, statistics, group)
    by_row = blind.blind_image_accuracy(labels, statistics, np.arange(200))
    assert by_row.value > 0.85 and by_group.value < 0.7


def test_findings_are_told_apart_within_a_modality():
    rng = np.random.default_rng(0)
    within = np.repeat(["ct", "mri"], 100)
    labels = np.where(rng.random(200) < 0.3, "mass", "normal")
    statistics = table(200).assign(mean=np.where((within == "ct") & (labels == "mass"), 1.0, 0.0))
    score = blind.blind_image_accuracy(labels, statistics, np.arange(200), within)
    assert score.measure == "balanced accuracy within modality" and score.chance == 0.5
    # all right in ct, chance in mri
    assert 0.65 < score.value < 0.85 and score.low <= score.value <= score.high
    # a modality alone tells nothing here
    other = blind.blind_image_accuracy(within, table(200), np.arange(200), within)
    assert math.isnan(other.value) and other.note.startswith("not measured")


def test_the_mean_recall_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    value, low, high = blind._mean_recall(predicted == labels, labels, np.arange(90), 0)
    assert value == pytest.approx(balanced_accuracy_score(labels, predicted)) and low < value < high


def test_a_finding_of_one_group_is_left_out_and_named():
    labels = ["a", "b"] * 10 + ["rare"] * 3
    groups = [*range(20), 99, 99, 99]
    score = blind.blind_image_accuracy(labels, table(23), groups, ["ct"] * 23)
    assert score.n == 20 and "ct rare" in score.note


def test_words_that_give_the_verdict_away_are_found():
    texts = ["normal lung", "large mass"] * 30
    score = blind.blind_words_accuracy(cases(texts), ["ERROR", "CORRECT"] * 30, range(60))
    assert score.value == 1 and score.auditor == "words only"


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [(["a"] * 4, range(4), "one label only"), (["a", "a", "b", "b"], [0, 1, 2, 2], "b is in one group only")],
)
def test_what_cannot_be_measured_is_said(labels, groups, said):
    score = blind.blind_words_accuracy(cases("abcd"), labels, groups)
    assert math.isnan(score.value) and said in score.note
    assert "could not be measured: words only" in blind.sentence([score])
