"""Commands beyond a single run: sweep, publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medlib.cli import options
from medlib.cli.options import Model, Profile, RunDir, Seed, Settings, configuration

app = options.app()


@app.command()
def sweep(
    trials: Annotated[int, typer.Option(min=1, help="in all, those of earlier calls included")] = 20,
    space: Annotated[str, typer.Option(help="name in profiles/sweep/, or a YAML file")] = "lora",
    storage: Annotated[
        Optional[str],
        typer.Option(help="journal:FILE or a database URL that machines share; default: RUN_DIR/sweep.db"),
    ] = None,
    name: Annotated[str, typer.Option(help="the study's name in its storage")] = "lora",
    profile: Profile = None,
    model: Model = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    settings: Settings = None,
) -> None:
    """Search rank, learning rate, epochs and dropout for the least validation loss; resumes."""
    from medlib.config import ROOT, ConfigError, path

    try:
        from medlib.reporting import sweep as sweeping
    except ImportError as error:
        raise ConfigError(f"a sweep needs Optuna: pip install '.[sweep]' ({error})") from None

    run_dir = run_dir or str(ROOT / "runs" / "sweep")
    if storage and storage.startswith("journal:"):
        storage = f"journal:{options.place(storage.removeprefix('journal:'))}"
    config = configuration("sweep", profile, settings, model=model, run_dir=run_dir, seed=seed)
    study = sweeping.sweep(config, trials, space, storage, name)
    print(sweeping.table(study).to_string(index=False, float_format="{:.4g}".format))
    sweeping.write_best(study, path(config.run_dir) / "best.yaml")
    print(f"the best as a profile: {config.run_dir}/best.yaml")


@app.command()
def publish(
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub")],
    upload: Annotated[bool, typer.Option("--upload/--dry-run", help="or only write the folder")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="the whole model, not the adapter")] = False,
    private: Annotated[bool, typer.Option("--private/--public", help="of a new repository")] = True,
    terms: Annotated[Optional[Path], typer.Option(help="copy of the base model's terms")] = None,
    endpoint: Annotated[Optional[str], typer.Option(help="another Hub")] = None,
    profile: Profile = None,
    model: Model = None,
    run_dir: RunDir = None,
    settings: Settings = None,
) -> None:
    """Write adapter or merged model with its card, and upload it if asked to."""
    from medlib.reporting import publish as publishing

    config = configuration("publish", profile, settings, model=model, run_dir=run_dir)
    files = publishing.publish(config, repo_id, not upload, merged, private, terms, endpoint)
    print(files.to_string(index=False))
    folder = f"{config.run_dir}/published/{'merged' if merged else 'adapter'}"
    print(f"uploaded to {repo_id}" if upload else f"dry run: nothing was sent; the folder is {folder}")
