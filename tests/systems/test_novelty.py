"""Foreign images are farther from the training images than images of the same kind."""

import numpy as np

from medlib.data import sources
from medlib.systems import Session, novelty


def test_distance_is_that_of_the_claimed_modality():
    rng = np.random.default_rng(0)
    near, far = rng.normal(0, 1, (200, 3)), rng.normal(8, 1, (200, 3))
    gaussians = novelty.fit(np.concatenate([near, far]), ["mri"] * 200 + ["xray"] * 200)
    here = np.zeros((2, 3))
    as_mri, as_xray = novelty.distances(gaussians, here, ["mri", "xray"])
    assert as_mri < 5 < 100 < as_xray
    limit = novelty.threshold(novelty.distances(gaussians, near, ["mri"] * 200))
    assert (novelty.distances(gaussians, rng.normal(0, 1, (500, 3)), ["mri"] * 500) <= limit).mean() > 0.9


def test_distances_are_kept_and_follow_the_images(small_config, monkeypatch):
    suites = sources.prepare(small_config)
    session = Session(small_config, suites)
    own = novelty.ask(session, suites["val"])
    assert own.shape == (24,) and np.isfinite(own).all()
    monkeypatch.setattr(novelty, "image_features", None)  # nothing is computed twice
    assert np.array_equal(novelty.ask(Session(small_config, suites), suites["val"]), own)
