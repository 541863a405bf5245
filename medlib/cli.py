"""Command line over the same functions as the notebooks: ``python -m medlib --help``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Fine-tune MedGemma with LoRA to audit clinical decisions, and measure it.")

Profile = Annotated[str, typer.Option(help="settings file in profiles/")]
Model = Annotated[Optional[str], typer.Option(help="hub name or folder, e.g. google/medgemma-4b-it")]
RunDir = Annotated[Optional[str], typer.Option(help="folder of the run")]
Images = Annotated[Optional[Path], typer.Option("--images", "--images-dir",
                                                help="folder with the real core24 pictures")]
Masks = Annotated[Optional[bool], typer.Option("--allow-masks/--no-allow-masks",
                                               help="accept masks in place of scans")]
Settings = Annotated[Optional[list[str]], typer.Option("--set", help="another setting, name=value; repeatable")]
Seed = Annotated[Optional[int], typer.Option(help="seed of everything random")]
Rows = Annotated[Optional[list[str]], typer.Option(
    "--model", help="a row of the benchmark (constant, biomedclip, medgemma-lora, openai:gpt-4o, ...; "
                    "repeatable), or the hub name or folder of the base model")]
Adapter = Annotated[Optional[str], typer.Option(help="adapter folder")]


def _config(profile: str, settings: list[str] | None, images=None, **values):
    import yaml

    from medlib.config import ConfigError, RunConfig, resolve

    values["images_dir"] = str(images.resolve()) if images else None
    for item in settings or []:
        name, found, value = item.partition("=")
        if not found:
            raise ConfigError(f"--set {item!r}: expected name=value")
        if name not in RunConfig.model_fields:
            raise ConfigError(f"--set {item!r}: {name!r} is not one of {', '.join(RunConfig.model_fields)}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {item!r}: the value is not valid YAML") from None
    return resolve(profile, **values)


def _rows_and_base(names: list[str] | None) -> tuple[tuple[str, ...] | None, str | None]:
    """Split ``--model`` into rows of the benchmark and the base model's name."""
    from medlib import systems
    from medlib.config import ConfigError

    rows = [name for name in names or [] if systems.is_system(name)]
    bases = [name for name in names or [] if name not in rows]
    if len(bases) > 1:
        raise ConfigError(f"--model names two base models: {', '.join(bases)}; rows: {', '.join(systems.names())}")
    return tuple(rows) or None, bases[0] if bases else None


@app.command()
def data(profile: Profile = "standin", images: Images = None, allow_masks: Masks = None, seed: Seed = None,
         audit: Annotated[bool, typer.Option(help="also look for shortcuts, leaks and broken pictures")] = True,
         settings: Settings = None) -> None:
    """Rebuild the core set and the suites, check them and audit the core set."""
    from medlib import core24
    from medlib import data as datasets

    config = _config(profile, settings, images, allow_masks=allow_masks, seed=seed)
    counts = core24.build(datasets.CORE_DIR)
    core24.verify(datasets.CORE_DIR)
    print(f"core24, hashes match: {json.dumps(counts)}")
    if audit:
        for issue in datasets.audit_core(config):
            print(f"{issue.severity.upper():8} {issue.check}: {issue.message}")
    for name, suite in datasets.prepare(config).items():
        print(f"{name}: {len(suite.scenarios)} scenarios, sha256 {suite.sha256[:16]}")


@app.command()
def standin(
    which: Annotated[str, typer.Argument(help="medgemma, biomedclip or both")] = "both",
    out: Annotated[Path, typer.Option(help="folder that gets medgemma-nano and biomedclip-nano")] = Path("models"),
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Rebuild the stand-in models from nothing (about 40 minutes on two cores)."""
    from medlib import dual_standin
    from medlib import standin as nano
    from medlib.config import ConfigError

    if which not in ("both", "medgemma", "biomedclip"):
        raise ConfigError(f"standin {which!r}: expected medgemma, biomedclip or both")
    if which != "biomedclip":
        captions = nano.build(out / "medgemma-nano", seed=seed)["captions"]
        print(f"captions of held-out pictures: {captions['accuracy']:.1%} right (n={captions['n']})")
    if which != "medgemma":
        dual_standin.build(out / "biomedclip-nano", seed=seed)


@app.command()
def train(
    profile: Profile = "standin", model: Model = None, run_dir: RunDir = None, images: Images = None,
    allow_masks: Masks = None, seed: Seed = None,
    epochs: Annotated[Optional[float], typer.Option(help="passes over the training data")] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="scenarios a forward pass")] = None,
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
    from medlib import launch, workflow

    config = _config(profile, settings, images, model=model, run_dir=run_dir, allow_masks=allow_masks, seed=seed,
                     epochs=epochs, batch_size=batch_size, lr=lr, lora_rank=lora_rank, lora_alpha=lora_alpha,
                     lora_dropout=lora_dropout, weight_decay=weight_decay, use_8bit=use_8bit)
    if dry_run:
        print(json.dumps(workflow.dry_run(config, profile), indent=2))
        return
    launch.say(f"adapter: {workflow.train(config)}")


@app.command()
def evaluate(model: Rows = None, profile: Profile = "standin", run_dir: RunDir = None, images: Images = None,
             allow_masks: Masks = None, seed: Seed = None, adapter: Adapter = None, settings: Settings = None,
             ) -> None:
    """Score base and adapter (or the rows named): core24, folds over core24, held-out suite, ablations."""
    from medlib import benchmark

    _score(benchmark.evaluate, model, profile, settings, images, run_dir=run_dir, allow_masks=allow_masks,
           seed=seed, adapter=adapter)


@app.command("benchmark")
def run_benchmark(model: Rows = None, profile: Profile = "standin", run_dir: RunDir = None, images: Images = None,
                  allow_masks: Masks = None, seed: Seed = None, adapter: Adapter = None, settings: Settings = None,
                  ) -> None:
    """Score every row of the ladder, or the rows named, on every suite."""
    from medlib import benchmark

    _score(benchmark.benchmark, model, profile, settings, images, run_dir=run_dir, allow_masks=allow_masks,
           seed=seed, adapter=adapter)


@app.command()
def report(profile: Profile = "standin", model: Model = None, run_dir: RunDir = None, images: Images = None,
           allow_masks: Masks = None, seed: Seed = None,
           update_readme: Annotated[bool, typer.Option(help="write the results into README.md")] = False,
           settings: Settings = None) -> None:
    """Run every notebook headless and render the run as web pages."""
    from medlib import provenance
    from medlib import report as reporting

    run_dir = run_dir or f"runs/{provenance.new_run_id(profile)}"
    config = _config(profile, settings, images, model=model, run_dir=run_dir, allow_masks=allow_masks, seed=seed)
    reporting.run_notebooks(run_dir, config.model_dump(mode="json") | {"profile": profile})
    page = reporting.render(run_dir)
    if update_readme:
        reporting.update_readme(run_dir)
    print(f"report: {page}")


def _score(unnamed, model, profile, settings, images, **values) -> None:
    """Benchmark the rows that ``--model`` names, or do what the command does if it names none."""
    from medlib import benchmark

    rows, base = _rows_and_base(model)
    config = _config(profile, settings, images, model=base, systems=rows, **values)
    _print_scores(config, benchmark.benchmark(config) if rows else unnamed(config))


def _print_scores(config, frames) -> None:
    """The suites that hold a claim; the altered pictures are shown as curves in 04_benchmark."""
    from medlib import metrics
    from medlib.config import path

    for suite in ("heldout", "paraphrase", "contradiction", "core24_val", "core24_folds"):
        scores = {key.rsplit("/", 1)[0]: metrics.score(frame) for key, frame in frames.items()
                  if key.endswith(f"/{suite}")}
        if scores:
            print(f"\n{suite}\n{metrics.to_markdown(metrics.results_table(scores))}")
    found = json.loads((path(config.run_dir) / "metrics.json").read_text(encoding="utf-8"))
    for name, reason in found["not_run"].items():
        print(f"{name}: not run ({reason})")


def main() -> None:
    """Run a command; a problem that the user can mend is one message, not a traceback."""
    from medlib.config import ConfigError
    from medlib.schema import DataError

    try:
        app()
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "ModelError" and "notebook" not in str(error):
            raise
        sys.exit(f"error: {error}")


from medlib import cli_extra  # noqa: E402, F401  adds its commands to the app, so it comes last
