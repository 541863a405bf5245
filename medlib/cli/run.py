"""Commands of a run: train, evaluate, benchmark, report."""

from __future__ import annotations

import json
import os
from typing import Annotated, Optional

import typer

from medlib.cli import options
from medlib.cli.options import (
    Adapter,
    DataDir,
    Images,
    Masks,
    Model,
    Profile,
    Rows,
    RunDir,
    Seed,
    Settings,
    SharedGroups,
    configuration,
    rows_and_base,
)

app = options.app()


@app.command()
def train(
    profile: Profile = None,
    model: Model = None,
    run_dir: RunDir = None,
    data: DataDir = None,
    images: Images = None,
    allow_masks: Masks = None,
    allow_shared_groups: SharedGroups = None,
    seed: Seed = None,
    epochs: Annotated[Optional[float], typer.Option(help="passes over the training data")] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="scenarios per forward pass")] = None,
    lr: Annotated[Optional[float], typer.Option(help="peak learning rate")] = None,
    lora_rank: Annotated[Optional[int], typer.Option()] = None,
    lora_alpha: Annotated[Optional[int], typer.Option()] = None,
    lora_dropout: Annotated[Optional[float], typer.Option()] = None,
    weight_decay: Annotated[Optional[float], typer.Option()] = None,
    use_8bit: Annotated[Optional[bool], typer.Option("--use-8bit/--no-use-8bit", help="base in 8 bit")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="load and count, train nothing")] = False,
    settings: Settings = None,
) -> None:
    """Train a LoRA adapter; run again to resume after an interruption."""
    from medlib.training import processes, supervised

    config = configuration(
        "train",
        profile,
        settings,
        images,
        data_dir=data,
        model=model,
        run_dir=run_dir,
        allow_masks=allow_masks,
        allow_shared_groups=allow_shared_groups,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        weight_decay=weight_decay,
        use_8bit=use_8bit,
    )
    if dry_run:
        print(json.dumps(supervised.dry_run(config, profile), indent=2))
        return
    processes.say(f"adapter: {supervised.train(config)}")


def _scoring(step: str, about: str) -> None:
    """A command that scores systems: both take the same flags."""

    def command(
        model: Rows = None,
        profile: Profile = None,
        run_dir: RunDir = None,
        data: DataDir = None,
        images: Images = None,
        allow_masks: Masks = None,
        allow_shared_groups: SharedGroups = None,
        seed: Seed = None,
        adapter: Adapter = None,
        settings: Settings = None,
    ) -> None:
        shared = dict(allow_masks=allow_masks, allow_shared_groups=allow_shared_groups, seed=seed)
        _score(step, model, profile, settings, images, data_dir=data, run_dir=run_dir, adapter=adapter, **shared)

    app.command(step, help=about)(command)


_scoring(
    "evaluate", "Score base and adapter (or the rows named): core24, folds over core24, held-out suite, ablations."
)
_scoring("benchmark", "Score every row of the ladder, or the rows named, on every suite.")


@app.command()
def report(
    profile: Profile = None,
    model: Model = None,
    run_dir: RunDir = None,
    data: DataDir = None,
    images: Images = None,
    allow_masks: Masks = None,
    allow_shared_groups: SharedGroups = None,
    seed: Seed = None,
    update_readme: Annotated[bool, typer.Option(help="write the results on drawn images into README.md")] = False,
    update_reports: Annotated[bool, typer.Option(help="copy the executed notebooks to reports/")] = False,
    settings: Settings = None,
) -> None:
    """Run every notebook headless and render the run as web pages."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads beside another process wait for each other
    from medlib.config import ROOT, jobs, provenance, runs
    from medlib.data import sources
    from medlib.evaluation import benchmark
    from medlib.reporting import execute, gallery, pages, readme

    run_dir = options.place(run_dir or ROOT / "runs" / provenance.new_run_id(profile or "standin"))
    before = runs.recorded(run_dir)
    given = dict(
        data_dir=data,
        model=model,
        run_dir=run_dir,
        allow_masks=allow_masks,
        allow_shared_groups=allow_shared_groups,
        seed=seed,
    )
    config = configuration("report", profile, settings, images, **given)
    runs.record(config)
    execute.run_notebooks(
        run_dir,
        {"profile": None},
        resume=before == config,  # every notebook reads run.json; after a change there all are out of date
        first=(sources.prepare, (config,)),
        ahead=(benchmark.without_adapter, (config,)),
        processes=jobs.count(config.processes),
    )
    page = pages.render(run_dir)
    if update_reports:
        gallery.update(run_dir)
        readme.update_comparison()
    if update_readme:
        readme.update_readme(run_dir)
    print(f"report: {page}")


def _score(step, model, profile, settings, images, **values) -> None:
    """Benchmark the rows that ``--model`` names, or do what the command does if it names none."""
    from medlib.evaluation import benchmark

    rows, base = rows_and_base(model)
    config = configuration("benchmark" if rows else step, profile, settings, images, model=base, **values)
    evaluate = step == "evaluate" and not rows
    benchmark.evaluate(config) if evaluate else benchmark.benchmark(config, rows)
    _print_scores(config)


def _print_scores(config) -> None:
    """The suites that hold a claim; the altered images are shown as curves in 08_benchmark."""
    from medlib.config import files, path
    from medlib.evaluation.summary import scores_written
    from medlib.stats.text import results_table, to_markdown

    metrics = files.read_json(path(config.run_dir) / "metrics.json")
    for suite in ("heldout", "paraphrase", "contradiction", "core24_val", "core24_folds"):
        if scores := scores_written(metrics, suite):
            print(f"\n{suite}\n{to_markdown(results_table(scores))}")
    for name, reason in metrics["not_run"].items():
        print(f"{name}: not run ({reason})")
    for name, count in metrics["refused"].items():
        print(f"{name}: {count:,} cases not judged, which count as wrong; predictions.jsonl says why (refused)")
    if metrics["refused"]:
        raise typer.Exit(1)
