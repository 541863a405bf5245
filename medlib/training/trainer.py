"""LoRA fine-tuning on scenarios: encode once, train with TRL, save an adapter that PEFT loads."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from trl import SFTConfig

from medlib.config import RunConfig, files, jobs
from medlib.models.verdict_model import VerdictModel
from medlib.training import adapters, encoding, hooks, lora, memory, processes
from medlib.training.checkpoints import clear_checkpoints, last_whole_checkpoint

# --- training -------------------------------------------------------------------------------------


def train_adapter(
    model: VerdictModel,
    train_rows: list[dict],
    val_rows: list[dict],
    config: RunConfig,
    out_dir: str | Path,
    resume: bool = True,
    extra: dict | None = None,
    quiet: bool = False,
) -> Path:
    """Train a LoRA adapter and save it; an interrupted call continues from its last checkpoint.

    Out of memory, the micro-batch is halved and the accumulation doubled, and training goes on from
    its last checkpoint: the effective batch, and so the adapter up to rounding and dropout, stays.

    Parameters
    ----------
    model : the base; its weights are not changed
    train_rows, val_rows : from :func:`encode`; the best checkpoint is the one of least loss on
        ``val_rows``, none is chosen if there are none
    out_dir : gets ``adapter_model.safetensors``, ``adapter_config.json``, processor files and
        ``training_metadata.json``, written by the first of several processes

    Returns
    -------
    Path of ``out_dir``

    Raises
    ------
    ModelError
        If not even one scenario a forward pass fits into memory, or, with several processes, if one
        of them runs out: the others wait for it, so none can go on alone.
    """
    out_dir = Path(out_dir)
    with processes.state().main_process_first():
        if processes.state().is_main_process and not resume:
            clear_checkpoints(out_dir)
        last_whole_checkpoint(out_dir / "checkpoints")
    current = config

    def attempt(batch_size: int) -> None:
        _train(model, train_rows, val_rows, current, out_dir, extra or {}, quiet)

    def smaller(batch_size: int) -> int:
        nonlocal current
        current = memory.smaller_micro_batch(current)
        processes.say(
            f"out of memory with {batch_size} scenarios a forward pass; going on from the last "
            f"checkpoint with {current.batch_size}, and {current.gradient_accumulation} passes "
            "an optimizer step: the effective batch stays"
        )
        return current.batch_size

    memory.until_it_fits(attempt, config.batch_size, smaller)
    processes.state().wait_for_everyone()
    return out_dir


def _train(untrained: VerdictModel, train_rows, val_rows, config, out_dir, extra, quiet) -> None:
    """One try at the micro-batch of ``config``; leaves the base as it was, whatever happens."""
    processor, base = untrained
    checkpoints = out_dir / "checkpoints"
    last = last_whole_checkpoint(checkpoints)
    epochs_before = json.loads((Path(last) / "trainer_state.json").read_text())["epoch"] if last else 0
    set_seed(config.seed)
    with contextlib.ExitStack() as back:  # the base comes back as it was, after an interruption too
        back.callback(base.eval)
        back.enter_context(hooks.same_forward(base))
        model = get_peft_model(base, lora.lora_config(config))
        back.callback(model.unload)
        trainer = _trainer(model, processor, train_rows, val_rows, config, checkpoints)
        if not quiet:
            processes.say(
                f"{len(train_rows)} training and {len(val_rows)} validation scenarios; {lora.describe(model)}"
            )
            trainer.add_callback(Progress("training"))
        started = time.time()
        result = trainer.train(resume_from_checkpoint=last)
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if processes.sharded() else None
        if processes.state().is_main_process:
            adapters.save_adapter(model, processor, config, out_dir, weights)
            metadata = _metadata(model, trainer, result, config, time.time() - started, epochs_before)
            files.write_text(out_dir / adapters.METADATA, json.dumps(metadata | extra, indent=2) + "\n")


class Progress(TrainerCallback):
    """Says which step a training is at (`medlib.config.jobs.progress`)."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_step_end(self, args, state, control, **kwargs) -> None:
        jobs.progress(f"{self.title}: step {state.global_step} of {state.max_steps}")


class _GroupedByLength(torch.utils.data.Sampler):
    """`epoch_order` of whatever epoch the trainer is in, so that a resumed one goes on in its order."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, steps_done) -> None:
        self.lengths, self.batch_size, self.seed, self.steps_done = lengths, batch_size, seed, steps_done

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        epoch = self.steps_done() // -(-len(self) // self.batch_size)
        return iter(encoding.epoch_order(self.lengths, self.batch_size, self.seed, epoch))


def _trainer(
    model, processor, train_rows, val_rows, config: RunConfig, checkpoints: Path
) -> hooks.SupervisedTrainer:
    effective_batch = config.batch_size * config.gradient_accumulation * processes.count()
    steps_per_epoch = -(-len(train_rows) // effective_batch)
    interval = max(1, steps_per_epoch // config.evaluations_per_epoch)
    device = next(model.parameters()).device.type
    main = processes.state().is_main_process
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        # no activations are kept for a backward pass; it shrinks with the micro-batch
        per_device_eval_batch_size=min(config.eval_batch_size, 4 * config.batch_size),
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup_ratio * steps_per_epoch * config.epochs)),
        bf16=next(model.parameters()).dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        eval_strategy="steps" if val_rows else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=bool(val_rows),
        metric_for_best_model="eval_loss" if val_rows else None,
        logging_steps=max(1, interval // 5),
        logging_nan_inf_filter=False,
        report_to="none",  # event files carry the host's name; the history is in the metadata
        # FSDP recomputes by its own setting, and refuses to be told twice
        gradient_checkpointing=memory.recomputes(config, device) and not processes.sharded(),
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device == "cuda",
        dataloader_num_workers=config.workers,
        disable_tqdm=not (main and sys.stderr.isatty()),
    )
    hooks.one_card(arguments)
    patience = config.early_stopping_patience if val_rows else 0
    # TRL wants a `datasets.Dataset`; ours carries row numbers, so that the tensors are never copied
    rows, collate = train_rows + val_rows, encoding.collator(processor.tokenizer.pad_token_id)
    numbers = Dataset.from_dict({"row": list(range(len(rows)))})
    trainer = hooks.SupervisedTrainer(
        model=model,
        args=arguments,
        processing_class=processor,
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
        data_collator=lambda batch: collate([rows[item["row"]] for item in batch]),
        train_dataset=numbers.select(range(len(train_rows))),
        eval_dataset=numbers.select(range(len(train_rows), len(rows))) if val_rows else None,
    )
    hooks.float_adapter(model)
    if config.group_by_length:
        lengths = [len(row["input_ids"]) for row in train_rows]
        trainer.order = _GroupedByLength(lengths, effective_batch, config.seed, lambda: trainer.state.global_step)
    return trainer


def _metadata(model, trainer, result, config, seconds, epochs_before) -> dict:
    trainable, total, share = lora.trainable_share(model)
    samples = (trainer.state.epoch - epochs_before) * len(trainer.train_dataset)  # TRL counts those not run, too
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return {
        **adapters.base(config),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_percent": round(share, 4),
        "epochs_run": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "train_loss": result.training_loss,
        "best_eval_loss": trainer.state.best_metric,
        "loss_per_epoch": losses_per_epoch(history),
        "history": history,
        "samples_per_second": round(samples / seconds, 2),
        "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(memory.peak_memory_mib()),
        "device": str(next(model.parameters()).device),
        "resumed": epochs_before > 0,
        "processes": processes.count(),
        "config": config.model_dump(),
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
        {
            "epoch": e["epoch"],
            "train_loss": sum(e["losses"]) / len(e["losses"]) if e["losses"] else None,
            "eval_loss": e["eval_loss"],
        }
        for e in epochs.values()
    ]
