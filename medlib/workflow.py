"""The steps of a run, each one call for a notebook cell or a command; every step can be resumed.

A run is a folder: ``adapter/``, ``predictions/`` (one file a system and suite), ``predictions.jsonl``,
``metrics.json``, ``run.json`` and, after `medlib.report`, ``notebooks/`` and ``report/``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medlib import data, evaluation, metrics, models, provenance, systems, training
from medlib.config import RunConfig, path
from medlib.data import Suite
from medlib.schema import scenario_hash

BARS = {"accuracy": 0.90, "sensitivity": 0.90, "specificity": 0.95, "spread": 5.0}
BASE, ADAPTER = "medgemma", "medgemma-lora"


def run_dir(config: RunConfig) -> Path:
    """The run's folder, made if missing."""
    folder = path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_model(config: RunConfig):
    """(processor, base model) as the configuration says."""
    return models.load(config.model, config.use_8bit, config.trust_remote_code)


def model_label(config: RunConfig) -> str:
    """How figures and tables name the model; a stand-in is always called one."""
    return f"{Path(config.model).name}{' (stand-in, knows no medicine)' if models.is_standin(config.model) else ''}"


# --- training -------------------------------------------------------------------------------------


def dry_run(config: RunConfig) -> dict:
    """Load everything, encode one scenario, count parameters; train nothing."""
    processor, base = load_model(config)
    suites = data.prepare(config)
    example = training.encode(processor, suites["train"].scenarios[:1], [suites["train"].images_dir])[0]
    model = training.get_peft_model(base, training.lora_config(config))
    trainable, total, share = training.trainable_share(model)
    model.unload()
    return {
        "model": model_label(config), "device": str(base.device), "dtype": str(base.dtype),
        "trainable_parameters": trainable, "total_parameters": total, "trainable_percent": round(share, 3),
        "training_scenarios": len(suites["train"].scenarios) + len(suites["core_train"].scenarios),
        "tokens_of_first_scenario": len(example["input_ids"]),
        "answer_tokens": int((example["labels"] != -100).sum()),
    }


def train(config: RunConfig, resume: bool = True) -> Path:
    """Train this run's adapter on the training suite and the 16 core cases; skip if it is there.

    Early stopping looks at the validation suite; neither the core validation cases nor the
    held-out suite are read.
    """
    adapter = run_dir(config) / "adapter"
    suites = data.prepare(config)
    fingerprint = _train_fingerprint(config, suites)
    if resume and _metadata(adapter).get("fingerprint") == fingerprint:
        print(f"adapter of these settings found in {config.run_dir}/adapter; not trained again")
        return adapter
    started = adapter / "checkpoints" / "fingerprint"
    same = resume and started.is_file() and started.read_text() == fingerprint
    started.parent.mkdir(parents=True, exist_ok=True)
    processor, base = load_model(config)
    train_rows = _rows(config, processor, base, [suites["core_train"], suites["train"]])
    val_rows = _rows(config, processor, base, [suites["val"]])
    if not same:
        training.clear_checkpoints(adapter)
    started.parent.mkdir(parents=True, exist_ok=True)
    started.write_text(fingerprint)
    training.train_adapter(base, processor, train_rows, val_rows, config, adapter, extra={"fingerprint": fingerprint})
    write_record(config, suites)
    return adapter


def _rows(config: RunConfig, processor, base, suites: list[Suite]) -> list[dict]:
    scenarios = [s for suite in suites for s in suite.scenarios]
    folders = [suite.images_dir for suite in suites for _ in suite.scenarios]
    rows = training.encode(processor, scenarios, folders)
    return training.cache_image_features(base, rows) if config.cache_image_features and rows else rows


TRAINING_FIELDS = (
    "model", "seed", "epochs", "batch_size", "gradient_accumulation", "lr", "warmup_ratio", "weight_decay",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "early_stopping_patience",
    "evaluations_per_epoch", "use_8bit",
)


def _train_fingerprint(config: RunConfig, suites: dict[str, Suite]) -> str:
    """Names settings and data of a training, so that a changed one is never taken for it."""
    settings = {name: getattr(config, name) for name in TRAINING_FIELDS}
    used = [suites[name].sha256 for name in ("train", "val", "core_train")] + [config.images_dir]
    return hashlib.sha256(json.dumps([settings, used, _weights_hash(config.model)]).encode()).hexdigest()


def _weights_hash(model: str) -> str:
    """SHA-256 of a local model's weights; a hub model is known by its name."""
    file = Path(models.locate(model)) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else model


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


def adapter_dir(config: RunConfig) -> Path:
    """The adapter to evaluate: the one named, or this run's own."""
    return path(config.adapter) if config.adapter else run_dir(config) / "adapter"


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(config: RunConfig) -> dict[str, pd.DataFrame]:
    """Base and adapter on core24 and on the held-out suite, with ablations and core-only folds.

    Returns
    -------
    dict of predictions tables by ``system/suite``; each is kept on disk, so that an interrupted
    evaluation goes on where it stopped.
    """
    _file_hash(adapter_dir(config) / "adapter_model.safetensors")  # a missing one is told before the hours of work
    suites = data.prepare(config)
    processor, base = load_model(config)
    everything = Suite("core24_all", suites["core_train"].scenarios + suites["core_val"].scenarios,
                       suites["core_val"].images_dir)
    frames = {}

    def ask(system, suite, model, ablation=None, name=None):
        key = f"{system}/{name or suite.name}"
        frames[key] = _kept(config, key, suite, lambda: evaluation.predict(
            model, processor, suite.scenarios, suite.images_dir, ablation, config.generate and not ablation,
            config.eval_batch_size, config.seed, label=key))

    heldout = suites["test"]
    ask(BASE, heldout, base, name="heldout")
    ask(BASE, suites["core_val"], base, name="core24_val")
    ask(BASE, everything, base, name="core24_folds")
    if config.core_folds:
        frames[f"{ADAPTER}/core24_folds"] = _kept(
            config, f"{ADAPTER}/core24_folds", everything, lambda: core_folds(config, processor, base, everything))
    model = models.attach_adapter(base, adapter_dir(config))
    ask(ADAPTER, heldout, model, name="heldout")
    ask(ADAPTER, suites["core_val"], model, name="core24_val")
    for ablation in evaluation.ABLATIONS if config.ablations else ():
        ask(f"{ADAPTER} {ablation}", heldout, model, ablation, name="heldout")
    model.unload()
    evaluation.write_predictions(run_dir(config) / "predictions.jsonl", frames)
    write_metrics(config, frames)
    write_record(config, suites)
    return frames


def core_folds(config: RunConfig, processor, base, everything: Suite) -> pd.DataFrame:
    """Leave one image group out: an adapter trained on the other core cases alone, for each group.

    Pictures of one field share a group, so no case is judged by a model that saw its picture.
    """
    rows = _rows(config, processor, base, [everything])
    groups = [s.factors.get("image_group", s.image) for s in everything.scenarios]
    folds = sorted(set(groups))
    fold_config = config.model_copy(update={"epochs": config.core_fold_epochs, "batch_size": min(4, config.batch_size)})
    parts = []
    for number, group in enumerate(folds, start=1):
        print(f"fold {number}/{len(folds)}: {group}", flush=True)
        inside = [g == group for g in groups]
        kept = [row for row, held in zip(rows, inside) if not held]
        held = [s for s, held in zip(everything.scenarios, inside) if held]
        folder = training.train_adapter(base, processor, kept, [], fold_config, run_dir(config) / "fold", resume=False,
                                        quiet=True)
        model = models.attach_adapter(base, folder)
        parts.append(evaluation.predict(model, processor, held, everything.images_dir, None, config.generate))
        model.unload()
    return pd.concat(parts, ignore_index=True)


def _kept(config: RunConfig, key: str, suite: Suite, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Predictions from disk if they are of the same model, settings and scenarios; else computed."""
    made_by = [key, suite.sha256, config.model, _weights_hash(config.model), config.images_dir, config.generate,
               config.seed, config.use_8bit]
    if key.startswith(ADAPTER):
        made_by.append(_file_hash(adapter_dir(config) / "adapter_model.safetensors"))
    if key == f"{ADAPTER}/core24_folds":
        made_by.append([getattr(config, name) for name in TRAINING_FIELDS] + [config.core_fold_epochs])
    fingerprint = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]
    file = run_dir(config) / "predictions" / f"{key.replace('/', '_').replace(' ', '_')}-{fingerprint}.jsonl"
    if not file.is_file():
        temporary = file.with_suffix(".tmp")
        evaluation.write_predictions(temporary, {key: compute()})
        temporary.replace(file)
    return evaluation.read_predictions(file)[key]


def _file_hash(file: Path) -> str:
    if not file.is_file():
        raise models.ModelError(f"{file.parent}: {file.name} is missing; train first (`python -m medlib train`)")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- benchmark ------------------------------------------------------------------------------------


def benchmark(config: RunConfig) -> dict[str, pd.DataFrame]:
    """The ladder on the held-out suite: constant, heuristics, keyword probe, base, adapter."""
    frames = evaluate(config)
    suites = data.prepare(config)
    train_rows = suites["train"].scenarios + suites["core_train"].scenarios
    for name, suite in (("heldout", suites["test"]), ("core24_val", suites["core_val"])):
        frames[f"constant/{name}"] = systems.constant(suite.scenarios)
        frames[f"heuristics/{name}"] = systems.heuristics(suite.scenarios)
        frames[f"keyword-probe/{name}"] = systems.keyword_probe(train_rows, suite.scenarios, config.seed)
    everything = suites["core_train"].scenarios + suites["core_val"].scenarios
    frames["heuristics/core24_folds"] = systems.heuristics(everything)
    evaluation.write_predictions(run_dir(config) / "predictions.jsonl", frames)
    write_metrics(config, frames)
    return frames


LADDER = ("constant", "heuristics", "keyword-probe", BASE, ADAPTER)


def ladder(frames: dict[str, pd.DataFrame], suite: str = "heldout") -> dict[str, dict]:
    """Scores of the ladder's systems on one suite, lowest rung first."""
    return {name: metrics.score(frames[f"{name}/{suite}"]) for name in LADDER if f"{name}/{suite}" in frames}


def bars(score: dict) -> pd.DataFrame:
    """The target of each figure beside what was measured, with a plain yes or no."""
    rows = []
    for name, bar in BARS.items():
        value = score[name] if name == "spread" else score[name]["value"]
        met = value < bar if name == "spread" else value >= bar
        shown, target = (f"{value:.1f} points", f"< {bar:.0f} points") if name == "spread" else (f"{value:.1%}", f"≥ {bar:.0%}")
        rows.append({"Figure": FIGURE_NAMES[name], "Target": target, "Measured": shown, "Met": "yes" if met else "no"})
    return pd.DataFrame(rows)


FIGURE_NAMES = {"accuracy": "Accuracy", "sensitivity": "Valid treatments recognised",
                "specificity": "Errors caught", "spread": "Spread across modalities"}


def write_metrics(config: RunConfig, frames: dict[str, pd.DataFrame]) -> Path:
    """``metrics.json``: scores of the ladder, of every suite, paired tests and tables."""
    scores = {key: metrics.score(frame) for key, frame in frames.items()}
    main = ladder(frames)
    record = {"headline": headline(config, main), "systems": main, "scores": scores, "tests": {}, "tables": {}}
    if ADAPTER in main:
        reference = frames[f"{ADAPTER}/heldout"]
        tests = {name: metrics.compare(reference, frames[f"{name}/heldout"]) for name in main if name != ADAPTER}
        adjusted = metrics.holm({name: test["p"] for name, test in tests.items()})
        record["tests"] = {name: test | {"p_holm": adjusted[name]} for name, test in tests.items()}
        right, pairs = evaluation.pair_accuracy(reference)
        record["pairs"] = metrics.proportion(right, pairs)
        record["tables"]["Targets on the held-out suite"] = bars(main[ADAPTER]).to_dict(orient="records")
    return provenance.write_json_atomic(run_dir(config) / "metrics.json", record)


def headline(config: RunConfig, main: dict[str, dict]) -> str:
    """One sentence that a reader takes away."""
    if ADAPTER not in main:
        return ""
    before, after = main[BASE]["accuracy"], main[ADAPTER]["accuracy"]
    return (
        f"LoRA took {model_label(config)} from {before['value']:.1%} to {after['value']:.1%} accuracy "
        f"[95 % interval {after['low']:.1%} to {after['high']:.1%}] on {after['n']:,} held-out scenarios."
    )


def write_record(config: RunConfig, suites: dict[str, Suite]) -> Path:
    """``run.json``: what made this run."""
    kind = "stand-in, knows no medicine" if models.is_standin(config.model) else "published weights"
    parameters = config.model_dump() | {"model_kind": kind}
    return provenance.write_run(run_dir(config), parameters, data.hashes(suites))
