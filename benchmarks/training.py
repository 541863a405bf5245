"""Training against a plain TRL script: same model, scenarios, effective batch, learning rate and loss.

Each system trains in a process of its own, one after the other. The plain script is what TRL's
documentation shows for images: a data set of prompts, completions and images, TRL's collator, which
reads pixels and words anew at every step, and PEFT's `LoraConfig` handed to `SFTTrainer`. It runs twice:
with TRL's default of gradient checkpointing, and without, as ours does on a CPU.

    python benchmarks/training.py --pairs 120
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, Image, Sequence
from transformers import set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from medlib.config import ANSWERS, resolve
from medlib.data import sources
from medlib.models import loading, prompts
from medlib.training import encoding, lora, memory, trainer

SYSTEMS = {
    "ours": "features once an image, loss on the answer's positions",
    "plain": "TRL SFTTrainer + PEFT, gradient checkpointing off",
    "plain, TRL's defaults": "TRL SFTTrainer + PEFT, gradient checkpointing on",
}
BAR = 1.3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def ours(config, suites, folder: str) -> None:
    """`supervised.train` without the core set, from loaded model to saved adapter."""
    model = suites.pop("model")
    train_rows, val_rows = (encoding.encode_suites(config, model, [suites[s]]) for s in ("train", "val"))
    trainer.train_adapter(model, train_rows, val_rows, config, folder, quiet=True)


def plain(config, suites, folder: str, checkpointing: bool) -> None:
    """The usual script; only what must be equal for a comparison is set."""
    processor, base = suites.pop("model")
    steps = -(-len(suites["train"]) // config.batch_size)
    interval = max(1, steps // config.evaluations_per_epoch)
    trainer = SFTTrainer(
        model=base,
        processing_class=processor,
        peft_config=lora.lora_config(config),
        train_dataset=dataset(suites["train"]),
        eval_dataset=dataset(suites["val"]),
        data_collator=Collator(processor, completion_only_loss=True),
        args=SFTConfig(
            output_dir=folder,
            num_train_epochs=config.epochs,
            max_length=None,
            use_cpu=base.device.type == "cpu",
            bf16=base.dtype == torch.bfloat16,
            per_device_train_batch_size=config.batch_size,
            seed=config.seed,
            data_seed=config.seed,
            per_device_eval_batch_size=min(config.eval_batch_size, 4 * config.batch_size),
            learning_rate=config.lr,
            weight_decay=config.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(config.warmup_ratio * steps * config.epochs)),
            eval_strategy="steps",
            eval_steps=interval,
            save_strategy="steps",
            save_steps=interval,
            save_total_limit=2,
            logging_steps=max(1, interval // 5),
            report_to="none",
            gradient_checkpointing=checkpointing,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(folder)


class Collator(DataCollatorForVisionLanguageModeling):
    """TRL's own, but for the newline behind the answer's turn, which ours does not train either."""

    def torch_call(self, examples: list[dict]) -> dict:
        batch = super().torch_call(examples)
        newline = self.processor.tokenizer("\n", add_special_tokens=False).input_ids[-1]
        batch["labels"][batch["labels"] == newline] = -100
        return batch


def dataset(suite) -> Dataset:
    """Prompt, completion and image, as TRL's vision examples have them."""
    rows = [
        {
            "prompt": [{"role": "user", "content": prompts.messages(s, None)[0]["content"][0]["text"]}],
            "completion": [{"role": "assistant", "content": ANSWERS[s.verdict]}],
            "images": [str(suite.images_dir / s.image)],
        }
        for s in suite.scenarios
    ]
    return Dataset.from_list(rows).cast_column("images", Sequence(Image()))


def run(system: str, config, clock) -> dict:
    """Train one system in this process; seconds count from the loaded model."""
    suites = {split: sources.suite(config, split) for split in ("train", "val")}
    suites["model"] = loading.load_for(config)
    set_seed(config.seed)
    validations, evaluate, started = [], SFTTrainer.evaluate, clock()

    def timed(trainer, *args, **kwargs):
        result = evaluate(trainer, *args, **kwargs)
        validations.append(
            {"step": trainer.state.global_step, "loss": result["eval_loss"], "seconds": clock() - started}
        )
        return result

    SFTTrainer.evaluate = timed
    scenarios = config.epochs * len(suites["train"])
    with tempfile.TemporaryDirectory() as folder:
        if system == "ours":
            ours(config, suites, folder)
        else:
            plain(config, suites, folder, checkpointing=system != "plain")
    seconds = clock() - started
    return {
        "system": system,
        "samples_per_second": scenarios / seconds,
        "seconds": seconds,
        "peak_memory_mib": memory.peak_memory_mib(),
        "validations": validations,
        "device": str(loading.pick_device()),
        "threads": torch.get_num_threads(),
    }


def compare(results: list[dict]) -> dict:
    """Ratios to both plain scripts, seconds to a loss that all reach, and how far the curves are apart."""
    by_name = {r["system"]: r for r in results}
    target = max(min(v["loss"] for v in r["validations"]) for r in results)
    for r in results:
        r["seconds_to_loss"] = next(v["seconds"] for v in r["validations"] if v["loss"] <= target)
    curves = [[v["loss"] for v in by_name[name]["validations"]] for name in ("ours", "plain")]
    speed = by_name["ours"]["samples_per_second"]
    return {
        "target_loss": target,
        "largest_difference_of_validation_loss": max(abs(a - b) for a, b in zip(*curves, strict=True)),
        "times_plain": speed / by_name["plain"]["samples_per_second"],
        "times_trl_defaults": speed / by_name["plain, TRL's defaults"]["samples_per_second"],
        "bar": BAR,
        "results": results,
    }


def table(comparison: dict) -> str:
    """The results in Markdown."""
    lines = [
        "| System | Samples/s | Peak memory (MiB) | Seconds to validation loss "
        f"{comparison['target_loss']:.3f} | What it is |",
        "|:---|---:|---:|---:|:---|",
    ]
    lines += [
        f"| {r['system']} | {r['samples_per_second']:.1f} | {r['peak_memory_mib']:.0f} | "
        f"{r['seconds_to_loss']:.0f} | {SYSTEMS[r['system']]} |"
        for r in comparison["results"]
    ]
    verdict = {
        name: f"{comparison[name]:.2f} times ({'met' if comparison[name] >= BAR else 'missed'})"
        for name in ("times_plain", "times_trl_defaults")
    }
    return "\n".join(
        [
            *lines,
            "",
            f"Ours against plain: {verdict['times_plain']}; against TRL's defaults: "
            f"{verdict['times_trl_defaults']}; bar {BAR}. Validation loss at equal steps: at most "
            f"{comparison['largest_difference_of_validation_loss']:.1e} apart.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="standin")
    parser.add_argument("--pairs", type=int, default=120, help="training pairs")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that others use too")
    parser.add_argument("--system", choices=SYSTEMS, help="one system, in this process")
    arguments = parser.parse_args()
    # dropout would draw other masks for other batches
    config = resolve(
        arguments.profile,
        train_pairs=arguments.pairs,
        val_pairs=24,
        epochs=arguments.epochs,
        lora_dropout=0,
        early_stopping_patience=0,
    )
    if arguments.system:
        print("RESULT " + json.dumps(run(arguments.system, config, CLOCKS[arguments.clock])))
        return
    for split in ("train", "val"):
        sources.suite(config, split)  # drawn before any clock runs
    results = []
    for system in SYSTEMS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--system", system],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        if done.returncode:
            sys.exit(done.stderr)
        results.append(json.loads(done.stdout.rpartition("RESULT ")[2]))
    comparison = compare(results)
    print(json.dumps(comparison, indent=2))
    print("\n" + table(comparison))


if __name__ == "__main__":
    main()
