"""Making a reference: the run's own suites are asked and looked at, once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medlib import stats
from medlib.audit import agreement
from medlib.audit.reference import Decision, Gallery, Reference
from medlib.config import RunConfig
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.models.verdict_model import VerdictModel
from medlib.stats import risk
from medlib.systems import Session, novelty


def make(session: Session, name: str, model: VerdictModel | None) -> Reference:
    """The reference of a run and a system; parameters as for `reference.of_run`."""
    if model is None:
        return Reference(decision(session, name), None)
    data = sources.suite(session.config, "train").sha256
    seen = gallery(session.config, model)
    return Reference(decision(session, name), seen, data, agreement.of_run(session.config, model))


# --- threshold ------------------------------------------------------------------------------------


def decision(session: Session, name: str) -> Decision:
    """Threshold by learn then test on the run's calibration cases, temperature on its validation cases.

    A system that is paid for by the answer is not asked: its threshold is one half, unless the run has asked it.
    """
    config, hosted = session.config, name.startswith("openai:")
    unasked = Decision(guarantee="No calibration case was asked, so this threshold comes without a guarantee.")
    if hosted and not session.was_asked(name):
        return unasked
    calibration, validation = sources.calibration(config), sources.suite(config, "val")
    if hosted and any(session.unanswered(name, suite) for suite in (calibration, validation)):
        return unasked
    temperature = 1.0
    if len(validation):
        answers = session.ask(name, validation)
        temperature = stats.fit_temperature(answers["p_correct"], answers["verdict"] == "CORRECT")
    try:
        if not len(calibration):
            raise risk.RiskError("the run has no calibration cases")
        choice = _choose(session.ask(name, calibration), config)
    except risk.RiskError as error:
        return Decision(guarantee=f"This threshold comes without a guarantee: {error}.", temperature=temperature)
    return Decision(choice.threshold, choice.guarantee, temperature)


def _choose(answers, config: RunConfig) -> risk.Choice:
    """At the run's risk level, or at the lowest that its calibration cases can show."""
    critical = int((answers["severity"] == "critical").sum())
    reached = critical and config.risk_level >= risk.lowest_level(critical, config.risk_confidence)
    return risk.choose(answers, config.risk_level if reached else None, config.risk_confidence)


# --- images ---------------------------------------------------------------------------------------


def gallery(config: RunConfig, model: VerdictModel) -> Gallery | None:
    """Look at every training image once; limits come from the validation images. None without images."""
    train, validation = (_one_per_image(sources.suite(config, side)) for side in ("train", "val"))
    if not len(train):
        return None
    features = novelty.image_features(model, train)
    gaussians = novelty.fit(features, [s.modality for s in train.scenarios])
    known = {s.modality for s in validation.scenarios} & set(gaussians)
    limits = _limits(gaussians, model, validation if known else train)
    names = list(gaussians)
    cases = [
        s.model_dump(include={"id", "modality", "image", "finding", "treatment", "verdict"})
        for s in train.scenarios
    ]
    return Gallery(
        features.astype(np.float32),
        cases,
        np.stack([gaussians[name].location_ for name in names]),
        np.stack([gaussians[name].get_precision() for name in names]),
        np.array([limits[name] for name in names]),
        names,
    )


def _one_per_image(suite: Suite) -> Suite:
    return suite.rows({s.image: row for row, s in reversed([*enumerate(suite.scenarios)])}.values())


def _limits(gaussians: Mapping, model: VerdictModel, suite: Suite) -> dict[str, float]:
    """`novelty.threshold` of each modality; of all modalities for one of which the suite has no image."""
    modalities = np.array([s.modality for s in suite.scenarios])
    distances = novelty.distances(gaussians, novelty.image_features(model, suite), modalities)
    finite = np.isfinite(distances)
    return {
        name: novelty.threshold(
            distances[finite & (modalities == name)] if (modalities == name).any() else distances[finite]
        )
        for name in gaussians
    }
