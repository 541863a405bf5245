"""Stand-ins fine-tuned on labelled images: only those of the training side, resumable, drawn builds unchanged."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Gemma3ForConditionalGeneration

from medlib.config import DataError, ModelError, RunConfig
from medlib.data import own_suites
from medlib.data.synthetic import lexicon
from medlib.data.synthetic.draw import draw
from medlib.models import dual_encoder, loading
from medlib.models.standin import biomedclip, loop, medgemma, own
from medlib.models.standin.words import Words

FINDINGS = (
    ("ultrasound", "normal"),
    ("ultrasound", "simple_cyst"),
    ("mri", "normal"),
    ("mri", "ring_enhancing_mass"),
)
GROUPS, EACH = 8, 2
RECIPE = own.Recipe(batch_size=4, epochs=0.6, views=2, decoder_steps=2, encoder_epochs=0.6, size=56)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Labelled folders modality/finding/group; 64 images of 32 groups, not square."""
    root = tmp_path_factory.mktemp("scans")
    for number, (modality, finding) in enumerate(FINDINGS):
        for image in range(GROUPS * EACH):
            folder = root / modality / finding / f"{number}-{image // EACH}"
            folder.mkdir(parents=True, exist_ok=True)
            drawn = draw(modality, finding, 1000 * number + image, 96).resize((96, 80))
            drawn.save(folder / f"{number}-{image}.png")
    return root


@pytest.fixture(scope="module")
def config(data_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_suites, "ASSIGNMENTS", tmp_path_factory.mktemp("sides"))
        config = RunConfig(data_dir=str(data_dir))
        own_suites.of(config)  # read once a process
        yield config


@pytest.fixture
def few(monkeypatch):
    """Small batches, and statements counted on few samples."""
    torch.set_num_threads(1)
    monkeypatch.setattr(own, "BATCH", 4)
    statements = medgemma.statement_accuracy
    monkeypatch.setattr(
        medgemma, "statement_accuracy", lambda *args, **options: statements(*args, count=8, **options)
    )


def test_only_images_of_the_training_side_train(config, few, tmp_path, monkeypatch):
    suites, loaded, trained = own_suites.of(config), {}, set()
    files = {
        side: set(suites.data.table["file"].iloc[suites.sides.rows(side)]) for side in ("train", "val", "test")
    }
    shown, view = own.shown, own.view

    def remember(images_dir, name):
        image = shown(images_dir, name)
        loaded[image.tobytes()] = name
        return image

    def remember_view(image, *args):
        trained.add(loaded[image.tobytes()])
        return view(image, *args)

    monkeypatch.setattr(own, "shown", remember)
    monkeypatch.setattr(own, "view", remember_view)
    monkeypatch.setattr(own, "_resized", lambda image, size, box=None: image.resize((size, size), box=box))
    recipe = RECIPE.model_copy(update={"size": 112})  # larger than the images, which so stay what they are
    measured = own.build(config, tmp_path, recipe=recipe)
    assert set(loaded.values()) == files["train"] | files["val"] and files["test"]
    assert trained == files["train"]
    assert measured["medgemma"]["naming"]["all"]["n"] == len(files["val"])
    assert measured["medgemma"]["sides"]["train"]["images"] == len(files["train"])


def test_a_build_is_two_models_of_the_same_classes_with_honest_cards(config, few, tmp_path):
    measured = own.build(config, tmp_path, recipe=RECIPE)
    name = own_suites.of(config).data.name
    folder, dual = tmp_path / f"medgemma-nano-{name}", tmp_path / f"biomedclip-nano-{name}"
    model = loading.load(str(folder))
    assert isinstance(model.network, Gemma3ForConditionalGeneration) and loading.is_standin(str(folder))
    pixels = model.processor.image_processor(images=[Image.new("RGB", (90, 90))], return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape[-2:] == (56, 56)
    tokens = model.network.get_image_features(pixels).pooler_output
    assert tokens.shape[1] == model.processor.image_seq_length == model.network.config.mm_tokens_per_image
    vectors = dual_encoder.embed_images(*dual_encoder.load(str(dual)), [Image.new("RGB", (90, 90))])
    assert np.isfinite(vectors).all() and loading.is_standin(str(dual))
    for made, facts in ((folder, measured["medgemma"]), (dual, measured["biomedclip"])):
        card = (made / "README.md").read_text()
        assert "knows no medicine" in card and "forbid publishing" in card and "license: other" in card
        assert f"{facts['naming']['all']['value']:.1%}" in card and not (made / "stages").exists()
    again = own.build(config, tmp_path, recipe=RECIPE)  # nothing is trained again
    assert again["medgemma"]["minutes"] == measured["medgemma"]["minutes"]


def test_a_run_with_another_split_is_refused(config, few, tmp_path):
    own.build(config, tmp_path, "biomedclip", RECIPE)
    model, suites = str(next(tmp_path.iterdir())), own_suites.of(config)
    own.check_split(model, suites, config.seed)
    own.check_split("models/medgemma-nano", suites, config.seed)  # has seen nothing but drawings
    other = own_suites.of(config.model_copy(update={"seed": 1}))
    with pytest.raises(DataError, match="has seen images of .* seed 0.* with seed 1"):
        own.check_split(model, other, 1)


@pytest.mark.parametrize("which", ["medgemma", "biomedclip"])
def test_an_interrupted_build_ends_where_an_uninterrupted_one_does(config, few, tmp_path, monkeypatch, which):
    own.build(config, tmp_path / "whole", which, RECIPE)
    keep = loop.keep

    def keep_and_break(*args):
        keep(*args)
        raise KeyboardInterrupt

    recipe = RECIPE
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "keep", keep_and_break)
        patch.setattr(own, "_steps", lambda epochs, *_: 7 if epochs == 0.6 else 3)
        own.build(config, tmp_path / "broken", which, recipe)
    monkeypatch.setattr(own, "_steps", lambda epochs, *_: 7 if epochs == 0.6 else 3)
    own.build(config, tmp_path / "broken", which, recipe)
    own.build(config, tmp_path / "straight", which, recipe)
    first, second = (
        load_file(next((tmp_path / kind).iterdir()) / "model.safetensors") for kind in ("broken", "straight")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], msg=name, atol=0, rtol=0)


def test_the_loop_keeps_the_best_weights_also_when_it_resumes(tmp_path):
    scores = iter([0.2, 0.9, 0.1])
    part, after = torch.nn.Linear(2, 1), []

    def losses(step):
        return {"loss": part(torch.ones(1, 2)).square().mean()}

    def score():
        after.append(part.weight.detach().clone())
        return next(scores)

    file = tmp_path / "part.safetensors"
    history = loop.train({"part": part}, losses, file, 6, 0.1, every=2, score=score)
    assert [row["score"] for row in history] == [0.2, 0.9, 0.1]
    assert torch.equal(part.weight, after[1]) and not torch.equal(part.weight, after[2])
    resumed = torch.nn.Linear(2, 1)
    assert loop.train({"part": resumed}, losses, file, 6, 0.1, every=2, score=score) == history
    assert torch.equal(resumed.weight, after[1])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_loop_stops_at_the_first_number_that_is_none_and_keeps_the_steps_before(tmp_path, what):
    part = torch.nn.Linear(2, 1)

    def losses(step):
        loss = part(torch.ones(1, 2)).square().mean()
        if step == 3:
            loss = loss * torch.inf if what == "loss" else (loss - loss.detach()).clamp(min=0).sqrt()
        return {"naming": loss}

    file = tmp_path / "part.safetensors"
    with pytest.raises(ModelError, match=f"stopped at step 4: the {what}.* is not a number .* rate of 0.1"):
        loop.train({"part": part}, losses, file, 6, 0.1, every=2)
    assert all(torch.isfinite(tensor).all() for tensor in part.state_dict().values())
    with safe_open(file, "pt") as kept:
        assert kept.metadata()["step"] == "2"


def test_changed_data_or_recipe_begin_anew(config, few, tmp_path):
    stages = own._stages(tmp_path, {"recipe": 1})
    (stages / "tower.safetensors").touch()
    assert (own._stages(tmp_path, {"recipe": 1}) / "tower.safetensors").is_file()
    assert not (own._stages(tmp_path, {"recipe": 2}) / "tower.safetensors").exists()


def test_words_of_own_findings_include_plain_phrases_and_no_verdict_question(config):
    words = own.words_of(own_suites.of(config))
    assert {(f.modality, f.name) for f in words.findings} == set(FINDINGS)
    cyst = words.lexicon.finding("ultrasound", "simple_cyst")
    assert {"Breast cyst", "Simple anechoic cyst with posterior enhancement"} <= set(words.phrases(cyst))
    rng = np.random.default_rng(0)
    samples = [medgemma.image_sample(rng, cyst, words) for _ in range(200)]
    samples += [medgemma.text_sample(rng, words) for _ in range(400)]
    asked = [question for question, _ in samples]
    assert any("cyst" in q.lower() for q in asked) and not any("pneumonia" in q.lower() for q in asked)
    both = [q for q in asked if q.startswith(medgemma.SHOWS) and "Prescribed treatment" in q]
    assert not both  # an image and a treatment in one question would be the verdict's


def test_accepted_care_is_used_for_a_finding_and_unsuited_treatment_is_not():
    known = lexicon.LEXICON
    findings = [known.finding("ultrasound", name) for name in ("benign_mass", "spiculated_mass", "normal")]
    findings += [known.finding("histopathology", name) for name in ("squamous_carcinoma", "normal")]
    words, rng = Words(tuple(findings), known, True), np.random.default_rng(0)
    answers = {q: a for q, a in (medgemma.text_sample(rng, words) for _ in range(4000)) if a in ("yes", "no")}

    def said(finding, treatment):
        phrases = words.phrases(known.finding(*finding))
        lines = [(q.split("\n")[3], a) for q, a in answers.items() if f"Prescribed treatment: {treatment}." in q]
        return {a for line, a in lines if line.removeprefix("Clinical finding: ").rstrip(".") in phrases}

    assert said(("ultrasound", "benign_mass"), "Ultrasound-guided core needle biopsy") == {"yes"}
    assert said(("ultrasound", "normal"), "Ultrasound-guided core needle biopsy") == {"no"}
    assert not said(("histopathology", "squamous_carcinoma"), "Targeted therapy after resection")


def test_a_loss_within_the_modality_does_not_see_other_findings():
    words = Words(tuple(lexicon.LEXICON.finding(*key) for key in FINDINGS), lexicon.LEXICON, True)
    logits, labels = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])
    loss = own.naming_loss(logits, labels, words, smoothing=0)
    by_hand = torch.nn.functional.cross_entropy(logits[:1, :2], labels[:1])
    by_hand += torch.nn.functional.cross_entropy(logits[1:, 2:], labels[1:] - 2)
    torch.testing.assert_close(loss, by_hand / 2)
    changed = logits.clone()
    changed[0, 2:] += 5
    torch.testing.assert_close(own.naming_loss(changed, labels, words), own.naming_loss(logits, labels, words))


def test_every_finding_is_drawn_equally_often_where_balanced():
    words = Words(tuple(lexicon.LEXICON.finding(*key) for key in FINDINGS), lexicon.LEXICON, True)
    labels = np.array([0] * 30 + [1] * 3 + [2] * 6 + [3] * 6)
    side = own.Side([Image.new("RGB", (60, 60), (label, 0, 0)) for label in labels], labels, labels)
    rng, generator = np.random.default_rng(0), torch.Generator()
    drawn, pixels = own.sampler(side, words, own.Recipe(size=56))(800, rng, generator)
    assert pixels.shape == (800, 3, 56, 56)
    assert (np.bincount(drawn.numpy(), minlength=4) > 150).all()
    plain, _ = own.sampler(side, words, own.Recipe(size=56, balanced=0))(800, rng, generator)
    assert np.bincount(plain.numpy(), minlength=4)[0] > 450


@pytest.mark.parametrize("switch", [{"equalised": 1}, {"content": 1}, {"erased": 1}, {}])
def test_views_are_seeded_and_of_the_size_asked_for(switch):
    image = draw("mri", "normal", 3, 120)
    recipe = own.Recipe(size=56, **switch)
    one, same, other = (own.view(image, np.random.default_rng(seed), recipe) for seed in (0, 0, 1))
    assert one.shape == (56, 56, 3) and one.dtype == np.uint8
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    black = own.view(Image.new("RGB", (60, 60)), np.random.default_rng(0), recipe)
    assert np.isfinite(black).all()


def test_cases_are_refused(config):
    suites = own_suites.of(config)
    cases = own_suites.OwnSuites(
        type(suites.data)("mine", "cases", [], suites.data.table, suites.data.images_dir, suites.data.card),
        suites.sides,
        suites.lexicon,
    )
    with pytest.raises(DataError, match="mine: a stand-in learns from labelled images"):
        own.words_of(cases)


def test_what_the_drawn_stand_ins_are_taught_has_not_changed():
    rng = np.random.default_rng(3)
    samples = [medgemma.image_sample(rng, lexicon.FINDINGS[i % 13]) for i in range(200)]
    samples += [medgemma.text_sample(rng) for _ in range(400)]
    samples += [biomedclip.caption(rng, lexicon.FINDINGS[i % 13]) for i in range(200)]
    # what models/*-nano were taught; another order of random numbers would make other models
    digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()
    assert digest.startswith("270ce2c60ff79785")
