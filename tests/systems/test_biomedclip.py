"""The rows of the dual encoder: what they may look at, what changes their revision, what they learn."""

import numpy as np
import pytest
from scipy.stats import binom

from medlib.config import NotRun, RunConfig
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.models import dual_encoder
from medlib.models.loading import is_standin
from medlib.models.standin import biomedclip as biomedclip_standin
from medlib.models.standin.medgemma import MODALITY_NAMES
from medlib.systems import Session, biomedclip
from medlib.systems.biomedclip import TREAT, WATCH

EMBEDDED = "models/biomedclip-nano"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A randomly initialised dual encoder; it knows nothing."""
    folder = tmp_path_factory.mktemp("dual")
    processor = biomedclip_standin.build_processor()
    biomedclip_standin.build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    out = tmp_path_factory.mktemp("suites")

    def build(split, pairs):
        scenarios = grammar.build_suite(f"{split}-{pairs}", split, pairs, 0, out)
        return Suite(f"{split}-{pairs}", scenarios, out / f"{split}-{pairs}" / "images")

    train = build("train", 48)
    return {"train": train, "core_train": train.rows(range(8)), "val": build("val", 24)}


@pytest.fixture
def session(folder, suites):
    return Session(RunConfig(biomedclip=folder), suites)


@pytest.fixture(scope="module")
def embedded(suites):
    return Session(RunConfig(biomedclip=EMBEDDED), suites)


@pytest.mark.parametrize("name", ["biomedclip", "biomedclip-probe"])
def test_answers_are_probabilities_and_need_no_other_row(session, suites, name):
    system = session.system(name)
    together = system.predict(suites["val"])
    assert together.shape == (48,) and np.isfinite(together).all()
    assert ((together >= 0) & (together <= 1)).all() and together.std() > 0
    alone = np.concatenate([system.predict(suites["val"].rows([i])) for i in (0, 17, 40)])
    np.testing.assert_allclose(alone, together[[0, 17, 40]], atol=1e-4)


@pytest.mark.parametrize("name", ["biomedclip", "biomedclip-probe"])
def test_only_image_finding_and_treatment_are_read(session, suites, name):
    val = suites["val"]
    facts = {"verdict": "ERROR", "error_type": "contradiction", "severity": "high", "factors": {}}
    hidden = [
        s.model_copy(
            update={"id": f"x{i}", "patient": s.patient.model_copy(update={"complaint": "withheld"}), **facts}
        )
        for i, s in enumerate(val.scenarios)
    ]
    blind = Suite("blind", hidden, val.images_dir)
    predict = session.system(name).predict
    np.testing.assert_array_equal(predict(blind), predict(val))


def test_a_image_is_encoded_once_for_both_rows_and_each_view_apart(session, suites, monkeypatch):
    val, encoded = suites["val"], []
    embed = dual_encoder.embed_images
    monkeypatch.setattr(
        dual_encoder, "embed_images", lambda p, m, images: embed(p, m, [encoded.append(1) or x for x in images])
    )
    session.system("biomedclip").predict(val)
    distinct = len({s.image for s in val.scenarios})
    assert len(encoded) == distinct
    biomedclip.embed(session, val)
    assert len(encoded) == distinct
    grey = Suite(val.name, val.scenarios, val.images_dir, view="grey")
    vectors = biomedclip.embed(session, grey)[0]
    assert len(encoded) == 2 * distinct and not np.allclose(vectors, biomedclip.embed(session, val)[0])


def test_revisions_follow_weights_prompts_and_training_data(session, suites, tmp_path, monkeypatch):
    rows = ("biomedclip", "biomedclip-probe")

    def revisions(session):
        return [session.system(name).revision for name in rows]

    first = revisions(session)
    assert first == revisions(Session(session.config, suites)) and first[0] != first[1]
    fewer = revisions(Session(session.config, suites | {"train": suites["train"].rows(range(40))}))
    assert fewer[0] == first[0] and fewer[1] != first[1]
    other = tmp_path / "other"
    processor = biomedclip_standin.build_processor()
    biomedclip_standin.build_model(processor, seed=1).save_pretrained(other)
    processor.save_pretrained(other)
    changed = revisions(Session(RunConfig(biomedclip=str(other)), suites))
    assert changed[0] != first[0] and changed[1] != first[1]
    monkeypatch.setattr(biomedclip, "WATCH", ("no treatment",))
    assert Session(session.config, suites).system("biomedclip").revision != first[0]


def test_a_row_that_is_known_costs_no_training(session, monkeypatch):
    monkeypatch.setattr(biomedclip, "embed", lambda *_: pytest.fail("embedded before anybody asked"))
    assert session.system("biomedclip-probe").revision


def test_a_missing_encoder_makes_a_row_that_says_so(suites):
    for name in ("biomedclip", "biomedclip-probe"):
        with pytest.raises(NotRun, match="models/no-such-encoder"):
            Session(RunConfig(biomedclip="models/no-such-encoder"), suites).system(name)


def test_products_are_elementwise():
    p, f, t = (np.random.default_rng(i).normal(size=(5, 4)) for i in range(3))
    got = biomedclip.products(p, f, t)
    assert got.shape == (5, 12)
    np.testing.assert_allclose(got.reshape(5, 3, 4).sum(axis=2)[:, 1], (p * t).sum(axis=1))


def test_the_embedded_encoder_sees_what_a_note_contradicts(embedded, suites):
    """On image pairs only the image differs; the stand-in reads images, so it must catch these."""
    assert is_standin(EMBEDDED)
    p_correct = embedded.system("biomedclip").predict(suites["val"])
    kinds = np.array([s.factors["pair_kind"] for s in suites["val"].scenarios])
    right = np.array([s.verdict == "CORRECT" for s in suites["val"].scenarios])
    image = kinds == "image"
    assert p_correct[image & right].mean() > p_correct[image & ~right].mean() + 0.3


def test_the_probe_learns_from_48_pairs_what_chance_would_not_give(embedded, suites):
    p_correct = embedded.system("biomedclip-probe").predict(suites["val"])
    right = np.array([s.verdict == "CORRECT" for s in suites["val"].scenarios])
    hits = int(((p_correct >= 0.5) == right).sum())
    assert binom.sf(hits - 1, len(right), 0.5) < 0.01  # one-sided, against a coin


def test_the_prompts_name_no_phrase_of_the_held_out_suite():
    held_out = {phrase.lower() for phrase in grammar.phrases("test")}
    prompts = set(WATCH + TREAT)
    prompts |= {c.lower() for m in MODALITY_NAMES for c in biomedclip.captions_of(RunConfig(), m)}
    assert not prompts & held_out
