"""What GRPO and DPO share of TRL: arguments, micro-batches, callback, checkpoints, restoring the model.

To TRL's trainers a prompt is one number, the row of its case; `packing` has what stands behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PrinterCallback, TrainerCallback

from medlib.config import files, provenance
from medlib.training import hooks, memory, processes
from medlib.training.checkpoints import checkpoint_folder, last_whole_checkpoint

#: A checkpoint's last file: what the monitor has seen up to there.
HISTORY = "history.json"


def arguments(task, lr: float, folder: Path) -> dict:
    """TRL's arguments that both methods share: one pass over the cases in the order of ``task.minibatches()``."""
    config, model = task.config, task.model
    device = next(model.parameters()).device.type
    updates = len(task.minibatches())
    return dict(
        output_dir=str(folder),
        seed=task.seed,
        data_seed=task.seed,
        num_train_epochs=1,
        max_steps=updates,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=max(1, updates // 20),
        weight_decay=0,
        bf16=next(model.parameters()).dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        disable_dropout=True,
        gradient_checkpointing=memory.recomputes(config, device),
        logging_steps=1,
        report_to="none",
        save_strategy="steps",
        save_steps=max(1, updates // 4),
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        disable_tqdm=not (processes.state().is_main_process and sys.stderr.isatty()),
    )


def micro_batch(config, batch: int) -> tuple[int, int]:
    """(cases per forward pass, passes per update) for an update over ``batch`` cases.

    >>> from medlib.config.settings import RunConfig
    >>> micro_batch(RunConfig(batch_size=4), 6)
    (3, 2)
    """
    cases = next(n for n in range(min(config.batch_size, batch), 0, -1) if batch % n == 0)
    return cases, batch // cases


class MonitorCallback(TrainerCallback):
    """Reports every update to ``task.monitor``, which may stop the run; saves its history with checkpoints.

    Parameters
    ----------
    figures : TRL's figures to report, and their names in the history
    """

    def __init__(self, task, figures: dict[str, str]) -> None:
        self.task, self.figures = task, figures

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.global_step:  # an interrupted run goes on
            self.task.monitor.resumed(json.loads(self._history(args, state).read_text()))

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "loss" not in logs:  # TRL's summary at the end
            return
        figures = {name: logs[key] for key, name in self.figures.items() if logs.get(key) is not None}
        if self.task.monitor(state.global_step, **figures):
            control.should_training_stop = True

    def on_save(self, args, state, control, **_) -> None:
        files.write_json(self._history(args, state), self.task.monitor.history)

    @staticmethod
    def _history(args, state) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / HISTORY


def run(task, trainer) -> None:
    """Train to the end, from the last checkpoint if a run of the same settings was interrupted."""
    hooks.float_adapter(task.model)
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder, HISTORY))
    shutil.rmtree(folder, ignore_errors=True)


def checkpoints(task, method: str) -> Path:
    """Folder of a run's checkpoints; those of other settings, cases or another adapter are deleted."""
    adapter = {name: value.contiguous() for name, value in task.model.named_parameters() if ".default" in name}
    fingerprint = provenance.digest(
        [
            method,
            task.seed,
            task.config.model_dump(),
            task.suite.sha256,
            task.rewards.tolist(),
            hashlib.sha256(save(adapter)).hexdigest(),
        ]
    )
    return checkpoint_folder(task.folder, fingerprint)


@contextlib.contextmanager
def restored(model) -> Iterator[None]:
    """Afterwards undo all that a trainer does to a model besides training its adapter, also after an error."""
    base, mode = model.get_base_model(), model.training
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    try:
        with hooks.same_forward(model, base):
            yield
    finally:
        for module, p in dropouts:
            module.p = p
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.set_adapter("default")
        if base.is_activation_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        model.train(mode)
