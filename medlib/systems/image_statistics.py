"""What grey levels, edges and size give away: an auditor that knows what the words mean and never sees a finding.

A random forest tells the finding by `medlib.data.blind.STATISTICS` of the image, among those of its modality.
What note and treatment mean is taken from the case's own factors, so this auditor reads them better than any
model could. What it gets right, a model may get right by source and scanner.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from medlib.config import NotRun, RunConfig, provenance
from medlib.data import sources
from medlib.data.blind import STATISTICS, TREES, statistics_of_files
from medlib.data.cases import LabelledCase
from medlib.data.images import PIXELS_VERSION
from medlib.data.suite import Suite
from medlib.systems.registry import System, register
from medlib.systems.session import Session


def has_labels(suite: Suite) -> bool:
    """Whether every case tells what its image shows, what its note says and what its treatment is for."""
    return all({"image_finding", "note_finding", "care"} <= s.factors.keys() for s in suite.scenarios)


@register("image-statistics", answers=has_labels)
def image_statistics(session: Session) -> System:
    """Forest over image statistics, fitted on the training images when first asked."""
    train, seed = session.suites["train"], session.config.seed
    if not has_labels(train):
        raise NotRun("nobody has said what the training images show")
    fitted = functools.cache(lambda: fit(session.config, train))
    return System(
        "image-statistics",
        provenance.digest([train.keys(), STATISTICS, TREES, seed, PIXELS_VERSION]),
        lambda suite: fitted()(suite),
    )


def fit(config: RunConfig, train: Suite):
    """A function that gives P(CORRECT) of each case of a suite, float array (n,)."""
    cases = {s.image: s for s in train.scenarios}
    forest = RandomForestClassifier(TREES, random_state=config.seed, class_weight="balanced", oob_score=True)
    forest.fit(
        statistics_of_files(train.images_dir, cases),
        [_label(s.modality, s.factors["image_finding"]) for s in cases.values()],
    )
    agree = functools.partial(agreements, config, list(forest.classes_))
    # what the forest says of the images that a tree did not see, as it will of new ones
    seen = dict(zip(cases, np.nan_to_num(forest.oob_decision_function_)))
    verdicts = LogisticRegression(max_iter=1000, random_state=config.seed)
    shown = np.stack([seen[s.image] for s in train.scenarios])
    verdicts.fit(agree(train.scenarios, shown), [s.verdict == "CORRECT" for s in train.scenarios])

    known: dict[tuple, np.ndarray] = {}  # several suites show the same images

    def predict(suite: Suite) -> np.ndarray:
        images = [(suite.images_dir, s.image) for s in suite.scenarios]
        if new := [key for key in dict.fromkeys(images) if key not in known]:
            known.update(
                zip(new, forest.predict_proba(statistics_of_files(suite.images_dir, [name for _, name in new])))
            )
        shown = np.stack([known[key] for key in images])
        return verdicts.predict_proba(agree(suite.scenarios, shown))[:, 1]

    return predict


def agreements(
    config: RunConfig, labels: Sequence[str], scenarios: Sequence[LabelledCase], shown: np.ndarray
) -> np.ndarray:
    """How well image and treatment, image and note, note and treatment agree, float array (n, 3).

    Parameters
    ----------
    labels : names of the columns of ``shown``, as `_label` gives them
    shown : float array (n, labels), probability of each finding by the image
    """
    place, rows = {label: i for i, label in enumerate(labels)}, []
    for case, chances in zip(scenarios, shown):
        findings = [f for f in sources.findings_of(config, case.modality) if _label(f.modality, f.name) in place]
        among = np.array([chances[place[_label(f.modality, f.name)]] for f in findings])
        among = among / among.sum() if among.sum() else np.full(len(findings), 1 / max(1, len(findings)))
        fits = np.array([f.fits(str(case.factors["care"])) for f in findings], float)
        noted = np.array([f.name == case.factors["note_finding"] for f in findings], float)
        rows.append((among @ fits, among @ noted, noted @ fits))
    return np.array(rows)


def _label(modality: str, finding) -> str:
    return f"{modality}/{finding}"
