"""Training as one call for a notebook cell or a command; every step can be resumed.

A run is a folder: ``adapter/``, ``answers/`` (one file a system), ``predictions.jsonl``,
``metrics.json``, ``run.json`` and, after `medlib.reporting.pages`, ``notebooks/`` and ``report/``.
`medlib.evaluation.summary` evaluates what is trained here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from medlib.config import ModelError, RunConfig, hardware, provenance, run_dir, runs
from medlib.config.hardware import EFFECTIVE_BATCH
from medlib.config.settings import Data, Model, Run, Training
from medlib.data import augment, sources
from medlib.data.suite import Suite
from medlib.data.synthetic import patients
from medlib.models import loading
from medlib.models.standin import own as standin_own
from medlib.training import adapters, encoding, forecast, processes, record, trainer
from medlib.training.checkpoints import checkpoint_folder, clear_checkpoints

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
    suites = sources.prepare(config)
    training_suites = [suites["train"], suites["core_train"]]
    scenarios = [s for suite in training_suites for s in suite.scenarios]
    try:
        processor = loading.load_processor(
            config.model, config.trust_remote_code, local_files_only=not loading.reachable(config.model)
        )
        example = encoding.encode(processor, scenarios[:1], [suites["train"].images_dir])[0]
        encoded: dict = {
            "tokens_of_first_scenario": len(example["input_ids"]),
            "answer_tokens": int((example["labels"] != -100).sum()),
        }
    except ModelError as error:
        reason = str(error).partition(" (")[0]
        encoded = {"not_loaded": f"{reason}; no tokenizer, no weights: the forecast is from the shape alone"}
    expected = forecast.forecast(
        config, row, encoded.get("tokens_of_first_scenario"), len(scenarios), len({s.image for s in scenarios})
    )
    trainable, frozen = expected["trainable_parameters"], expected["parameters"]
    return {
        "model": loading.model_label(config),
        "device": hardware.explain(),
        "dtype": expected["dtype"],
        "trainable_parameters": trainable,
        "total_parameters": trainable + frozen,
        "trainable_percent": round(100 * trainable / (trainable + frozen), 3),
        "training_scenarios": len(scenarios),
        **encoded,
        "forecast": forecast.sentence(expected),
        **{f"memory_{part}_gib": size for part, size in expected["memory_gib"].items()},
        "hours": round(expected["hours"], 4),
        "usd": expected["usd"],
    }


def train(config: RunConfig, resume: bool = True) -> Path:
    """Train this run's adapter on the training suite and the 16 core cases; skip if it is there.

    Early stopping looks at the validation suite; neither the core validation cases nor the
    held-out suite are read. Called in several processes (`medlib.training.processes`), they train together.
    """
    process = processes.state()
    with runs.alone(config.run_dir) if process.is_main_process else contextlib.nullcontext():
        return _train(config, resume)


def _train(config: RunConfig, resume: bool) -> Path:
    process = processes.state()
    with process.main_process_first():  # who comes later finds what the first has drawn
        adapter = run_dir(config) / "adapter"
        standin_own.check_models(config)
        suites = sources.prepare(config)
    fingerprint = _train_fingerprint(config, suites)
    if resume and adapters.read_metadata(adapter).get("fingerprint") == fingerprint:
        processes.say(f"adapter of these settings found in {config.run_dir}/adapter; not trained again")
        if process.is_main_process:  # an interruption may have come between adapter and record
            record.write_record(config, suites)
        return adapter
    with process.main_process_first():
        if process.is_main_process and not resume:
            clear_checkpoints(adapter)
        checkpoint_folder(adapter, fingerprint)
    processes.say(hardware.explain())
    effective = config.batch_size * config.gradient_accumulation * processes.count()
    if processes.count() > 1 and effective != EFFECTIVE_BATCH:
        processes.say(
            f"effective batch {effective}, not {EFFECTIVE_BATCH} as in every profile: this trains another adapter"
        )
    model = loading.load_for(config)
    copies, lexicon = (config.paraphrase_copies, config.pair_copies), sources.lexicon_of(config)
    seen = augment.augmented(suites["train"], *copies, config.seed, lexicon)
    shown = [suites["core_train"], seen]
    if config.note_pairs:
        shown.append(sources.contradiction(config, "train", config.note_pairs))
    if config.patient_pairs:
        shown.append(sources.patient_pairs(config, "train", config.patient_pairs))
    train_rows = encoding.encode_suites(config, model, shown)
    val_rows = encoding.encode_suites(config, model, [suites["val"]])
    trainer.train_adapter(model, train_rows, val_rows, config, adapter, extra={"fingerprint": fingerprint})
    if process.is_main_process:
        record.write_record(config, suites)
    return adapter


def _train_fingerprint(config: RunConfig, suites: dict[str, Suite]) -> str:
    """Names settings and data of a training, so that a changed one is never taken for it."""
    used = [suites[name].sha256 for name in ("train", "val", "core_train")]
    if config.data_dir or config.images_dir:  # their images may change; those of the project are drawn by its rows
        used += [key for name in ("train", "val", "core_train") for key in suites[name].keys()]
    if config.patient_pairs:
        used.append(loading.file_hash(patients.FILE))
    return provenance.digest([config.of(Run, Model, Data, Training), used, loading.base_hash(config.model)])
