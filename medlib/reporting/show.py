"""What several notebooks show: the disclaimer, tables, images of cases, bars by group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ADAPTER, MODALITIES, STANDIN_NOTICE, ConfigError, RunConfig
from medlib.data import own_suites
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.evaluation import summary
from medlib.evaluation.results import Results
from medlib.evaluation.summary import TARGETS
from medlib.models import loading
from medlib.reporting import plots
from medlib.stats.text import SPACE

TARGET = TARGETS["accuracy"]
ALPHA = 0.05  # below this a p-value is called evidence
UNBROKEN = re.compile(r" (?=%)|(?<=,) (?=[-+.\d]+\])")  # the spaces inside "1.2% [0.1, 2.3]"


def disclaimer(config: RunConfig) -> str:
    """What the numbers of this run may be used for."""
    images = f"images from {data_name(config)}" if config.data_dir else "synthetic images"
    end = " ".join(filter(None, [own_suites.shared(config), "Not a medical device."]))
    if loading.is_standin(config.model):
        return f"> **Stand-in model, {images}.** {STANDIN_NOTICE} {end}"
    limits = (
        f"Its numbers hold for cases like those of {data_name(config)}, if for any."
        if config.data_dir
        else "The held-out suite has synthetic images, so its numbers say nothing about patients."
    )
    return f"> **Research only.** This run used {loading.model_label(config)}. {limits} {end}"


def table(frame: pd.DataFrame, name: str = "table") -> HTML:
    """A table with wrapped text, words to the left and numbers to the right.

    Parameters
    ----------
    frame : DataFrame
    name : str
        Prefix of its styles, so that two tables of one page do not share them.
    """
    columns = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]
    numbers = [f".col{i}" for i, column in enumerate(frame.columns) if column in columns]
    styles = [
        {
            "selector": "th, td",
            "props": "text-align: left; vertical-align: top; white-space: normal; max-width: 34em",
        },
        *({"selector": f"td{n}, th{n}", "props": "text-align: right"} for n in numbers),
    ]
    frame = frame.map(lambda cell: UNBROKEN.sub(SPACE, cell) if isinstance(cell, str) else cell)
    styler = (
        frame.style.hide(axis="index")
        .set_table_styles(styles)
        .format(na_rep="n/a", thousands=",", precision=3, escape="html")
    )
    styler.cell_ids = False
    return HTML(styler.to_html(table_uuid=name))


# ---- scenarios and images ----------------------------------------------------------------------


def one_per_modality(scenarios: list[LabelledCase], limit: int = 4) -> list[LabelledCase]:
    """The first scenario of each of ``limit`` modalities, verdicts in turn, so that both are seen."""
    chosen, present = [], dict.fromkeys(s.modality for s in scenarios)
    # the project's own order first, then that of the data
    ordered = [m for m in MODALITIES if m in present] + [m for m in present if m not in MODALITIES]
    for number, modality in enumerate(ordered[:limit]):
        here = [s for s in scenarios if s.modality == modality]
        wanted = ("CORRECT", "ERROR")[number % 2]
        chosen += [s for s in here if s.verdict == wanted][:1] or here[:1]
    return chosen


def data_name(config: RunConfig) -> str:
    """What `medlib.data.sources.described` describes, in a word or two."""
    return Path(config.data_dir).name if config.data_dir else "core24"


def banner(config: RunConfig, is_core: bool) -> str:
    """What the images of a suite are; generated ones are drawn."""
    if config.data_dir:
        return f"images from {data_name(config)}"
    if is_core and config.images_dir:
        return f"images from {Path(config.images_dir).name}"
    return "synthetic"


def scenario_sheet(suite: Suite, scenarios: list[LabelledCase], label: str = "synthetic") -> Figure:
    """Images of scenarios, each with note, treatment and gold verdict below."""
    images = [suite.image(s) for s in scenarios]
    captions = [
        f"{s.modality}. Note: {s.finding}. Treatment: {s.treatment}. Gold verdict: {s.verdict}" for s in scenarios
    ]
    return plots.contact_sheet(images, captions, columns=2, banner=label)


# ---- training ------------------------------------------------------------------------------------


def facts(values: Mapping, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A mapping as a table of two columns; ``names`` chooses, orders and words the rows."""
    names = names or {name: name.replace("_", " ") for name in values}
    return pd.DataFrame({"Fact": list(names.values()), "Value": [fact(values.get(name)) for name in names]})


def fact(value) -> str:
    """Any value of a setting or measurement as words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,.4g}" if isinstance(value, float) else (f"{value:,}" if isinstance(value, int) else str(value))
    )


# ---- benchmark -----------------------------------------------------------------------------------


def ladder(results: Results, config: RunConfig, suite: str = "heldout") -> dict[str, dict]:
    """Scores of the ladder under names that a reader knows, lowest rung first."""
    names = summary.figure_names(config)
    return {names.get(name, name): score for name, score in results.scores(suite).items()}


GROUPS = {
    "source": "Source of the verdict",
    "pair_kind": "Kind of pair",
    "modality": "Modality",
    "image_finding": "What the image shows",
    "dataset": "Where the image comes from",
    "population": "Population",
}


def groups(frame: pd.DataFrame) -> dict[str, str]:
    """Columns of `GROUPS` that the cases have, with their titles; drawn images have no population."""
    return {column: title for column, title in GROUPS.items() if column in frame and frame[column].notna().any()}


def group_figure(frame: pd.DataFrame, column: str) -> Figure:
    """Accuracy bars of every group of a column, worst first."""
    groups = stats.by_group(frame, column).sort_values("accuracy")
    scores = {
        str(row[column]).replace("_", " "): {
            "accuracy": {"value": row["accuracy"], "n": row["n"], "low": row["low"], "high": row["high"]}
        }
        for _, row in groups.iterrows()
    }
    return plots.ablation_bars(scores, title=GROUPS.get(column, column))


def with_adapter(config: RunConfig) -> RunConfig:
    """The configuration, if the adapter is among its systems: 08 and 09 are about it.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if ADAPTER not in config.systems:
        raise ConfigError(
            f"systems: this notebook is about {ADAPTER}; add it, or run `python -m medlib benchmark`"
        )
    return config
