"""Write a run's results into the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from medlib.config import files, path
from medlib.evaluation import measured
from medlib.evaluation.results import run_seed
from medlib.evaluation.summary import scores_written
from medlib.reporting import gallery, plots
from medlib.reporting.execute import NOTEBOOKS
from medlib.stats.text import percent, points, rate_text, results_table, to_markdown

# ---- README --------------------------------------------------------------------------------------

README = NOTEBOOKS.parent / "README.md"
RESULTS_MARKS = "<!-- results: written by `make report-full` -->", "<!-- end of results -->"
COMPARISON_MARKS = "<!-- drawn against real: written by `--update-reports` -->", "<!-- end of comparison -->"


def write_heatmap(metrics: dict, file: Path) -> Path:
    """The README's figure: accuracy of every system on every modality of the held-out suite, 800 pixels wide."""
    names = metrics.get("names") or {}
    scores = {names.get(name, name): score for name, score in metrics["systems"].items()}
    figure = plots.modality_heatmap(scores, "accuracy", "Accuracy on the held-out suite")
    with files.replacement(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=800 / plots.WIDTH, metadata={"Software": None})
    return file


def update_readme(run_dir: str | Path, readme: str | Path = README) -> Path:
    """Write the run's headline and heat map into the README, and all its tables into docs/results.md.

    They stand between two marks in each file: no figure is typed.

    Raises
    ------
    FileNotFoundError
        If the run has no ``metrics.json``.
    ConfigError
        If its figures are of another adapter, other weights or other data than the run's.
    ValueError
        If a file lacks the marks.
    """
    readme, metrics_file = Path(readme), path(run_dir) / "metrics.json"
    if not metrics_file.is_file():
        raise FileNotFoundError(f"{metrics_file}: no results; run the evaluation first")
    metrics, record = files.read_json(metrics_file), files.read_json(path(run_dir) / "run.json")
    measured.check(run_dir, metrics)
    write_heatmap(metrics, readme.parent / "docs" / "figures" / "heatmap.png")
    made_by = _made_by(record)
    _write(readme, [*claims(metrics), made_by])
    _write(readme.parent / "docs" / "results.md", [*_all_tables(metrics), made_by])
    return readme


def update_comparison(readme: str | Path = README, reports: Path = gallery.REPORTS) -> None:
    """Write `drawn_against` of every data set in ``reports/`` into the README, if there is one."""
    drawn, others = reports / gallery.METRICS, sorted(reports.glob(f"*/{gallery.METRICS}"))
    if drawn.is_file() and others:
        tables = [
            to_markdown(drawn_against(files.read_json(drawn), files.read_json(file), file.parent.name))
            for file in others
        ]
        _write(Path(readme), tables, COMPARISON_MARKS)


def drawn_against(drawn: dict, other: dict, name: str) -> pd.DataFrame:
    """Every system on the held-out drawn images and on the held-out images of a data set of one's own.

    Parameters
    ----------
    drawn, other : the ``metrics.json`` of either run
    name : the data set's
    """
    names, columns = drawn.get("names") or {}, {"Drawn images": drawn, f"Images of {name}": other}

    def cell(metrics: dict, system: str, text: Callable[[dict], str]) -> str:
        scores = metrics["systems"].get(system)
        return text(scores) if scores else "not asked"

    return pd.DataFrame(
        [
            {
                "System": names.get(system, system),
                **{title: cell(m, system, lambda s: rate_text(s["accuracy"])) for title, m in columns.items()},
                "Spread (points)": " / ".join(
                    cell(m, system, lambda s: points(s["spread"])) for m in columns.values()
                ),
            }
            for system in drawn["systems"]
            if not run_seed(system)[1]
        ]
    )


def claims(metrics: dict) -> list[str]:
    """What the README says of a run, each with a link to the tables that carry it."""
    known = " ".join(filter(None, [metrics["headline"], composed(metrics)]))
    said = {SUITE_TITLES["heldout"]: known, "Harder suites": metrics.get("recommendation")}
    return [f"{text} ([table](docs/results.md#{_anchor(title)}))" for title, text in said.items() if text]


def _anchor(title: str) -> str:
    """GitHub's name for a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def composed(metrics: dict) -> str | None:
    """What the untouched stand-in knew beforehand, beside the headline; None if it was not asked."""
    asked = metrics["systems"].get("two-questions")
    return asked and (
        "Asked two questions of its own pretraining, the untouched stand-in has "
        f"{percent(asked['accuracy']['value'])} of these verdicts right: LoRA taught it to compose what it knew."
    )


def _write(file: Path, parts: Sequence[str | None], marks: tuple[str, str] = RESULTS_MARKS) -> None:
    text, (start, end) = file.read_text(encoding="utf-8"), marks
    if not 0 <= text.find(start) < text.find(end):
        raise ValueError(f"{file}: the marks {start!r} and {end!r} are missing")
    results = "\n\n".join(part.strip() for part in parts if part)
    before, after = text.split(start)[0], text.split(end)[1]
    files.write_text(file, f"{before}{start}\n\n{results}\n\n{end}{after}")


def _row_name(name: str, names: dict[str, str]) -> str:
    """A reader's name for ``medgemma-lora`` or, with a part of the input withheld, ``medgemma-lora text_only``."""
    system, _, withheld = name.partition(" ")
    return names.get(system, system) + (f", {withheld.replace('_', ' ')}" if withheld else "")


SUITE_TITLES = {
    "heldout": "Held-out suite (drawn images), and the adapter with a part of the input withheld",
    "core24_val": "Core set, 8 validation cases (drawn images unless real ones are given)",
    "core24_folds": "Core set, all 24 (same images), leave one image group out (adapter of the others only)",
}


def _table(metrics: dict, suite: str, withheld: bool = False) -> str | None:
    """Markdown table of every system on a suite; ``withheld`` adds the ablations."""
    names = metrics.get("names") or {}
    scores = {s: score for s, score in scores_written(metrics, suite).items() if not run_seed(s)[1]}
    order = [name for name in names if name in scores]
    order += sorted(name for name in scores if name not in order and (withheld or " " not in name))
    return to_markdown(results_table({_row_name(n, names): scores[n] for n in order})) if order else None


def _all_tables(metrics: dict) -> list[str]:
    tables = {title: _table(metrics, suite, withheld=True) for suite, title in SUITE_TITLES.items()}
    tables |= {title: to_markdown(pd.DataFrame(rows)) for title, rows in metrics["tables"].items()}
    return [f"### {title}\n\n{table}" for title, table in tables.items() if table]


def _made_by(record: dict) -> str:
    parameters = record["parameters"]
    return (
        f"Model `{parameters['model']}` ({parameters['model_kind']}), seed {parameters['seed']}, "
        f"revision `{str(record['git'].get('revision'))[:10]}`, {record['timestamp'][:10]}."
    )
