"""Write a run's results into the README."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlib.evaluation.results import run_seed
from medlib.evaluation.summary import scores_written
from medlib.reporting import pages, plots
from medlib.reporting.execute import NOTEBOOKS
from medlib.stats.text import results_table, to_markdown

# ---- README --------------------------------------------------------------------------------------

README = NOTEBOOKS.parent / "README.md"
RESULTS_MARKS = "<!-- results: written by `make report` -->", "<!-- end of results -->"


def write_heatmap(metrics: dict, file: Path) -> Path:
    """The README's figure: accuracy of every system on every modality of the held-out suite, 800 pixels wide."""
    names = metrics.get("names") or {}
    scores = {names.get(name, name): score for name, score in metrics["systems"].items()}
    figure = plots.modality_heatmap(scores, "accuracy", "Accuracy on the held-out suite")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=800 / plots.WIDTH, metadata={"Software": None})
    return file


def update_readme(run_dir: str | Path, readme: str | Path = README) -> Path:
    """Write the run's tables between the two marks of the README, and its heat map: no figure is typed.

    Raises
    ------
    FileNotFoundError
        If the run has no ``metrics.json``.
    ValueError
        If the README lacks the marks.
    """
    readme, metrics_file = Path(readme), Path(run_dir) / "metrics.json"
    if not metrics_file.is_file():
        raise FileNotFoundError(f"{metrics_file}: no results; run the evaluation first")
    text, (start, end) = readme.read_text(encoding="utf-8"), RESULTS_MARKS
    if not 0 <= text.find(start) < text.find(end):
        raise ValueError(f"{readme}: the marks {start!r} and {end!r} are missing")
    metrics = pages.read_json(metrics_file)
    write_heatmap(metrics, readme.parent / "docs" / "figures" / "heatmap.png")
    results = _results_markdown(metrics, pages.read_json(Path(run_dir) / "run.json"))
    before, after = text.split(start)[0], text.split(end)[1]
    readme.write_text(f"{before}{start}\n\n{results}\n\n{end}{after}", encoding="utf-8")
    return readme


def _row_name(name: str, names: dict[str, str]) -> str:
    """A reader's name for ``medgemma-lora`` or, with a part of the input withheld, ``medgemma-lora text_only``."""
    system, _, withheld = name.partition(" ")
    return names.get(system, system) + (f", {withheld.replace('_', ' ')}" if withheld else "")


SUITE_TITLES = {
    "heldout": "Held-out suite, generated",
    "core24_val": "Core set, 8 validation cases",
    "core24_folds": "Core set, all 24, leave one image group out (adapter of the other core cases only)",
}


def _results_markdown(metrics: dict, record: dict) -> str:
    parameters, names = record["parameters"], metrics.get("names") or {}
    parts = [metrics["headline"], *filter(None, [metrics.get("recommendation")])]
    for suite, title in SUITE_TITLES.items():
        scores = {s: score for s, score in scores_written(metrics, suite).items() if not run_seed(s)[1]}
        order = [name for name in names if name in scores]
        order += sorted(set(scores) - set(order))
        if order:
            table = results_table({_row_name(name, names): scores[name] for name in order})
            parts += [f"**{title}**", to_markdown(table)]
    for title, rows in metrics["tables"].items():
        parts += [f"**{title}**", to_markdown(pd.DataFrame(rows))]
    made = f"Model `{parameters['model']}` ({parameters['model_kind']}), seed {parameters['seed']}, "
    made += f"revision `{str(record['git'].get('revision'))[:10]}`, {record['timestamp'][:10]}."
    return "\n\n".join([*parts, made])
