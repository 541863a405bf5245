"""The reward model: learns from pairs of verdicts which one raters prefer, with TRL's RewardTrainer.

A case and a verdict go in, a scalar reward comes out. The verdict with the higher reward is preferred, with a
probability that is the logistic function of the difference (Bradley and Terry 1952). The model is the base
with a scalar head and LoRA, and starts from the supervised adapter, as reward models commonly do.

RewardTrainer's own collator handles text only. Its loss needs a batch whose first half is chosen and second
half rejected, so a collator that adds the images is enough for a multimodal reward model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, TaskType, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer

from medlib import stats
from medlib.config import VERDICTS, ModelError, RunConfig, adapter_dir, files, path, provenance, runs
from medlib.config.settings import Model, Reward, Run, Training
from medlib.data.suite import Suite
from medlib.feedback.preferences import training_side
from medlib.models import adapter_files, loading
from medlib.models.verdict_model import VerdictModel
from medlib.systems import Session
from medlib.training import adapters, encoding, lora, memory, processes
from medlib.training.checkpoints import checkpoint_folder, clear_checkpoints, last_whole_checkpoint
from medlib.training.finite import FiniteSteps
from medlib.training.trainer import Progress

#: Share of the training side that serves only to fit the temperature.
TEMPERATURE_SHARE = 0.15


def folder(config: RunConfig) -> Path:
    """Folder of a run's reward model."""
    return path(config.run_dir) / "reward_model"


def fingerprint(config: RunConfig) -> str:
    """Hash of all that a reward model depends on: weights, supervised adapter, preferences, settings."""
    suite, preferences = training_side(config)
    adapter = adapters.supervised_hash(config)
    chosen = preferences[["key", "chosen", "severity"]].to_dict(orient="records")
    settings = config.of(Run, Model, Training, Reward, "rl_batch")
    rule = stats.PRIOR, stats.FOLDS  # of its temperature
    return provenance.digest([loading.base_hash(config.model), adapter, chosen, settings, rule])


def metadata(config: RunConfig) -> dict:
    """Metadata of the trained reward model; empty if there is none."""
    return adapters.read_metadata(folder(config))


def slices(preferences: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training, and those for the temperature; no pair is on both sides."""
    pairs = preferences["pair"].unique()
    rng = np.random.default_rng([seed, len(pairs)])
    withheld = set(rng.permutation(pairs)[: max(1, round(TEMPERATURE_SHARE * len(pairs)))])
    is_withheld = preferences["pair"].isin(withheld).to_numpy()
    return np.flatnonzero(~is_withheld), np.flatnonzero(is_withheld)


# --- training -----------------------------------------------------------------------------------------


def train(config: RunConfig) -> Path:
    """Train this run's reward model on the training side of the ratings; skipped if it exists.

    Returns
    -------
    Folder with the adapter and its head (safetensors) and ``training_metadata.json``.
    """
    with runs.alone(config.run_dir):
        out, current = folder(config), fingerprint(config)
        if metadata(config).get("fingerprint") != current:
            _train(config, out, current)
        return out


def _train(config: RunConfig, out: Path, current: str) -> None:
    suite, preferences = training_side(config)
    learned, withheld = slices(preferences, config.seed)
    model, processor = _start(config)
    rows = answer_rows(model, processor, suite, config)
    chosen = (preferences["chosen"] == VERDICTS[1]).to_numpy(int)  # which of a case's two rows
    checkpoints = checkpoint_folder(out, current)
    trainer = _trainer(model, processor, [rows[i] for i in learned], chosen[learned], config, checkpoints)
    processes.say(
        f"reward model: {len(learned)} preferences, {len(withheld)} for the temperature; {lora.describe(model)}"
    )
    trainer.add_callback(Progress("reward model"))
    started = time.time()
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    seconds = time.time() - started
    margin = margins(model, processor, suite.rows(withheld), config)
    right = preferences["chosen"].to_numpy()[withheld] == VERDICTS[0]
    temperature = stats.fit_temperature(probability(margin), right, preferences["pair"].iloc[withheld])
    _save(
        model,
        processor,
        config,
        out,
        {
            **adapters.base(config),
            "fingerprint": current,
            "temperature": temperature,
            "preferences": len(learned),
            "temperature_preferences": len(withheld),
            "log_loss_before": stats.log_loss(probability(margin), right),
            "log_loss_after": stats.log_loss(probability(margin, temperature), right),
            "simulated": bool(preferences["simulated"].any()),
            "history": [entry for entry in trainer.state.log_history if "loss" in entry],
            "wall_seconds": round(seconds, 1),
            "device": str(next(model.parameters()).device),
            "peak_memory_mib": round(memory.peak_memory_mib()),
            "config": config.model_dump(),
        },
    )
    clear_checkpoints(out)


def _load(config: RunConfig):
    """(processor, base with a scalar head).

    The head is float32 whatever the base is: in bfloat16 its small updates would be rounded away, and the
    layers of `medlib.models.float16` pass no gradient to their weights.
    """
    processor, base = loading.load_for(config, reward_head=True)
    base.score = torch.nn.Linear(base.score.in_features, 1, bias=False, device=base.device)
    base.score.register_forward_pre_hook(_in_full_precision)
    return processor, base


def _in_full_precision(_, inputs: tuple) -> tuple:
    return (inputs[0].float(),)


def _start(config: RunConfig):
    """(model, processor): the base with a new head, its LoRA as in the supervised adapter."""
    processor, base = _load(config)
    set_seed(config.seed)  # for the head, which is not part of the weights
    torch.nn.init.normal_(base.score.weight, std=0.02)
    head = base.score.weight
    supervised = PeftConfig.from_pretrained(adapter_dir(config))
    options = {
        name: getattr(supervised, name)
        for name in (
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "target_parameters",
            "use_rslora",
            "use_dora",
        )
    }
    model = get_peft_model(
        base, LoraConfig(**options, bias="none", task_type=TaskType.SEQ_CLS, modules_to_save=["score"])
    )
    weights = load_file(adapter_dir(config) / adapter_files.WEIGHTS)
    loaded = set_peft_model_state_dict(model, weights | {"base_model.model.score.weight": head})
    if loaded.unexpected_keys:
        raise ModelError(f"{config.run_dir}/adapter: {loaded.unexpected_keys[0]} does not fit this base")
    return model, processor


def answer_rows(model, processor, suite: Suite, config: RunConfig) -> list[tuple[dict, dict]]:
    """Every case encoded twice, with the verdict CORRECT and with ERROR as its answer; see `encoding.encode`."""
    by_verdict = [[s.model_copy(update={"verdict": verdict}) for s in suite.scenarios] for verdict in VERDICTS]
    rows = encoding.encode(processor, by_verdict[0] + by_verdict[1], [suite.images_dir] * 2 * len(suite))
    if config.cache_image_features and not lora.why_no_features(config):
        model.eval()
        encoding.cache_image_features(model.get_base_model().model, rows, config.eval_batch_size)
    return list(zip(rows[: len(suite)], rows[len(suite) :]))


def _collate(pad_token_id: int):
    """`encoding.collator` without labels, which a reward model does not use."""
    collate = encoding.collator(pad_token_id)
    return lambda rows: {name: value for name, value in collate(rows).items() if name != "labels"}


class _Trainer(FiniteSteps, RewardTrainer):
    """TRL's trainer on rows that are already encoded, images included."""

    rate = "reward_lr"

    def _prepare_dataset(self, dataset, *_):
        return dataset


def _trainer(model, processor, rows, chosen, config: RunConfig, checkpoints: Path) -> RewardTrainer:
    device = next(model.parameters()).device.type
    batch = min(config.rl_batch, len(rows))
    # a pair is two rows, but without logits a row takes less memory than in supervised training
    pairs = next(n for n in range(min(config.batch_size, batch), 0, -1) if batch % n == 0)
    steps = max(1, round(len(rows) * config.reward_epochs / batch))
    collate = _collate(processor.tokenizer.pad_token_id)
    arguments = RewardConfig(
        output_dir=str(checkpoints),
        seed=config.seed,
        data_seed=config.seed,
        max_steps=steps,
        per_device_train_batch_size=pairs,
        gradient_accumulation_steps=batch // pairs,
        learning_rate=config.reward_lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        use_cpu=device == "cpu",
        bf16=next(model.parameters()).dtype == torch.bfloat16,
        logging_steps=max(1, steps // 40),
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        max_length=None,
        gradient_checkpointing=memory.recomputes(config, device),
        dataloader_pin_memory=device == "cuda",
        # only differences of rewards matter; centering keeps their size readable
        center_rewards_coefficient=0.01,
        disable_tqdm=not sys.stderr.isatty(),
    )

    def both_halves(items):
        numbers = [item["row"] for item in items]
        return collate([rows[i][chosen[i]] for i in numbers] + [rows[i][1 - chosen[i]] for i in numbers])

    trainer = _Trainer(
        model=model,
        args=arguments,
        processing_class=processor.tokenizer,
        train_dataset=Dataset.from_dict({"row": range(len(rows))}),
        data_collator=both_halves,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(model, processor, config: RunConfig, out: Path, written: dict) -> None:
    adapters.save_adapter(model, processor, config, out, rate="reward_lr")
    files.write_json(out / adapters.METADATA, written)


# --- inference -------------------------------------------------------------------------------------------


@torch.no_grad()
def margins(model, processor, suite: Suite, config: RunConfig) -> np.ndarray:
    """Reward of CORRECT minus reward of ERROR for every case, float array (n,)."""
    model.eval()
    device, collate = next(model.parameters()).device, _collate(processor.tokenizer.pad_token_id)
    rows, parts = answer_rows(model, processor, suite, config), []
    size = max(1, config.eval_batch_size // 2)
    for start in tqdm(range(0, len(rows), size), desc="reward", leave=False):
        part = rows[start : start + size]
        batch = collate([row[0] for row in part] + [row[1] for row in part])
        batch = {
            name: value.to(device) if isinstance(value, torch.Tensor) else _to(value, device)
            for name, value in batch.items()
        }
        rewards = model(**batch).logits.float().squeeze(-1)
        parts.append((rewards[: len(part)] - rewards[len(part) :]).cpu().numpy())
    return np.concatenate(parts)


def _to(features: dict, device) -> dict:
    for feature in features.values():
        feature.pooler_output = feature.pooler_output.to(device)
    return features


def probability(margin: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability that CORRECT is preferred, from the margin of its reward over ERROR's."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(margin, dtype=float) / temperature, -500, 500)))


def preferred(config: RunConfig, suite: Suite) -> np.ndarray:
    """Calibrated probability that CORRECT is the better verdict of each case, float array (n,).

    The reward model is trained first if necessary; its answers are cached on disk like those of the systems.
    """
    return asked(config, suite)["p_correct"].to_numpy(float)


def asked(config: RunConfig, suite: Suite) -> pd.DataFrame:
    """Predictions table of the reward model on a suite; ``p_correct`` is computed from the column ``margin``."""
    out = train(config)
    temperature, loaded = metadata(config)["temperature"], {}

    def question(part: Suite) -> pd.DataFrame:
        if not loaded:  # only if an answer is missing from the cache
            processor, base = _load(config)
            loaded["processor"], loaded["model"] = VerdictModel(processor, base).with_adapter(out)
        return pd.DataFrame({"margin": margins(loaded["model"], loaded["processor"], part, config)})

    adapter = loading.file_hash(out / adapter_files.WEIGHTS)
    revision = provenance.digest([loading.base_hash(config.model), adapter])
    answers = Session(config, {}).kept("reward-model", revision, suite, question, chunk=256)
    # the temperature is not cached: other ratings may give another one for the same weights
    answers["p_correct"] = probability(answers["margin"], temperature)
    return stats.predictions_table(suite.scenarios, answers)
