"""What 03_train_lora shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from itertools import groupby

import pandas as pd
from IPython.display import HTML

from medlib.config import RunConfig
from medlib.config.provenance import public_value
from medlib.config.settings import Data, Model, Run, Training
from medlib.data import sources
from medlib.models import loading
from medlib.reporting import show
from medlib.training import encoding, lora

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


def lora_table(config: RunConfig) -> pd.DataFrame:
    """What LoRA adds to the model, read from the configuration that PEFT gets."""
    made = lora.lora_config(config)
    root = math.sqrt(made.r) if made.use_rslora else made.r
    matrices = sorted(set(re.findall(r"\w+_proj", made.target_modules))) or ["every linear layer"]
    rows = {
        "Matrices": f"{', '.join(matrices)} of the decoder"
        + " and the vision tower" * ("tower" in made.target_modules),
        "Rank r": f"{made.r}: B has r columns, A has r rows",
        "Scale": f"{made.lora_alpha / root:.3g} = alpha {made.lora_alpha} / " + ("√r" if made.use_rslora else "r"),
        "Dropout before A": f"{made.lora_dropout:g}",
        "Variant": "DoRA: magnitude and direction apart" if made.use_dora else "LoRA",
    }
    if made.target_parameters:
        rows["Matrices"] += ", and the projector from the vision tower to the decoder"
    return pd.DataFrame({"LoRA": list(rows), "This run": list(rows.values())})


def recipe_table(config: RunConfig) -> pd.DataFrame:
    """The settings that decide what the adapter learns, by stage, next to their defaults."""
    rows = []
    for stage in (Run, Model, Data, Training):
        for name, value in config.of(stage).items():
            default = RunConfig.model_fields[name].default
            row = {"Stage": stage.__name__, "Setting": name, "Value": show.fact(public_value(value, name))}
            rows.append(row | {"Default": "same" if value == default else show.fact(default)})
    return pd.DataFrame(rows)


def encoded_case(config: RunConfig) -> HTML:
    """The first training case as tokens: image tokens counted, the tokens that count in the loss marked."""
    processor = loading.load_processor(config.model, config.trust_remote_code)
    suite = sources.suite(config, "train")
    (row,) = encoding.encode(processor, suite.scenarios[:1], [suite.images_dir])
    is_image, is_learned = row["token_type_ids"] == 1, row["labels"] >= 0
    kinds = ["image" if i else "learned" if k else "read" for i, k in zip(is_image, is_learned)]
    return HTML(_marked(row["input_ids"].tolist(), kinds, processor))


def _marked(ids: list[int], kinds: list[str], processor) -> str:
    """Tokens as HTML that reads well without styles; every learned token is marked on its own."""
    parts = []
    for kind, run in groupby(zip(ids, kinds), lambda pair: pair[1]):
        tokens = [token for token, _ in run]
        if kind == "image":
            parts.append(f"<i>«{len(tokens)} image tokens»</i>")
        elif kind == "learned":
            parts += [f"<mark><b>[{_token_text(processor, [token])}]</b></mark>" for token in tokens]
        else:
            parts.append(_token_text(processor, tokens))
    return (
        f"<p>{' '.join(parts)}</p><p>{len(ids):,} tokens, {kinds.count('image'):,} of them of the image; "
        f"<b>{kinds.count('learned')} are learned</b>, each marked in [brackets].</p>"
    )


def _token_text(processor, tokens: list[int]) -> str:
    return escape(processor.tokenizer.decode(tokens)).strip().replace("\n", "<br>")


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
