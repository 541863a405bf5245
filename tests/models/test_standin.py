"""The stages of the stand-in's training run and teach; the whole build takes half an hour."""

import numpy as np
import pytest
import torch

from medlib.config import ModelError
from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import FINDINGS
from medlib.models.standin import medgemma as medgemma_standin
from medlib.models.standin.medgemma import IMAGE_SIZE
from medlib.models.standin.words import WITHOUT_TEST


@pytest.fixture(scope="module")
def pool():
    """Two noisy grey levels in place of drawn images: trivially told apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    level = np.where(labels == 0, 60, 190)[:, None, None, None]
    images = level + rng.integers(-20, 20, (16, IMAGE_SIZE, IMAGE_SIZE, 3))
    return images.astype(np.uint8), labels


def test_stages_lower_their_losses(pool):
    torch.set_num_threads(1)
    images, labels = pool
    processor = medgemma_standin.build_processor(medgemma_standin.corpus())
    model = medgemma_standin.build_model(processor)
    losses = medgemma_standin.warm_up_tower(model, images, labels, steps=6, batch_size=8)
    assert all(np.isfinite(loss) for loss in losses)
    features = medgemma_standin.tower_features(model, images)
    before = model.model.language_model.embed_tokens.weight.clone()
    medgemma_standin.pretrain_decoder(model, processor, features, labels, steps=4, batch_size=4)
    assert not torch.equal(before, model.model.language_model.embed_tokens.weight)


def test_a_stage_stops_at_the_first_loss_that_is_no_number(pool):
    processor = medgemma_standin.build_processor(medgemma_standin.corpus())
    model = medgemma_standin.build_model(processor)
    with pytest.raises(ModelError, match=r"stopped at step \d+: the .* is not a number .* rate of 1e\+38"):
        medgemma_standin.warm_up_tower(model, *pool, steps=6, batch_size=4, lr=1e38)


def test_no_stand_in_is_kept_of_a_training_without_numbers(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(medgemma_standin, "image_pool", lambda *_: pool)
    loss = medgemma_standin.answer_loss
    monkeypatch.setattr(medgemma_standin, "answer_loss", lambda *given: loss(*given) * torch.nan)
    with pytest.raises(ModelError, match=r"step 1: the picture loss is not a number \(nan\)"):
        medgemma_standin.build(tmp_path, tower_steps=1, decoder_steps=2)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["tower.safetensors"]


def test_learning_rate_warms_up_and_decays():
    rates = [medgemma_standin.schedule(step, 1000) for step in range(1000)]
    assert rates[0] < rates[50] < rates[100] and rates[100] > rates[500] > rates[999]
    assert max(rates) <= 1 and min(rates) >= 0


def test_captions_name_the_finding():
    assert len({medgemma_standin.caption(f) for f in FINDINGS}) == len(FINDINGS)


def test_a_stand_in_without_the_test_phrases_meets_none_of_them():
    new = set(grammar.phrases("test")) - set(grammar.phrases("train")) - set(grammar.phrases("val"))
    rng, taught = np.random.default_rng(0), set()
    for finding in WITHOUT_TEST.findings:
        taught |= {" ".join(medgemma_standin.image_sample(rng, finding, WITHOUT_TEST)) for _ in range(40)}
    taught |= {" ".join(medgemma_standin.text_sample(rng, WITHOUT_TEST)) for _ in range(600)}
    assert new and not [phrase for phrase in new if any(phrase in text for text in taught)]
    assert not new & set(medgemma_standin.corpus(WITHOUT_TEST)) and new <= set(medgemma_standin.corpus())
