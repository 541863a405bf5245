"""Training as one call for a notebook cell or a command; every step can be resumed.

A run is a folder: ``adapter/``, ``answers/`` (one file a system), ``predictions.jsonl``,
``metrics.json``, ``run.json`` and, after `medlib.report`, ``notebooks/`` and ``report/``.
`medlib.benchmark` evaluates what is trained here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from medlib import augment, data, evaluation, forecast, hardware, launch, models, provenance, training
from medlib.config import RunConfig, adapter_dir, path
from medlib.data import Suite
from medlib.schema import Scenario
from medlib.suites import contradiction

BASE, ADAPTER = "medgemma", "medgemma-lora"


def run_dir(config: RunConfig) -> Path:
    """The run's folder, made if missing."""
    folder = path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_label(config: RunConfig) -> str:
    """How figures and tables name the model; a stand-in is always called one."""
    kind = " (stand-in, knows no medicine)" if models.is_standin(config.model) else ""
    return f"{Path(config.model).name}{kind}"


# --- training -------------------------------------------------------------------------------------


def dry_run(config: RunConfig, profile: str | None = None) -> dict:
    """Look at the device, encode one scenario, forecast memory, time and money; no weights are loaded.

    Parameters
    ----------
    profile : the profile of the run, such as ``medgemma-4b+t4``; what is in it of the hardware (a row of
        data/hardware_prices.yaml) is forecast for, by default this machine. A model whose processor
        cannot be had is forecast from its shape all the same.
    """
    row = next((part for part in (profile or "").split("+") if part in forecast.prices()), None)
    suites = data.prepare(config)
    training_suites = [suites["train"], suites["core_train"]]
    scenarios = [s for suite in training_suites for s in suite.scenarios]
    try:
        processor = models.load_processor(config.model, config.trust_remote_code,
                                          local_files_only=not models.reachable(config.model))
        example = training.encode(processor, scenarios[:1], [suites["train"].images_dir])[0]
        encoded = {"tokens_of_first_scenario": len(example["input_ids"]),
                   "answer_tokens": int((example["labels"] != -100).sum())}
    except models.ModelError as error:
        reason = str(error).partition(" (")[0]
        encoded = {"not_loaded": f"{reason}; no tokenizer, no weights: the forecast is from the shape alone"}
    expected = forecast.forecast(config, row, encoded.get("tokens_of_first_scenario"), len(scenarios),
                                 len({s.image for s in scenarios}))
    trainable, frozen = expected["trainable_parameters"], expected["parameters"]
    return {
        "model": model_label(config), "device": hardware.explain(), "dtype": expected["dtype"],
        "trainable_parameters": trainable, "total_parameters": trainable + frozen,
        "trainable_percent": round(100 * trainable / (trainable + frozen), 3),
        "training_scenarios": len(scenarios), **encoded, "forecast": forecast.sentence(expected),
        **{f"memory_{part}_gib": size for part, size in expected["memory_gib"].items()},
        "hours": round(expected["hours"], 4), "usd": expected["usd"],
    }


def train(config: RunConfig, resume: bool = True) -> Path:
    """Train this run's adapter on the training suite and the 16 core cases; skip if it is there.

    Early stopping looks at the validation suite; neither the core validation cases nor the
    held-out suite are read. Called in several processes (`medlib.launch`), they train together.
    """
    process = launch.state()
    with process.main_process_first():  # who comes later finds what the first has drawn
        adapter = run_dir(config) / "adapter"
        suites = data.prepare(config)
    fingerprint = _train_fingerprint(config, suites)
    if resume and _metadata(adapter).get("fingerprint") == fingerprint:
        launch.say(f"adapter of these settings found in {config.run_dir}/adapter; not trained again")
        return adapter
    started = adapter / "checkpoints" / "fingerprint"
    same = resume and started.is_file() and started.read_text() == fingerprint
    process.wait_for_everyone()  # all have read it before the first of them writes it
    if process.is_main_process and not same:
        training.clear_checkpoints(adapter)
    if process.is_main_process:
        started.parent.mkdir(parents=True, exist_ok=True)
        started.write_text(fingerprint)
    process.wait_for_everyone()
    launch.say(hardware.explain())
    effective = config.batch_size * config.gradient_accumulation * launch.processes()
    if launch.processes() > 1 and effective != hardware.EFFECTIVE_BATCH:
        launch.say(f"effective batch {effective}, not {hardware.EFFECTIVE_BATCH} as in every profile: this "
                   "trains another adapter")
    processor, base = models.load_for(config)
    seen = augment.augmented(suites["train"], config.paraphrase_copies, config.pair_copies, config.seed)
    shown = [suites["core_train"], seen]
    if config.note_pairs:
        shown.append(contradiction("train", config.note_pairs, config.seed))
    train_rows = _rows(config, processor, base, shown)
    val_rows = _rows(config, processor, base, [suites["val"]])
    training.train_adapter(base, processor, train_rows, val_rows, config, adapter,
                           extra={"fingerprint": fingerprint})
    if process.is_main_process:
        write_record(config, suites)
    return adapter


def _rows(config: RunConfig, processor, base, suites: list[Suite]) -> list[dict]:
    """Encoded scenarios, with features of their pictures where these stay the same while training."""
    scenarios = [s for suite in suites for s in suite.scenarios]
    folders = [suite.images_dir for suite in suites for _ in suite.scenarios]
    rows = training.encode(processor, scenarios, folders)
    if not config.cache_image_features or not rows:
        return rows
    if reason := training.why_no_features(config):
        launch.say(f"image features are not kept: {reason}; every step reads its pictures")
        return rows
    return training.cache_image_features(base, rows, config.eval_batch_size)


TRAINING_FIELDS = (
    "model", "seed", "epochs", "batch_size", "gradient_accumulation", "lr", "warmup_ratio", "weight_decay",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora", "paraphrase_copies",
    "pair_copies", "note_pairs", "early_stopping_patience", "evaluations_per_epoch", "group_by_length", "dtype",
    "quantization", "use_8bit",
)


def _train_fingerprint(config: RunConfig, suites: dict[str, Suite]) -> str:
    """Names settings and data of a training, so that a changed one is never taken for it."""
    settings = {name: getattr(config, name) for name in TRAINING_FIELDS}
    used = [suites[name].sha256 for name in ("train", "val", "core_train")] + [config.images_dir]
    return provenance.digest([settings, used, models.weights_hash(config.model)])


def _metadata(adapter: Path) -> dict:
    file = adapter / "training_metadata.json"
    complete = file.is_file() and (adapter / "adapter_model.safetensors").is_file()
    return json.loads(file.read_text()) if complete else {}


def training_metadata(config: RunConfig) -> dict:
    """What training wrote about itself; ModelError if there is no adapter yet."""
    metadata = _metadata(adapter_dir(config))
    if not metadata:
        raise models.ModelError(f"{config.run_dir}/adapter: no trained adapter; run 02_train_lora first")
    return metadata


# --- leave one image group out ---------------------------------------------------------------------


def core_folds(config: RunConfig, processor, base, everything: Suite) -> pd.DataFrame:
    """Leave one image group out: an adapter trained on the other core cases alone, for each group.

    Pictures of one field share a group, so no case is judged by a model that saw its picture. Every
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
            rows = rows or _rows(config, processor, base, [everything])
            kept = [row for row, s in zip(rows, everything.scenarios) if image_group(s) != group]
            answered = _fold(config, processor, base, kept, held)
            evaluation.write_predictions(file, {f"{ADAPTER}/core24_folds": answered})
        parts += evaluation.read_predictions(file).values()
    return pd.concat(parts, ignore_index=True).drop(columns=["system", "suite"])


def image_group(scenario: Scenario) -> str:
    """Cases whose pictures come from one field share this name."""
    return scenario.factors.get("image_group", scenario.image)


def _fold(config: RunConfig, processor, base, rows: list[dict], held: Suite) -> pd.DataFrame:
    size = min(4, config.batch_size)  # four cases a step on every hardware
    small = {"epochs": config.core_fold_epochs, "batch_size": size, "gradient_accumulation": 4 // size}
    folder = training.train_adapter(base, processor, rows, [], config.model_copy(update=small),
                                    run_dir(config) / "fold", resume=False, quiet=True)
    model = models.attach_adapter(base, folder)
    answered = pd.DataFrame({"p_correct": evaluation.p_correct(model, processor, held)})
    if config.generate:
        answered = answered.join(evaluation.free_answers(model, processor, held))
    model.unload()
    return evaluation.predictions(held.scenarios, answered)


def _fold_fingerprint(config: RunConfig, everything: Suite, group: str) -> str:
    settings = [getattr(config, name) for name in (*TRAINING_FIELDS, "core_fold_epochs", "generate")]
    made_of = [settings, everything.keys(), models.weights_hash(config.model), group]
    return provenance.digest(made_of)[:16]


def write_record(config: RunConfig, suites: dict[str, Suite]) -> Path:
    """``run.json``: what made this run."""
    kind = "stand-in, knows no medicine" if models.is_standin(config.model) else "published weights"
    parameters = config.model_dump() | {"model_kind": kind}
    return provenance.write_run(run_dir(config), parameters, data.hashes(suites))
