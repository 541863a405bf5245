"""Augmented training suites: other words of the same split, pairs more often, nothing from elsewhere."""

from collections import Counter

import pytest

from medlib.config import DataError
from medlib.data import augment
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import SPLITS


def words(suite):
    return {s.finding for s in suite.scenarios} | {s.treatment for s in suite.scenarios}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return Suite("train", grammar.generate("train", 48, 0), tmp_path_factory.mktemp("images"))


def test_nothing_asked_nothing_changed(train):
    assert augment.augmented(train) is train


def test_copies_say_the_same_in_other_words(train):
    more = augment.in_other_words(train, 2, seed=3)
    n = len(train)
    assert len(more) == 3 * n and more.scenarios[:n] == train.scenarios
    assert len({s.id for s in more.scenarios}) == 3 * n
    for number in (1, 2):
        copies = more.scenarios[number * n : (number + 1) * n]
        changed = [
            (a.finding != b.finding) + (a.treatment != b.treatment) for a, b in zip(train.scenarios, copies)
        ]
        assert min(changed) >= 1  # an unchanged copy would only weigh the case double
        for before, after in zip(train.scenarios, copies):
            assert (before.image, before.verdict, before.patient) == (after.image, after.verdict, after.patient)
            assert before.factors["care"] == after.factors["care"]
    assert more == augment.in_other_words(train, 2, seed=3)
    assert more.scenarios != augment.in_other_words(train, 2, seed=4).scenarios


def test_pairs_of_copies_are_pairs(train):
    more = augment.augmented(train, paraphrase_copies=1, pair_copies=3)
    sizes = Counter(s.factors["pair"] for s in more.scenarios)
    assert set(sizes.values()) == {2}
    verdicts = Counter((s.factors["pair"], s.verdict) for s in more.scenarios)
    assert set(verdicts.values()) == {1}  # one CORRECT and one ERROR each
    for a, b in zip(more.scenarios[::2], more.scenarios[1::2]):
        if a.factors["pair_kind"] == "image":
            assert (a.finding, a.treatment) == (b.finding, b.treatment) and a.image != b.image


def test_only_pairs_whose_image_decides_are_seen_more_often(train):
    more = augment.oversample_pairs(train, 3)
    count = Counter(s.factors["pair_kind"] for s in train.scenarios)
    seen = Counter(s.factors["pair_kind"] for s in more.scenarios)
    assert seen == {"treatment": count["treatment"], "finding": count["finding"], "image": 3 * count["image"]}
    assert {s.image for s in more.scenarios} == {s.image for s in train.scenarios}  # no image is copied
    assert augment.oversample_pairs(train, 1).scenarios == train.scenarios


def test_no_word_of_validation_or_test_comes_in(train):
    more = augment.augmented(train, paraphrase_copies=4, pair_copies=2)
    assert words(more) > words(train)
    for split in SPLITS[1:]:
        other = Suite(split, grammar.generate(split, 300, 0), train.images_dir)
        assert not words(more) & words(other)
        with pytest.raises(DataError, match=f"{split}.*field.*kept for validation or test"):
            augment.augmented(other, paraphrase_copies=1)
        with pytest.raises(DataError, match="training suite only"):
            augment.augmented(other, pair_copies=2)
