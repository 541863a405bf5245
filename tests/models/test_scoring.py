"""Scoring: equal to the plain way, blind to batching, and ablations that hide what they say."""

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model

from medlib import stats
from medlib.config import ANSWERS, RunConfig
from medlib.data.images import load_image
from medlib.data.suite import Suite
from medlib.data.variants import ablate
from medlib.evaluation.results import Results
from medlib.models import features, loading, prompts, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.training import lora


@pytest.fixture(scope="module")
def predictions(nano, suite):
    """Of the random model, with free answers; one batch."""
    processor, model, _ = nano
    asked = Suite("small", *suite)
    answered = scoring.free_answers(VerdictModel(processor, model), asked, batch_size=24)
    answered["p_correct"] = scoring.p_correct(VerdictModel(processor, model), asked, batch_size=24)
    return stats.predictions_table(suite[0], answered)


def plain_scores(model, processor, scenario, image):
    """Log-likelihood of both answers from whole sequences, one at a time, without any cache."""
    scores = []
    for answer in ANSWERS.values():
        inputs = processor.apply_chat_template(
            prompts.messages(scenario, image),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        start = inputs["input_ids"].shape[1]
        ids = processor.tokenizer(
            answer + "<end_of_turn>", add_special_tokens=False, return_tensors="pt"
        ).input_ids
        whole = {
            "input_ids": torch.cat([inputs["input_ids"], ids], dim=1),
            "token_type_ids": torch.cat([inputs["token_type_ids"], torch.zeros_like(ids)], dim=1),
            "pixel_values": inputs["pixel_values"],
        }
        whole = {name: tensor.to(model.device) for name, tensor in whole.items()}
        with torch.no_grad():
            logp = model(**whole).logits[0].float().log_softmax(-1).cpu()
        scores.append(sum(float(logp[start + i - 1, token]) for i, token in enumerate(ids[0])))
    return scores


def test_shared_prefix_scores_are_those_of_whole_sequences(nano, suite):
    processor, model, _ = nano
    scenarios, images_dir = suite[0][:6], suite[1]
    images = [load_image(images_dir / s.image) for s in scenarios]
    batch = scoring.prompt_batch(VerdictModel(processor, model), scenarios, images)
    assert (batch["attention_mask"] == 0).any()  # some rows are padded
    plain = [plain_scores(model, processor, s, p) for s, p in zip(scenarios, images)]
    assert np.allclose(scoring.score_answers(VerdictModel(processor, model), batch), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("turns", [prompts.messages, prompts.shows_messages])
def test_a_batch_is_that_of_the_processor_and_a_known_image_is_not_loaded(nano, suite, monkeypatch, turns):
    model, asked, rows = VerdictModel(*nano[:2]), Suite("small", *suite), [0, 5, 3]
    some = [asked.scenarios[row] for row in rows]
    whole = scoring.prompt_batch(model, some, [asked.image(s) for s in some], turns)
    scoring.image_features(model, asked, some)
    monkeypatch.setattr(Suite, "image", None)
    batch = scoring.batch(model, asked, rows, turns)
    assert batch.keys() ^ whole.keys() == {"pixel_values", "mm_encoder_outputs"}
    assert all(torch.equal(batch[name], whole[name]) for name in batch.keys() & whole.keys())
    with torch.no_grad():
        from_pixels, known = (model.network(**inputs, logits_to_keep=1).logits for inputs in (whole, batch))
    assert torch.allclose(known, from_pixels, rtol=0, atol=1e-4)


def test_batch_size_and_padding_do_not_matter(nano, suite, predictions):
    processor, model, _ = nano
    for batch_size in (1, 5):
        other = scoring.p_correct(VerdictModel(processor, model), Suite("small", *suite), batch_size=batch_size)
        assert np.allclose(other, predictions.p_correct, rtol=0, atol=1e-5)


def test_rows_in_order_with_the_facts_of_their_scenario(predictions, suite):
    scenarios = suite[0]
    assert list(predictions.id) == [s.id for s in scenarios]
    for name in ("modality", "verdict", "error_type", "severity", "cost_impact"):
        assert list(predictions[name]) == [getattr(s, name) for s in scenarios]
    for name in ("source", "pair", "pair_kind"):
        assert list(predictions[name]) == [s.factors[name] for s in scenarios]


def test_probability_and_verdict_agree(predictions):
    assert predictions.p_correct.between(0, 1).all() and predictions.p_correct.nunique() > 12
    assert ((predictions.p_correct >= 0.5) == (predictions.predicted == "CORRECT")).all()
    assert [prompts.parse_verdict(text) for text in predictions.generated] == predictions.parsed.tolist()


@pytest.mark.parametrize(
    "logp, p", [([0.0, 0.0], 0.5), ([-1e4, 0.0], 0.0), ([0.0, -1e4], 1.0), ([np.log(3.0), 0.0], 0.75)]
)
def test_probability_of_two_likelihoods(logp, p, nano, suite, monkeypatch):
    monkeypatch.setattr(scoring, "_logits_once", lambda *_: None)
    monkeypatch.setattr(scoring, "score_answers", lambda *_: np.array([logp]))
    [answer] = scoring.p_correct(VerdictModel(*nano[:2]), Suite("one", suite[0][:1], suite[1]))
    assert answer == pytest.approx(p, abs=1e-12)


def test_words_alone_cannot_tell_an_image_pair_apart(nano, suite):
    processor, model, _ = nano
    pairs = Suite("pairs", [s for s in suite[0] if s.factors["pair_kind"] == "image"], suite[1])
    p = scoring.p_correct(VerdictModel(processor, model), ablate(pairs, "text_only"), batch_size=3)
    blind = stats.predictions_table(pairs.scenarios, pd.DataFrame({"p_correct": p}))
    assert np.allclose(p[::2], p[1::2], rtol=0, atol=1e-5)
    assert (blind.predicted == blind.verdict).mean() == 0.5
    assert stats.pair_accuracy(blind) == (0, 4)


# --- answers and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, verdict",
    [
        (ANSWERS["CORRECT"], "CORRECT"),
        (ANSWERS["ERROR"], "ERROR"),
        (' "ERROR - no"', "ERROR"),
        ("**CORRECT**", "CORRECT"),
        ("\nERROR", "ERROR"),
        ("", None),
        ("CORRECTED", None),
        ("It is CORRECT", None),
        ("INCORRECT", None),
    ],
)
def test_parse_verdict(text, verdict):
    assert prompts.parse_verdict(text) == verdict


def test_predictions_file_gives_back_what_was_written(predictions, tmp_path):
    strange = predictions.assign(
        generated=["", "12", "1e5", "true", "naïve \u2028 line\nbreak", "NaN"] * 4, parsed=[None, "ERROR"] * 12
    )
    core = strange.head(4).assign(pair=None, pair_kind=None).drop(columns=["generated", "parsed"])
    parts = {("lora", "heldout", "text_only"): strange, ("base", "core", ""): core}
    stats.write_predictions(tmp_path / "p.jsonl", Results.join(parts).table)
    back = Results.read(tmp_path / "p.jsonl").parts
    assert list(back) == sorted(parts)
    base, lora = back.values()
    for name in ("id", "p_correct", "predicted", "generated", "cost_impact", "pair"):
        assert lora[name].tolist() == strange[name].tolist(), name  # to the last bit
    assert lora.parsed.isna().tolist() == [True, False] * 12
    assert base[["generated", "parsed", "pair"]].isna().all(axis=None)
    assert base.id.tolist() == core.id.tolist()


def test_a_pair_counts_as_a_whole():
    frame = pd.DataFrame(
        {
            "pair": ["a", "a", "b", "b", "c", "c"],
            "verdict": ["CORRECT", "ERROR"] * 3,
            "predicted": ["CORRECT", "ERROR", "CORRECT", "CORRECT", "ERROR", "CORRECT"],
        }
    )
    assert stats.pair_accuracy(frame) == (1, 3)


def test_a_image_goes_through_the_tower_once_whatever_the_words(nano_folder, suite, monkeypatch):
    processor, model = loading.load(str(nano_folder))
    asked, shown = Suite("small", *suite), []
    plain = [
        scoring.score_answers(
            VerdictModel(processor, model),
            scoring.prompt_batch(VerdictModel(processor, model), [s], [asked.image(s)]),
        )[0]
        for s in asked.scenarios
    ]
    expected = 1 / (1 + np.exp(np.array(plain) @ [-1, 1]))
    tower = model.get_image_features
    monkeypatch.setattr(model, "get_image_features", lambda p: shown.append(len(p)) or tower(p))
    for _ in range(2):
        assert np.allclose(
            scoring.p_correct(VerdictModel(processor, model), asked, 5), expected, rtol=0, atol=1e-5
        )
    texts = scoring.free_answers(VerdictModel(processor, model), asked, 7)["generated"]
    images = len({s.image for s in asked.scenarios})
    assert sum(shown) == images < len(asked)
    grey = scoring.p_correct(
        VerdictModel(processor, model), ablate(asked, "text_only"), 24
    )  # another view, others
    assert sum(shown) == 2 * images and not np.allclose(grey, expected, atol=1e-4)
    monkeypatch.setattr(features, "of_images", lambda *_: None)  # from pixels, every prompt whole
    assert list(texts) == list(scoring.free_answers(VerdictModel(processor, model), asked, 7)["generated"])


def test_pixels_stay_where_the_adapter_changes_the_tower(nano_folder, suite):
    processor, base = loading.load(str(nano_folder))
    asked = Suite("small", *suite)
    before = scoring.p_correct(VerdictModel(processor, base), asked)
    config = lora.lora_config(RunConfig(lora_targets="vision", lora_rank=4))
    config.init_lora_weights = False  # an adapter that changes something
    model = get_peft_model(base, config).eval()
    assert not np.allclose(scoring.p_correct(VerdictModel(processor, model), asked), before, atol=1e-4)
    with model.disable_adapter():
        assert np.allclose(scoring.p_correct(VerdictModel(processor, model), asked), before, rtol=0, atol=1e-5)


def test_answers_of_unequal_length_share_a_pass(nano, suite, monkeypatch):
    processor, model, _ = nano
    scenarios, images_dir = suite[0][:3], suite[1]
    batch = scoring.prompt_batch(
        VerdictModel(processor, model), scenarios, [load_image(images_dir / s.image) for s in scenarios]
    )
    together = {}
    for texts in (("CORRECT", "ERROR - Treatment"), ("CORRECT", "CORRECT"), ("ERROR - Treatment",) * 2):
        monkeypatch.setattr(prompts, "ANSWERS", dict(enumerate(texts)))
        together[texts] = scoring.score_answers(VerdictModel(processor, model), batch)
    unequal, short, long = together.values()
    assert np.allclose(unequal, np.stack([short[:, 0], long[:, 0]], 1), rtol=0, atol=1e-5)


# --- one reading ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standin():
    """The stand-in: it answers short questions, and answers an audit question with yes or no."""
    return loading.load("models/medgemma-nano")


def in_whole(monkeypatch):
    """From here on every prompt is read whole, as for models that cannot be read in parts."""
    monkeypatch.setattr(scoring, "_logits_once", lambda *_: None)


@pytest.mark.parametrize("view", ["", "grey"])
@pytest.mark.parametrize("kind", ["random", "stand-in"])
def test_a_reading_in_parts_is_one_of_whole_prompts(nano, standin, suite, monkeypatch, kind, view):
    model = VerdictModel(*nano[:2]) if kind == "random" else standin
    asked = Suite("small", suite[0][:8], suite[1], view)
    assert scoring._logits_once(model, asked.rows(range(3))) is not None
    parts = {size: scoring.ask(model, asked, size) for size in (1, 8)}
    in_whole(monkeypatch)
    whole, texts = scoring.p_correct(model, asked), scoring.decode(model, asked)
    # the stand-in's log-likelihoods are a hundred nats below 0: float32 keeps fewer digits of them
    rounding = 1e-5 if kind == "random" else 5e-5
    for answers in parts.values():
        assert np.allclose(answers["p_correct"], whole, rtol=0, atol=rounding)
        assert list(answers["generated"]) == list(texts["generated"])


def test_what_greedy_decoding_writes_is_known_from_the_reading(standin, suite, monkeypatch):
    asked = Suite("small", *suite)
    expected = scoring.decode(standin, asked)["generated"]
    monkeypatch.setattr(prompts, "ANSWERS", {"CORRECT": "yes", "ERROR": "no"})
    known = scoring.read(standin, asked)["generated"]
    assert known.notna().sum() == expected.isin(["yes", "no"]).sum() > 12
    assert list(known.dropna()) == list(expected[known.notna()])
    assert list(scoring.ask(standin, asked)["generated"]) == list(expected)
    monkeypatch.setattr(standin.network.generation_config, "repetition_penalty", 1.1)
    assert scoring.read(standin, asked)["generated"].isna().all()  # no longer the most likely token


def test_read_whole_where_parts_would_change_the_result(nano, suite, monkeypatch):
    model, few = VerdictModel(*nano[:2]), Suite("few", suite[0][:2], suite[1])
    text, layer = model.network.config.get_text_config(), model.network.get_decoder().layers[-1]
    expected = scoring.p_correct(model, few)
    with monkeypatch.context() as patch:
        patch.setattr(text, "sliding_window", 64)
        assert scoring._logits_once(model, few) is None
    with monkeypatch.context() as patch:
        patch.setattr(model.processor.image_processor, "do_pan_and_scan", True, raising=False)
        assert scoring._logits_once(model, few) is None
    with monkeypatch.context() as patch:
        patch.setattr(layer, "gradient_checkpointing", True)
        patch.setattr(layer, "training", True)
        assert scoring._logits_once(model, few) is None
    handle = layer.register_forward_hook(lambda *_: None)  # as FSDP and device maps have
    assert scoring._logits_once(model, few) is None
    assert np.allclose(scoring.p_correct(model, few), expected, rtol=0, atol=1e-5)
    handle.remove()
    assert scoring._logits_once(model, few) is not None
