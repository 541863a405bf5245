"""A dual encoder as auditor: vectors of image, finding and treatment, with and without training.

``biomedclip`` asks two questions, each answered by a softmax over similarities to generic prompts:

1. Do image and note agree? Both are compared with the same captions, one for each finding of the
   modality; agreement is the chance that the two name the same one.
2. Does the care agree with the image? The captions tell whether the image needs treatment, the
   prompts `WATCH` and `TREAT` whether the prescription is one.

P(CORRECT) is the product. It uses the case itself and prompts that name no guideline (which drug for
which finding), so it cannot tell one treatment from another. An encoder that knows captions and not
care (the stand-in) answers the second question by the sound of the words: expect that answer to move
with the wording of the prompts.

``biomedclip-probe`` is a logistic regression on elementwise products of the three vectors, fitted on
the training split. A single vector decides nothing, as the pairs of the grammar are balanced.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medlib.config import ModelError, NotRun, RunConfig, provenance
from medlib.data import sources
from medlib.data.images import PIXELS_VERSION
from medlib.data.suite import Suite
from medlib.models import dual_encoder
from medlib.models.standin.medgemma import MODALITY_NAMES, caption
from medlib.systems.registry import System, register
from medlib.systems.session import Session

#: Plain words; the mean vector of a side stands for it, as one prompt alone is fickle.
WATCH = ("no treatment", "observation only", "watchful waiting", "routine follow-up", "reassurance")
TREAT = ("drug treatment", "surgery", "radiotherapy", "chemotherapy", "biopsy")

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression, from which one is chosen


@register("biomedclip")
def biomedclip(session: Session) -> System:
    """Zero-shot: nothing is trained on the audit."""
    captions = {m: captions_of(session.config, m) for m in _modalities(session)}
    return System(
        "biomedclip", _revision(session, captions, WATCH, TREAT), lambda suite: zero_shot(session, suite)
    )


@register("biomedclip-probe")
def biomedclip_probe(session: Session) -> System:
    """Logistic regression on products of the vectors, fitted when first asked."""
    training = [key for suite in _training(session) for key in suite.keys()]
    fitted = functools.cache(lambda: fit_probe(session))
    return System(
        "biomedclip-probe",
        _revision(session, training, STRENGTHS, session.config.seed),
        lambda suite: fitted().predict_proba(products(*embed(session, suite)))[:, 1],
    )


# --- zero-shot ------------------------------------------------------------------------------------


def captions_of(config: RunConfig, modality: str) -> list[str]:
    """The generic captions: one for each finding that an image of this modality may show."""
    return [caption(finding) for finding in sources.findings_of(config, modality)]


def _modalities(session: Session) -> list[str]:
    """Those of the run's suites, and the four of the generator."""
    return list(dict.fromkeys([*MODALITY_NAMES, *(s.modality for s in session.suites["train"].scenarios)]))


def zero_shot(session: Session, suite: Suite) -> np.ndarray:
    """P(CORRECT), float array (n,), as the module's head describes it."""
    known = {m: sources.findings_of(session.config, m) for m in {s.modality for s in suite.scenarios}}
    if unknown := sorted(m for m, findings in known.items() if not findings):
        raise NotRun(f"there are no captions of findings for {', '.join(unknown)}")
    processor, model, _ = encoder(session)
    scale = model.logit_scale.exp().item()
    texts = functools.partial(dual_encoder.embed_texts, processor, model)
    images, findings, treatments = embed(session, suite)

    care = np.stack([texts(WATCH).mean(axis=0), texts(TREAT).mean(axis=0)])
    care /= np.linalg.norm(care, axis=1, keepdims=True)
    treated = softmax(scale * treatments @ care.T, axis=1)[:, 1]

    p_correct = np.empty(len(suite))
    modality = np.array([s.modality for s in suite.scenarios])
    for name in set(modality):
        rows, prompts = modality == name, texts(captions_of(session.config, name)).T
        image_shows = softmax(scale * images[rows] @ prompts, axis=1)
        note_says = softmax(scale * findings[rows] @ prompts, axis=1)
        ill = image_shows @ np.array([not finding.benign for finding in known[name]])
        care_fits = ill * treated[rows] + (1 - ill) * (1 - treated[rows])
        p_correct[rows] = (image_shows * note_says).sum(axis=1) * care_fits
    return p_correct.clip(0, 1)  # rounding


# --- probe ----------------------------------------------------------------------------------------


def fit_probe(session: Session) -> GridSearchCV:
    """A fitted scikit-learn classifier over `products`; its class 1 is CORRECT.

    The strength of the penalty is chosen by log-loss on treatment wordings that the fit did not see,
    since test wordings are not seen either; folds that share wordings would choose too weak a one.
    """
    suites = _training(session)
    scenarios = [s for suite in suites for s in suite.scenarios]
    features = np.concatenate([products(*embed(session, suite)) for suite in suites])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, random_state=session.config.seed))
    if (wordings := len({s.treatment for s in scenarios})) < 5 or len({s.verdict for s in scenarios}) < 2:
        raise NotRun(f"the probe needs both verdicts and five treatments in training, not {wordings}")
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=session.config.seed)
    search = GridSearchCV(probe, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
    return search.fit(
        features, [s.verdict == "CORRECT" for s in scenarios], groups=[s.treatment for s in scenarios]
    )


def products(images: np.ndarray, findings: np.ndarray, treatments: np.ndarray) -> np.ndarray:
    """Elementwise products of each two of the vectors: float arrays (n, d) -> (n, 3 d)."""
    return np.hstack([images * findings, images * treatments, findings * treatments])


def _training(session: Session) -> list[Suite]:
    return [suite for suite in (session.suites["train"], session.suites["core_train"]) if len(suite)]


# --- vectors --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def encoder(session: Session) -> tuple:
    """(processor, model, vectors of the images seen so far), loaded once for each session."""
    config = session.config
    return *dual_encoder.load(config.biomedclip, config.trust_remote_code), {}


def embed(session: Session, suite: Suite) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of images, findings and treatments, float32 (n, d) each; an image only once."""
    processor, model, known = encoder(session)
    images = [(suite.images_dir, s.image, suite.view) for s in suite.scenarios]
    new = {key: s for key, s in zip(images, suite.scenarios) if key not in known}
    vectors = dual_encoder.embed_images(processor, model, (suite.image(s) for s in new.values()))
    known.update(zip(new, vectors))
    findings = [f"{MODALITY_NAMES.get(s.modality, s.modality)}: {s.finding}" for s in suite.scenarios]
    treatments = [s.treatment for s in suite.scenarios]
    return (
        np.stack([known[key] for key in images]),
        dual_encoder.embed_texts(processor, model, findings),
        dual_encoder.embed_texts(processor, model, treatments),
    )


def _revision(session: Session, *made_of) -> str:
    """SHA-256 over the encoder's files and whatever else decides; NotRun if there is no encoder."""
    try:
        encoder(session)
        files = dual_encoder.fingerprint(session.config.biomedclip)
    except ModelError as error:
        raise NotRun(str(error)) from error
    return provenance.digest([files, PIXELS_VERSION, *made_of])
