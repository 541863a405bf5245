"""What a learning curve says about its recipe, and which parameters to change: numbers first.

The rules are plain thresholds on the losses that training wrote down (``training_metadata.json``),
so each diagnosis comes with the figures that it rests on. They propose the next run, they prove
nothing: a sweep (`medlib.reporting.sweep`) or that next run decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from medlib.config import VERDICTS, RunConfig, adapter_dir
from medlib.training import adapters

WORSE = 0.05  # a validation loss this share above its best is more than jitter ...
SMALL = 0.005  # ... if it also is this many nats above it
STILL_FALLING = 0.05  # the last measurement lowered the best loss by this share: not converged
REBOUND = 0.25  # training loss regained this share of all that it had lost: the steps are too long
GUESSING = 0.5  # below this share of a guess's loss the verdict is being learned

NOTHING = "nothing to mend"


def table(config: RunConfig) -> pd.DataFrame:
    """Diagnoses of this run's training as a table: Diagnosis, Evidence, Change."""
    found = diagnose(adapters.training_metadata(config), guessing_loss(config))
    return pd.DataFrame(
        {
            "Diagnosis": [d["diagnosis"] for d in found],
            "Evidence": [d["evidence"] for d in found],
            "Change": ["; ".join(d["changes"]) or "none" for d in found],
        }
    )


def diagnose(metadata: Mapping, guess: float | None = None) -> list[dict]:
    """Diagnoses with their evidence and what to change.

    Parameters
    ----------
    metadata : mapping
        Content of ``training_metadata.json``: ``history`` (entries with step, epoch and loss,
        eval_loss or grad_norm) and ``config``.
    guess : float, optional
        Loss of a model that knows the two answers and guesses between them, see :func:`guessing_loss`.

    Returns
    -------
    list of dict
        ``diagnosis``, ``evidence``, ``changes`` (one text a parameter) and ``parameters`` (new values
        by name); what matters most first, never empty.
    """
    config = metadata["config"]
    train = [(e["step"], e["loss"]) for e in metadata["history"] if "loss" in e]
    val = [(e["step"], e["epoch"], e["eval_loss"]) for e in metadata["history"] if "eval_loss" in e]
    broken = _diverged(train, val, config)
    if broken:
        return [broken]
    if len(val) < 2:
        return [
            _finding(
                f"too few measurements ({len(val)} of validation loss)",
                "a curve needs at least two",
                config,
                evaluations_per_epoch=max(4, 2 * config["evaluations_per_epoch"]),
            )
        ]
    rules = (
        _steps_too_long(train, config),
        _overfitting(train, val, config),
        _underfitting(val, config, guess),
        _not_converged(val, config),
    )
    found = [finding for finding in rules if finding]
    (_, _, first), (step, _, best) = val[0], min(val, key=lambda entry: entry[2])
    fine = f"validation loss fell from {first:.4g} to {best:.4g} (step {step:,}) and stayed there"
    return found or [_finding(NOTHING, fine, config)]


def guessing_loss(config: RunConfig) -> float:
    """Mean loss a token of a model that writes one of the two answers and picks it by a coin.

    All tokens are certain once the verdict is out, so the loss is ln 2 over the answer's length.
    """
    from transformers import AutoTokenizer

    from medlib.config import ANSWERS
    from medlib.models.prompts import END_OF_TURN

    tokenizer = AutoTokenizer.from_pretrained(adapter_dir(config))
    lengths = [len(tokenizer(f"{ANSWERS[v]}{END_OF_TURN}", add_special_tokens=False).input_ids) for v in VERDICTS]
    return math.log(len(VERDICTS)) / float(np.mean(lengths))


# --- the rules --------------------------------------------------------------------------------------


def _diverged(train, val, config) -> dict | None:
    bad = [step for step, loss in train if not math.isfinite(loss)]
    bad += [step for step, _, loss in val if not math.isfinite(loss)]
    if bad:
        return _finding(
            "diverged",
            f"loss is not a number from step {min(bad):,} on",
            config,
            lr=config["lr"] / 10,
            warmup_ratio=max(0.1, config["warmup_ratio"]),
        )
    return None


def _steps_too_long(train, config) -> dict | None:
    """Training loss that climbs back: medians of three, so that one hard batch is no climb."""
    loss = np.array([value for _, value in train])
    if len(loss) < 6:
        return None
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(loss, 3), axis=1)
    low = int(smooth.argmin())
    lost, regained = smooth[: low + 1].max() - smooth[low], smooth[low:].max() - smooth[low]
    never_fell = smooth[-1] > smooth[0]
    if not never_fell and (regained < SMALL or regained < REBOUND * lost):
        return None
    step, peak = train[low + 1][0], smooth[low:].max()
    evidence = (
        f"training loss rose from {smooth[0]:.4g} to {smooth[-1]:.4g}"
        if never_fell
        else f"training loss fell to {smooth[low]:.4g} (step {step:,}) and rose to {peak:.4g} again"
    )
    return _finding(
        "learning rate too high",
        evidence,
        config,
        lr=config["lr"] / 3,
        warmup_ratio=max(0.1, config["warmup_ratio"]),
    )


def _overfitting(train, val, config) -> dict | None:
    step, epoch, best = min(val, key=lambda entry: entry[2])
    last = val[-1][2]
    before = [loss for s, loss in train if s <= step][-3:]
    after = [loss for s, loss in train if s > step][-3:]
    if last < best * (1 + WORSE) or last < best + SMALL or not (before and after):
        return None
    if np.mean(after) >= np.mean(before):  # both rise: that is not overfitting
        return None
    evidence = (
        f"validation loss rose from {best:.4g} (step {step:,}) to {last:.4g} while training "
        f"loss fell from {np.mean(before):.4g} to {np.mean(after):.4g}"
    )
    dropout, rank = config["lora_dropout"], config["lora_rank"]
    return _finding(
        "overfitting",
        evidence,
        config,
        epochs=max(1, math.ceil(epoch)),
        lora_dropout=max(dropout, min(0.3, round(dropout + 0.1, 2))),
        lora_rank=min(rank, max(4, rank // 2)),
        paraphrase_copies=config.get("paraphrase_copies", 0) + 1,
    )


def _underfitting(val, config, guess) -> dict | None:
    """A loss that has settled no better than a guess between the two answers."""
    best = min(loss for *_, loss in val)
    if guess is None or best < GUESSING * guess or _gain(val) >= STILL_FALLING:
        return None
    evidence = (
        f"validation loss settled at {best:.4g}; guessing the verdict gives {guess:.4g}, "
        f"and the last measurement changed the best by {100 * _gain(val):.1f}%"
    )
    targets = "attention+mlp" if config["lora_targets"] == "attention" else config["lora_targets"]
    return _finding(
        "underfitting",
        evidence,
        config,
        lora_rank=2 * config["lora_rank"],
        lora_targets=targets,
        lr=2 * config["lr"],
        lora_dropout=round(config["lora_dropout"] / 2, 3),
    )


def _not_converged(val, config) -> dict | None:
    if _gain(val) < STILL_FALLING:
        return None
    (_, _, earlier), (step, _, last) = val[-2], val[-1]
    evidence = (
        f"validation loss was still falling at the end: its last measurement (step {step:,}) is "
        f"{last:.4g}, the one before {earlier:.4g}"
    )
    return _finding("not converged", evidence, config, epochs=2 * config["epochs"])


def _gain(val) -> float:
    """By which share the last measurement of validation loss is below the best before it; 0 if above."""
    before = min(loss for *_, loss in val[:-1])
    gain = before - val[-1][2]
    return max(0.0, gain / before) if gain >= SMALL else 0.0


def _finding(diagnosis: str, evidence: str, config: Mapping, **parameters) -> dict:
    changed = {name: value for name, value in parameters.items() if config.get(name) != value}
    changes = [f"{name} {_shown(config.get(name))} → {_shown(value)}" for name, value in changed.items()]
    return {"diagnosis": diagnosis, "evidence": evidence, "changes": changes, "parameters": changed}


def _shown(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
