"""The auditor that sees grey levels only: as good as the words where they decide, and no better than the look."""

import numpy as np
import pytest
from PIL import Image

from medlib.config import NotRun
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.systems import Session, image_statistics


def suite(folder, split, grey, seed=0):
    """96 generated cases whose images are of one grey, given by ``grey(finding, rng)``."""
    scenarios, rng = grammar.generate(split, 48, seed), np.random.default_rng(seed)
    folder.mkdir()
    for s in {s.image: s for s in scenarios}.values():
        pixels = np.full((32, 32), grey(str(s.factors["image_finding"]), rng), np.uint8)
        Image.fromarray(pixels).save(folder / s.image)
    return Suite(split, scenarios, folder)


def share_right(config, tmp_path, grey):
    train, test = (suite(tmp_path / name, name, grey) for name in ("train", "test"))
    p_correct = Session(config, {"train": train, "core_train": train.rows([])}).ask("image-statistics", test)
    right = (p_correct["predicted"] == p_correct["verdict"]).to_numpy()
    by_image = np.array([s.factors["pair_kind"] == "image" for s in test.scenarios])
    return right[by_image].mean(), right[~by_image].mean()


def test_what_the_grey_gives_away_is_found(small_config, tmp_path):
    greys = {name: 10 * place for place, name in enumerate(sorted(_findings()))}
    image, words = share_right(small_config, tmp_path, lambda finding, rng: greys[finding])
    assert image > 0.9 and words > 0.9


def test_where_the_grey_tells_nothing_only_the_words_are_left(small_config, tmp_path):
    image, words = share_right(small_config, tmp_path, lambda finding, rng: rng.integers(256))
    assert 0.25 < image < 0.75 and words > 0.9


def test_images_without_labels_are_not_answered(small_config):
    suites = sources.prepare(small_config)
    assert not image_statistics.has_labels(suites["core_val"]) and image_statistics.has_labels(suites["test"])
    with pytest.raises(NotRun, match="what the training images show"):
        Session(small_config, {**suites, "train": suites["core_train"]}).system("image-statistics")


def _findings():
    return {str(s.factors["image_finding"]) for s in grammar.generate("train", 48, 0)}
