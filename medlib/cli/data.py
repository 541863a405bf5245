"""Commands that make what a run needs: data sets and stand-in models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from medlib.cli import options
from medlib.cli.options import DataDir, Images, Masks, Profile, Seed, Settings, configuration

app = options.app()


@app.command()
def data(
    profile: Profile = None,
    data: DataDir = None,
    images: Images = None,
    allow_masks: Masks = None,
    seed: Seed = None,
    audit: Annotated[bool, typer.Option(help="also look for shortcuts, leaks and broken images")] = True,
    check: Annotated[
        Optional[str], typer.Option(metavar="DIR", help="only check a data set of your own: a folder or a table")
    ] = None,
    settings: Settings = None,
) -> None:
    """Rebuild the core set and the suites, check them and audit the core set; or check a data set of your own.

    With --data divide that data set instead, and audit its cases.
    """
    from medlib.config.errors import printable
    from medlib.data import core24, sources

    if check is not None:
        _check(check, seed or 0)
        return
    config = configuration("data", profile, settings, images, data_dir=data, allow_masks=allow_masks, seed=seed)
    if config.data_dir is None:
        counts = core24.build(sources.CORE_DIR)
        core24.verify(sources.CORE_DIR)
        print(f"core24, hashes match: {json.dumps(counts)}")
    if audit:
        for issue in sources.audit(config):
            print(printable(f"{issue.severity.upper():8} {issue.check}: {issue.message}"))
    for name, suite in sources.prepare(config).items():
        print(f"{name}: {len(suite.scenarios)} scenarios, sha256 {suite.sha256[:16]}")


def _check(where: str, seed: int) -> None:
    """Print what there is to know about a data set; exit status 1 if a row cannot be read."""
    from medlib.config.errors import printable
    from medlib.data.check import check

    report = check(where, seed, progress=sys.stderr.isatty())
    print(printable(report.text()))
    if report.data.unread:
        raise typer.Exit(1)


@app.command()
def standin(
    which: Annotated[str, typer.Argument(help="medgemma, biomedclip or both")] = "both",
    out: Annotated[
        Optional[Path],
        typer.Option(help="folder that gets a folder for each model; default: the repository's models"),
    ] = None,
    data: DataDir = None,
    seed: Annotated[int, typer.Option(help="with --data the seed of the run, which divides the images")] = 0,
    allow_shared_groups: Annotated[bool, typer.Option("--allow-shared-groups", help="as for a run")] = False,
    settings: Annotated[
        Optional[list[str]], typer.Option("--set", help="with --data: how to fine-tune, name=value; repeatable")
    ] = None,
) -> None:
    """Rebuild the stand-in models from nothing (about 40 minutes on two cores).

    With --data fine-tune them instead on the training side of your own labelled images (at most an hour); run
    again to resume after an interruption.
    """
    from medlib.config import ROOT, ConfigError
    from medlib.models.standin import biomedclip, medgemma

    out = out or ROOT / "models"
    if which not in ("both", "medgemma", "biomedclip"):
        raise ConfigError(f"standin {which!r}: expected medgemma, biomedclip or both")
    if data is not None:
        _own_standins(which, out, data, seed, allow_shared_groups, settings or [])
        return
    if settings or allow_shared_groups:
        raise ConfigError("standin: --set and --allow-shared-groups need --data")
    if which != "biomedclip":
        captions = medgemma.build(out / "medgemma-nano", seed=seed)["captions"]
        print(f"captions of held-out images: {captions['accuracy']:.1%} right (n={captions['n']})")
    if which != "medgemma":
        biomedclip.build(out / "biomedclip-nano", seed=seed)


def _own_standins(which: str, out: Path, data: str, seed: int, allow_shared: bool, settings: list[str]) -> None:
    from pydantic import ValidationError

    from medlib.config import ConfigError, resolve
    from medlib.models.standin import own

    config = resolve("standin", data_dir=options.data_place(data), seed=seed, allow_shared_groups=allow_shared)
    try:
        values = dict(item.split("=", 1) for item in settings)
        chosen = own.Recipe.model_validate(values)
    except ValueError as error:
        listed = error.errors() if isinstance(error, ValidationError) else []
        reasons = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in listed) or "expected name=value"
        raise ConfigError(f"--set: {reasons} (names: {', '.join(own.Recipe.model_fields)})") from None
    for name, measured in own.build(config, out, which, chosen).items():
        naming = measured["naming"]
        by_modality = ", ".join(f"{m} {rate['value']:.1%}" for m, rate in naming["by_modality"].items())
        print(f"{name}, naming on the validation side: {by_modality} (n={naming['all']['n']})")
