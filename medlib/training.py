"""LoRA fine-tuning on scenarios: encode once, train with TRL, save an adapter that PEFT loads."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from medlib import prompts
from medlib.config import RunConfig
from medlib.schema import ANSWERS, Scenario, load_image

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def lora_config(config: RunConfig) -> LoraConfig:
    """LoRA on the decoder only; the tower has q/k/v projections too, so the pattern names the decoder."""
    modules = ATTENTION + (MLP if config.lora_targets == "attention+mlp" else ())
    return LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        task_type="CAUSAL_LM", target_modules=rf".*language_model.*\.({'|'.join(modules)})",
    )


def trainable_share(model) -> tuple[int, int, float]:
    """(trainable, total, share in percent) of a model's parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return trainable, total, 100 * trainable / total


# --- data -----------------------------------------------------------------------------------------


def encode(processor, scenarios: list[Scenario], images_dirs: list[Path], batch_size: int = 32) -> list[dict]:
    """Tokenise every scenario once, with labels on the answer's tokens only.

    Returns
    -------
    list of dict with ``input_ids``, ``token_type_ids``, ``labels`` (1-D int64 tensors of equal length)
    and ``pixel_values`` (float tensor, crops x 3 x height x width)
    """
    rows = []
    for start in tqdm(range(0, len(scenarios), batch_size), desc="encoding", leave=False):
        part = slice(start, start + batch_size)
        pictures = [load_image(d / s.image) for s, d in zip(scenarios[part], images_dirs[part])]
        rows += [_encode_one(processor, s, p) for s, p in zip(scenarios[part], pictures)]
    return rows


def _encode_one(processor, scenario: Scenario, picture) -> dict:
    def tokens(turns, **options):
        return processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt", **options)

    full = tokens(prompts.messages(scenario, picture, ANSWERS[scenario.verdict]))
    prompt = tokens(prompts.messages(scenario, picture), add_generation_prompt=True)
    ids, start = full["input_ids"][0], prompt["input_ids"].shape[1]
    if not torch.equal(ids[:start], prompt["input_ids"][0]):
        raise ValueError(f"{scenario.id}: the chat template does not put the answer after the prompt")
    labels = ids.clone()
    labels[:start] = -100
    end = start + int((ids[start:] == _end_of_turn(processor)).nonzero()[0]) + 1
    labels[end:] = -100  # the newline after the turn is not part of the answer
    return {
        "input_ids": ids, "token_type_ids": full["token_type_ids"][0], "labels": labels,
        "pixel_values": full["pixel_values"],
    }


def _end_of_turn(processor) -> int:
    return processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")


@torch.no_grad()
def cache_image_features(model, rows: list[dict], batch_size: int = 64) -> list[dict]:
    """Replace pixels by what the frozen tower and projector make of them; equal results, less work."""
    device = next(model.parameters()).device
    for start in tqdm(range(0, len(rows), batch_size), desc="image features", leave=False):
        part = rows[start : start + batch_size]
        pixels = torch.cat([row["pixel_values"] for row in part]).to(device)
        features = model.get_image_features(pixels).pooler_output.cpu()
        for row, feature in zip(part, features.split([len(row["pixel_values"]) for row in part])):
            del row["pixel_values"]
            row["image_features"] = feature
    return rows


def collator(pad_token_id: int):
    """Batch encoded rows, padded at the right end."""

    def collate(rows: list[dict]) -> dict:
        def pad(name, value):
            return torch.nn.utils.rnn.pad_sequence([r[name] for r in rows], batch_first=True, padding_value=value)

        lengths = torch.tensor([len(r["input_ids"]) for r in rows])
        batch = {
            "input_ids": pad("input_ids", pad_token_id), "labels": pad("labels", -100),
            "token_type_ids": pad("token_type_ids", 0),
        }
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1])[None] < lengths[:, None]).long()
        if "image_features" in rows[0]:
            features = torch.cat([r["image_features"] for r in rows])
            batch["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        else:
            batch["pixel_values"] = torch.cat([r["pixel_values"] for r in rows])
        return batch

    return collate


# --- training -------------------------------------------------------------------------------------


def train_adapter(
    base, processor, train_rows: list[dict], val_rows: list[dict], config: RunConfig, out_dir: str | Path,
    resume: bool = True, extra: dict | None = None, quiet: bool = False,
) -> Path:
    """Train a LoRA adapter and save it; an interrupted call continues from its last checkpoint.

    Parameters
    ----------
    base : model from :func:`medlib.models.load`; its weights are not changed
    train_rows, val_rows : from :func:`encode`; the best checkpoint is the one of least loss on
        ``val_rows``, none is chosen if there are none
    out_dir : gets ``adapter_model.safetensors``, ``adapter_config.json``, processor files and
        ``training_metadata.json``

    Returns
    -------
    Path of ``out_dir``
    """
    out_dir = Path(out_dir)
    checkpoints = out_dir / "checkpoints"
    if not resume:
        clear_checkpoints(out_dir)
    last = _last_checkpoint(checkpoints)
    epochs_before = json.loads((Path(last) / "trainer_state.json").read_text())["epoch"] if last else 0
    set_seed(config.seed)
    forward = base.__dict__.get("forward")
    model = get_peft_model(base, lora_config(config))
    try:
        trainer = _trainer(model, processor, train_rows, val_rows, config, checkpoints)
        if not quiet:
            print(f"{len(train_rows)} training and {len(val_rows)} validation scenarios; " + describe(model),
                  flush=True)
        started = time.time()
        result = trainer.train(resume_from_checkpoint=last)
        model.peft_config["default"].base_model_name_or_path = config.model  # not this machine's path
        model.save_pretrained(out_dir, save_embedding_layers=False)  # untouched; "auto" would ask the hub
        processor.save_pretrained(out_dir)
        metadata = _metadata(model, trainer, result, config, time.time() - started, epochs_before)
        (out_dir / "training_metadata.json").write_text(json.dumps(metadata | (extra or {}), indent=2) + "\n")
    finally:  # the base comes back as it was, after an interruption too
        model.unload()
        base.__dict__.pop("forward", None)  # TRL wraps the instance's forward
        if forward is not None:
            base.forward = forward
        base.eval()
    return out_dir


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete checkpoint; the trainer's state is written last, so without it one is cut off."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def clear_checkpoints(out_dir: str | Path) -> None:
    """Forget an unfinished training."""
    shutil.rmtree(Path(out_dir) / "checkpoints", ignore_errors=True)


def describe(model) -> str:
    """One line: trainable parameters and their share."""
    trainable, total, share = trainable_share(model)
    return f"{trainable:,} of {total:,} parameters trainable ({share:.2f} %)"


def _trainer(model, processor, train_rows, val_rows, config: RunConfig, checkpoints: Path) -> SFTTrainer:
    steps_per_epoch = -(-len(train_rows) // (config.batch_size * config.gradient_accumulation))
    interval = max(1, steps_per_epoch // config.evaluations_per_epoch)
    device = next(model.parameters()).device.type
    arguments = SFTConfig(
        output_dir=str(checkpoints), seed=config.seed, data_seed=config.seed,
        num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.lr, weight_decay=config.weight_decay, lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup_ratio * steps_per_epoch * config.epochs)),
        bf16=next(model.parameters()).dtype == torch.bfloat16, use_cpu=device == "cpu",
        eval_strategy="steps" if val_rows else "no", eval_steps=interval,
        save_strategy="steps", save_steps=interval, save_total_limit=2,
        load_best_model_at_end=bool(val_rows), metric_for_best_model="eval_loss" if val_rows else None,
        logging_steps=max(1, interval // 5), report_to="tensorboard",
        gradient_checkpointing=device == "cuda", max_length=None,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device == "cuda", disable_tqdm=not sys.stderr.isatty(),
    )
    stop = [EarlyStoppingCallback(config.early_stopping_patience)] if val_rows and config.early_stopping_patience else []
    # TRL wants a `datasets.Dataset`; ours carries row numbers, so that the tensors are never copied
    rows, collate = train_rows + val_rows, collator(processor.tokenizer.pad_token_id)
    return SFTTrainer(
        model=model, args=arguments, processing_class=processor, callbacks=stop,
        data_collator=collator(processor.tokenizer.pad_token_id),
        train_dataset=_dataset(train_rows), eval_dataset=_dataset(val_rows) if val_rows else None,
    )


def _dataset(rows: list[dict]) -> Dataset:
    """The data set type that TRL asks for; a transform looks rows up, so tensors stay tensors."""

    def look_up(batch: dict) -> dict:
        return {name: [rows[i][name] for i in batch["row"]] for name in rows[0]}

    return Dataset.from_dict({"row": list(range(len(rows)))}).with_transform(look_up)


def _metadata(model, trainer, result, config, seconds, epochs_before) -> dict:
    trainable, total, share = trainable_share(model)
    samples = (trainer.state.epoch - epochs_before) * len(trainer.train_dataset)  # TRL counts those not run, too
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return {
        "base_model": config.model, "trainable_parameters": trainable, "total_parameters": total,
        "trainable_percent": round(share, 4), "epochs_run": trainer.state.epoch, "steps": trainer.state.global_step,
        "train_loss": result.training_loss, "best_eval_loss": trainer.state.best_metric,
        "loss_per_epoch": losses_per_epoch(history), "history": history,
        "samples_per_second": round(samples / seconds, 2), "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(peak_memory_mib()), "device": str(next(model.parameters()).device),
        "resumed": epochs_before > 0, "config": config.model_dump(),
    }


def losses_per_epoch(history: list[dict]) -> list[dict]:
    """Mean training loss and last validation loss of each epoch begun."""
    epochs: dict[int, dict] = {}
    for entry in history:
        number = max(1, -int(-entry["epoch"] // 1))
        epoch = epochs.setdefault(number, {"epoch": number, "losses": [], "eval_loss": None})
        if "loss" in entry:
            epoch["losses"].append(entry["loss"])
        epoch["eval_loss"] = entry.get("eval_loss", epoch["eval_loss"])
    return [
        {"epoch": e["epoch"], "train_loss": sum(e["losses"]) / len(e["losses"]) if e["losses"] else None,
         "eval_loss": e["eval_loss"]}
        for e in epochs.values()
    ]


def peak_memory_mib() -> float:
    """Peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
