"""Commands that learn from raters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medlib.cli import options
from medlib.cli.options import Model, Profile, Ratings, RunDir, Seed, Settings, configuration

app = options.app()


@app.command()
def rl(
    profile: Profile = None,
    model: Model = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    ratings: Ratings = None,
    settings: Settings = None,
) -> None:
    """Learn from feedback by PPO, GRPO and DPO, and say which to use; run again to resume."""
    from medlib.evaluation import benchmark
    from medlib.feedback.rl import runs
    from medlib.reporting.notebooks import rl as page
    from medlib.stats.text import to_markdown

    config = configuration("rl", profile, settings, model=model, run_dir=run_dir, seed=seed, ratings=ratings)
    runs.improve(config)
    results = benchmark.after_feedback(config)
    print(to_markdown(page.methods_table(results, config)))
    print(page.recommendation(results, config))


@app.command()
def preferences(
    out: Annotated[Path, typer.Argument(help="JSONL file to write")],
    profile: Profile = None,
    run_dir: RunDir = None,
    ratings: Ratings = None,
    settings: Settings = None,
) -> None:
    """Write the raters' consensus as a preference data set that TRL and `datasets` read."""
    from medlib.feedback import preferences as preference_set

    config = configuration("preferences", profile, settings, run_dir=run_dir, ratings=ratings)
    print(f"preferences: {preference_set.export(config, out.resolve())}")
