"""What 03_train_lora shows."""

from __future__ import annotations

from collections.abc import Mapping

TRAINING_FACTS = {
    "trainable_parameters": "Trainable parameters",
    "total_parameters": "All parameters",
    "trainable_percent": "Trainable, per cent",
    "epochs_run": "Epochs run",
    "steps": "Optimizer steps",
    "train_loss": "Mean training loss",
    "best_eval_loss": "Best validation loss",
    "samples_per_second": "Scenarios per second",
    "wall_seconds": "Seconds in all",
    "peak_memory_mib": "Peak memory, MiB",
    "device": "Device",
    "resumed": "Resumed after an interruption",
}


def loss_sentence(metadata: Mapping) -> str:
    """Whether validation loss fell, and where it was best."""
    losses = [(e["step"], e["eval_loss"]) for e in metadata["history"] if e.get("eval_loss")]
    if not losses:
        return "There was no validation suite, so nothing says when the model began to overfit."
    (_, first), (step, best) = losses[0], min(losses, key=lambda entry: entry[1])
    last_step, last = losses[-1]
    if step == last_step:
        end = "It was still at its best at the end: more epochs may help."
    else:
        end = f"It ended at {last:.3f}; the adapter kept is the one of step {step:,}."
    return (
        f"Loss on the validation suite went from {first:.3f} at its first measurement to "
        f"{best:.3f} at step {step:,}. {end}"
    )
