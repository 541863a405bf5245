"""What 01_data shows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import MODALITIES, RunConfig
from medlib.data import quality, sources
from medlib.data.cases import ERROR_TYPES, LabelledCase
from medlib.data.quality import Issue
from medlib.data.synthetic import draw, lexicon
from medlib.data.synthetic.draw import FINDINGS
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.reporting import plots, show
from medlib.stats.text import percent, rate_text
from medlib.systems import text


def finding_sheets(config: RunConfig) -> list[Figure]:
    """Examples of every finding, one sheet for each modality: drawn ones, or training images of one's own."""
    if not config.data_dir:
        return [finding_sheet(modality) for modality in MODALITIES]
    suite = sources.suite(config, "train")
    sheets = []
    for modality in dict.fromkeys(s.modality for s in suite.scenarios):
        by_finding = {_finding(s): s for s in suite.scenarios if s.modality == modality}
        shown = list(by_finding.values())[:8]
        images, captions = [suite.image(s) for s in shown], [_finding(s) for s in shown]
        sheets.append(
            plots.contact_sheet(images, captions, columns=4, banner=f"{show.data_name(config)}, {modality}")
        )
    return sheets


def _finding(scenario: LabelledCase) -> str:
    return str(scenario.factors.get("image_finding", scenario.finding)).replace("_", " ")


def finding_sheet(modality: str, each: int = 2) -> Figure:
    """Examples of all that the generator can draw in one modality."""
    labels = {f.name: f.label for f in lexicon.findings_of(modality)}
    drawn = [(finding, number) for finding in FINDINGS[modality] for number in range(each)]
    seeds = [SEED_BASE["train"] + number for _, number in drawn]
    images = [draw.draw(modality, f, seed) for (f, _), seed in zip(drawn, seeds)]
    captions = [labels.get(finding, finding) for finding, _ in drawn]
    return plots.contact_sheet(images, captions, columns=4, banner=f"synthetic {modality}")


# ---- data ----------------------------------------------------------------------------------------


def core_counts(scenarios: list[LabelledCase]) -> pd.DataFrame:
    """Cases by modality: verdicts, error types and severities that occur, cost of the errors."""

    def row(rows: list[LabelledCase]) -> dict:
        counted = {"Cases": len(rows), "CORRECT": sum(s.verdict == "CORRECT" for s in rows)}
        counted |= {name.replace("_", " "): sum(s.error_type == name for s in rows) for name in ERROR_TYPES[1:]}
        counted |= {name: sum(s.severity == name for s in rows) for name in ("moderate", "high", "critical")}
        return counted | {"At stake, US dollars": sum(s.cost_impact or 0 for s in rows)}

    modalities = dict.fromkeys(s.modality for s in scenarios)
    rows = [{"Modality": m} | row([s for s in scenarios if s.modality == m]) for m in modalities]
    counts = pd.DataFrame([*rows, {"Modality": "all"} | row(scenarios)])
    return counts.loc[:, (counts != 0).any()]  # no column for a kind of error that does not occur


def _error(case: LabelledCase) -> str:
    stated = [text.replace("_", " ") for text in (case.error_type, case.severity) if text]
    return "" if case.verdict == "CORRECT" else ", ".join(stated)


def core_list(scenarios: list[LabelledCase], limit: int = 24) -> pd.DataFrame:
    """The first cases in words."""
    return pd.DataFrame(
        [
            {
                "Modality": s.modality,
                "Finding": s.finding,
                "Treatment": s.treatment,
                "Verdict": s.verdict,
                "Error": _error(s),
                "US dollars": s.cost_impact,
            }
            for s in scenarios[:limit]
        ]
    )


def issues(found: list[Issue]) -> pd.DataFrame:
    """The audit's findings without their evidence, worst first."""
    frame = quality.audit_table(found)
    return pd.DataFrame(
        {
            "Issue": frame["severity"] + ": " + frame["check"],
            "What was found": frame["message"],
            "Files": frame["files"],
        }
    )


def audit_sentence(found: list[Issue]) -> str:
    """Count of errors and warnings, and what they mean for a score."""
    counts = {level: sum(i.severity == level for i in found) for level in ("error", "warning")}
    meaning = "Nothing of this speaks against a score on these cases."
    if counts["error"]:
        meaning = "After an error, a high score on these cases proves little."
    elif counts["warning"]:
        meaning = "No score on these cases should be quoted without the warnings."
    return f"The audit finds **{counts['error']} errors and {counts['warning']} warnings**. {meaning}"


def shortcut_table(scenarios: list[LabelledCase]) -> pd.DataFrame:
    """Verdicts by wording of the finding: normal or benign, or abnormal."""
    wording = ["normal or benign" if quality.is_normal_or_benign(s.finding) else "abnormal" for s in scenarios]
    verdicts = [s.verdict for s in scenarios]
    counts = pd.crosstab(pd.Series(wording, name="Wording of the finding"), pd.Series(verdicts))
    return counts.rename_axis(columns=None).reset_index()


def shortcut_sentence(scenarios: list[LabelledCase]) -> str:
    """How often the wording of the finding alone gives the verdict."""
    counts = shortcut_table(scenarios).iloc[:, 1:]
    right = int(counts.max(axis=1).sum())
    end = (
        "**Nobody needs the image here**: this set can check an auditor, it cannot prove that one looks."
        if right == len(scenarios)
        else "The rest needs more than this one word."
    )
    return (
        f"Whoever reads only whether the finding sounds normal gets {right} of "
        f"{len(scenarios)} verdicts right ({percent(right / len(scenarios))}). {end}"
    )


def composition(scenarios: list[LabelledCase]) -> pd.DataFrame:
    """Scenarios by source of the verdict and by verdict."""
    source = pd.Series(
        [str(s.factors.get("source", "not stated")).replace("_", " ") for s in scenarios], name="Source"
    )
    counts = pd.crosstab(source, pd.Series([s.verdict for s in scenarios]))
    return counts.rename_axis(columns=None).reset_index()


def overlap_table(shared: Mapping[str, int]) -> pd.DataFrame:
    """Of `medlib.data.sources.overlap`."""
    return pd.DataFrame(
        {"Compared": [f"{name}s" for name in shared], "In training and in test": list(shared.values())}
    )


def overlap_sentence(shared: Mapping[str, int]) -> str:
    """Whether the test suite is new to a model trained on the training suite."""
    if not any(shared.values()):
        return "Nothing of the test suite occurs in training: no phrase, no image, no scenario."
    leaks = ", ".join(f"{count} {name}s" for name, count in shared.items() if count)
    return f"**The test suite is not new**: {leaks} occur in training, so its scores are too good."


def read_words_only(train: list[LabelledCase], test: list[LabelledCase], seed: int = 0) -> pd.DataFrame:
    """Predictions of the bag of words (`medlib.systems.text`) on ``test`` after reading ``train``."""
    probe = text.fit_keywords(train, seed)
    p_correct = probe.predict_proba(text.words(test))[:, 1]
    return stats.predictions_table(test, pd.DataFrame({"p_correct": p_correct}))


def words_sentence(blind: pd.DataFrame) -> str:
    """What a reader of the words alone scores, and where only the image helps."""
    everything = stats.score(blind)["accuracy"]
    only_image = blind[blind["pair_kind"] == "image"]
    start = f"Words alone give {rate_text(everything)} of the verdicts of the held-out suite"
    if only_image.empty:
        return f"{start}."
    share = stats.score(only_image)["accuracy"]["value"]
    return (
        f"{start}, and {percent(share)} where only the image changes (chance is 50%). An "
        "auditor that wants more than the words give has to look."
    )
