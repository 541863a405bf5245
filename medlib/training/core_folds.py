"""Leave one image group of the core set out: what 24 scenarios can teach."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import RunConfig, jobs, provenance, run_dir
from medlib.config.settings import Model, Run, Training
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, trainer

TITLE = "leave one image group out"


def core_folds(
    config: RunConfig, everything: Suite, loaded: Callable[[], VerdictModel] | None = None
) -> pd.DataFrame:
    """Leave one image group out: an adapter trained on the other core cases alone, for each group.

    Images of one field share a group, so no case is judged by a model that saw its image. Every
    fold's answers are kept under its settings, so that a second call trains nothing. Folds are
    independent and run in `medlib.config.jobs.count` processes.

    Parameters
    ----------
    loaded : gives the base if the folds run in this process; loaded anew by default

    Returns
    -------
    DataFrame of predictions over all core cases, with free answers if the configuration wants them.
    """
    groups = sorted({image_group(s) for s in everything.scenarios})
    files = {g: run_dir(config) / "folds" / f"{_fold_fingerprint(config, everything, g)}.jsonl" for g in groups}
    missing = {group: file for group, file in files.items() if not file.is_file()}
    processes = jobs.count(config.processes)
    if missing and processes == 1:
        _answer(config, everything, missing, (loaded or functools.partial(loading.load_for, config))())
    elif missing:
        # twice as many jobs as processes, so that none ends long before the others
        names, parts = list(missing), 2 * processes
        shares = [{g: missing[g] for g in names[i::parts]} for i in range(min(parts, len(names)))]
        jobs.run(_answer, [(config, everything, share) for share in shares], processes, TITLE)
    return pd.concat(map(stats.read_predictions, files.values()), ignore_index=True)


def _answer(
    config: RunConfig, everything: Suite, files: dict[str, Path], base: VerdictModel | None = None
) -> None:
    """Train and ask the folds of these image groups; each one's answers go into its file."""
    base = base or loading.load_for(config)
    rows = encoding.encode_suites(config, base, [everything])
    for number, (group, file) in enumerate(files.items()):
        jobs.progress(f"{TITLE}: {number} of {len(files)}")
        held_out = everything.rows(i for i, s in enumerate(everything.scenarios) if image_group(s) == group)
        others = [row for row, s in zip(rows, everything.scenarios) if image_group(s) != group]
        stats.write_predictions(file, _fold(config, base, others, held_out, file.with_suffix("")))


def image_group(scenario: LabelledCase) -> str:
    """Cases whose images come from one field share this name."""
    return str(scenario.factors.get("image_group", scenario.image))


def _fold(config: RunConfig, base: VerdictModel, rows: list[dict], held_out: Suite, out_dir: Path) -> pd.DataFrame:
    size = min(4, config.batch_size)  # four cases a step on every hardware
    small = {"epochs": config.core_fold_epochs, "batch_size": size, "gradient_accumulation": 4 // size}
    folder = trainer.train_adapter(
        base, rows, [], config.model_copy(update=small), out_dir, resume=False, quiet=True
    )
    model = base.with_adapter(folder)
    if config.generate:
        answers = scoring.ask(model, held_out)
    else:
        answers = pd.DataFrame({"p_correct": scoring.p_correct(model, held_out)})
    model.network.unload()
    shutil.rmtree(out_dir, ignore_errors=True)
    return stats.predictions_table(held_out.scenarios, answers)


def _fold_fingerprint(config: RunConfig, everything: Suite, group: str) -> str:
    settings = config.of(Run, Model, Training, "core_fold_epochs", "generate")
    made_of = [settings, everything.keys(), loading.base_hash(config.model), group]
    return provenance.digest(made_of)[:16]
