"""Leave one image group of the core set out: what 24 scenarios can teach."""

from __future__ import annotations

import pandas as pd
from tqdm.auto import tqdm

from medlib import stats
from medlib.config import ADAPTER, RunConfig, provenance, run_dir
from medlib.config.settings import Model, Run, Training
from medlib.data.cases import Scenario
from medlib.data.suite import Suite
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, trainer

# --- leave one image group out ---------------------------------------------------------------------


def core_folds(config: RunConfig, model: VerdictModel, everything: Suite) -> pd.DataFrame:
    """Leave one image group out: an adapter trained on the other core cases alone, for each group.

    Images of one field share a group, so no case is judged by a model that saw its image. Every
    fold's answers are kept under its settings, so that a second call trains nothing.

    Returns
    -------
    DataFrame of predictions over all core cases, with free answers if the configuration wants them.
    """
    rows, parts = None, []
    folds = sorted({image_group(s) for s in everything.scenarios})
    for group in tqdm(folds, desc="leave one image group out", leave=False):
        held = everything.rows(i for i, s in enumerate(everything.scenarios) if image_group(s) == group)
        file = run_dir(config) / "folds" / f"{_fold_fingerprint(config, everything, group)}.jsonl"
        if not file.is_file():
            rows = rows or encoding.encode_suites(config, model, [everything])
            kept = [row for row, s in zip(rows, everything.scenarios) if image_group(s) != group]
            answered = _fold(config, model, kept, held)
            stats.write_predictions(file, {f"{ADAPTER}/core24_folds": answered})
        parts += stats.read_predictions(file).values()
    return pd.concat(parts, ignore_index=True).drop(columns=["system", "suite"])


def image_group(scenario: Scenario) -> str:
    """Cases whose images come from one field share this name."""
    return str(scenario.factors.get("image_group", scenario.image))


def _fold(config: RunConfig, base: VerdictModel, rows: list[dict], held: Suite) -> pd.DataFrame:
    size = min(4, config.batch_size)  # four cases a step on every hardware
    small = {"epochs": config.core_fold_epochs, "batch_size": size, "gradient_accumulation": 4 // size}
    folder = trainer.train_adapter(
        base, rows, [], config.model_copy(update=small), run_dir(config) / "fold", resume=False, quiet=True
    )
    model = base.with_adapter(folder)
    if config.generate:
        answered = scoring.ask(model, held)
    else:
        answered = pd.DataFrame({"p_correct": scoring.p_correct(model, held)})
    model.network.unload()
    return stats.predictions_table(held.scenarios, answered)


def _fold_fingerprint(config: RunConfig, everything: Suite, group: str) -> str:
    settings = config.of(Run, Model, Training, "core_fold_epochs", "generate")
    made_of = [settings, everything.keys(), loading.weights_hash(config.model), group]
    return provenance.digest(made_of)[:16]
