"""Options that several commands share, and the configuration made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

Profile = Annotated[
    Optional[str],
    typer.Option(help="settings file in profiles/; default: standin, or the run's own settings once it has any"),
]
Model = Annotated[Optional[str], typer.Option(help="hub name or folder, e.g. google/medgemma-4b-it")]
RunDir = Annotated[Optional[str], typer.Option(help="folder of the run")]
DataDir = Annotated[
    Optional[str],
    typer.Option("--data", "--data-dir", help="folder or hub name of your own cases or labelled images"),
]
Images = Annotated[
    Optional[Path], typer.Option("--images", "--images-dir", help="folder with the real core24 images")
]
Masks = Annotated[
    Optional[bool], typer.Option("--allow-masks/--no-allow-masks", help="accept masks in place of scans")
]
SharedGroups = Annotated[
    Optional[bool],
    typer.Option("--allow-shared-groups/--no-allow-shared-groups", help="accept a split that shares groups"),
]
Settings = Annotated[Optional[list[str]], typer.Option("--set", help="another setting, name=value; repeatable")]
Seed = Annotated[Optional[int], typer.Option(help="seed of everything random")]
Rows = Annotated[
    Optional[list[str]],
    typer.Option(
        "--model",
        help="a row of the benchmark (constant, biomedclip, medgemma-lora, openai:gpt-4o, ...; "
        "repeatable), or the hub name or folder of the base model",
    ),
]
Adapter = Annotated[Optional[str], typer.Option(help="adapter folder")]
Ratings = Annotated[Optional[str], typer.Option(help="SQLite file of ratings; default: simulated raters")]


def app() -> typer.Typer:
    """An app to which a group of commands is added."""
    return typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


#: Settings that are paths, and those that are paths or names on the hub.
PATHS = ("run_dir", "adapter", "ratings", "images_dir")
PLACES_OR_NAMES = ("data_dir", "model", "biomedclip")
#: Commands that start from the profile; the others continue a run with its own settings.
STARTS = ("data", "train", "sweep")


def configuration(step: str, profile: str | None, settings: list[str] | None, images=None, **values):
    """The configuration of a command: the profile or the run's own settings, the options, every ``--set``.

    Raises
    ------
    ConfigError
        An unknown setting, one that this command does not use, or one that a finished run can no longer change.
    """
    import yaml

    from medlib.config import ConfigError, RunConfig, resolve, runs

    values["images_dir"] = images
    for item in settings or []:
        name, found, value = item.partition("=")
        if not found:
            raise ConfigError(f"--set {item!r}: expected name=value")
        if name not in RunConfig.model_fields:
            raise ConfigError(f"--set {item!r}: {name!r} is not one of {', '.join(RunConfig.model_fields)}")
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a number of 5,000 digits
            raise ConfigError(f"--set {item!r}: the value is not valid YAML") from None
        if values[name] is None:
            raise ConfigError(f"--set {item!r}: no value; a setting that is to stay as it is, is omitted")
    for names, placed in ((PATHS, place), (PLACES_OR_NAMES, data_place)):
        values |= {name: placed(values[name]) for name in names if isinstance(values.get(name), (str, Path))}
    if step not in STARTS:
        return runs.settings_for(step, values, profile)
    runs.check_used(step, values)
    return resolve(profile or "standin", **values)


def place(name: str | Path) -> str:
    """A path of the command line as the library takes it.

    On the command line a relative path begins at the folder that one is in, in the library and in run.json at
    the repository.
    """
    from medlib.config import ROOT

    full = Path(os.path.abspath(os.path.expanduser(name)))
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else str(full)


def data_place(data: str) -> str:
    """`place` of a file or folder; what is none here is a folder of the repository, or a name on the hub."""
    return place(data) if os.path.exists(os.path.expanduser(data)) else data


def row(name: str) -> str:
    """A row of the benchmark as the library takes it: the folder of ``vllm:FOLDER`` is one of the command line."""
    kind, colon, model = name.partition(":")
    return f"{kind}:{data_place(model)}" if colon and kind == "vllm" else name


def rows_and_base(names: list[str] | None) -> tuple[tuple[str, ...] | None, str | None]:
    """Split ``--model`` into rows of the benchmark and the base model's name."""
    from medlib import systems
    from medlib.config import ConfigError

    rows = [row(name) for name in names or [] if systems.is_system(name)]
    bases = [name for name in names or [] if not systems.is_system(name)]
    if len(bases) > 1:
        raise ConfigError(f"--model names two base models: {', '.join(bases)}; rows: {', '.join(systems.names())}")
    return tuple(rows) or None, bases[0] if bases else None
