"""Options that several commands share, and the configuration made of them."""

from __future__ import annotations

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

    values["images_dir"] = str(images.resolve()) if images else None
    if values.get("data_dir"):
        values["data_dir"] = data_place(values["data_dir"])
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
    if step not in STARTS:
        return runs.settings_for(step, values, profile)
    runs.check_used(step, values)
    return resolve(profile or "standin", **values)


def data_place(data: str) -> str:
    """The folder from anywhere; what is no folder here is the name of a hub data set."""
    return str(Path(data).resolve()) if Path(data).exists() else data


def rows_and_base(names: list[str] | None) -> tuple[tuple[str, ...] | None, str | None]:
    """Split ``--model`` into rows of the benchmark and the base model's name."""
    from medlib import systems
    from medlib.config import ConfigError

    rows = [name for name in names or [] if systems.is_system(name)]
    bases = [name for name in names or [] if name not in rows]
    if len(bases) > 1:
        raise ConfigError(f"--model names two base models: {', '.join(bases)}; rows: {', '.join(systems.names())}")
    return tuple(rows) or None, bases[0] if bases else None
