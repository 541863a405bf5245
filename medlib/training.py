"""LoRA fine-tuning on scenarios: encode once, train with TRL, save an adapter that PEFT loads."""

from __future__ import annotations

import functools
import json
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from medlib import launch, models, prompts
from medlib.config import ConfigError, RunConfig
from medlib.schema import ANSWERS, Scenario, load_image

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TOWER = ("q_proj", "k_proj", "v_proj", "out_proj")
#: The projector's matrix is a bare parameter in Gemma 3, so no module could be named for it.
PROJECTOR = "multi_modal_projector.mm_input_projection_weight"
#: Choices of ``lora_targets`` that change what becomes of a picture; its features cannot be kept then.
CHANGES_PICTURES = ("projector", "vision")


def lora_config(config: RunConfig) -> LoraConfig:
    """What LoRA changes, by ``config.lora_targets``.

    The tower has q/k/v projections too, so every pattern names the part of the model that it means.

    - ``attention``: q, k, v, o of the decoder
    - ``attention+mlp``: these, and gate, up, down
    - ``all-linear``: every linear layer of the decoder but the head; in Gemma 3 the same as the above
    - ``projector``: the decoder's attention, and the matrix from tower to decoder. LoRA on a bare
      parameter has no dropout, so ``lora_dropout`` is 0 for the whole adapter
    - ``vision``: the attention of decoder and vision tower

    Raises
    ------
    ConfigError
        For DoRA on the projector, which PEFT does not have.

    References
    ----------
    LoRA: Hu et al. 2021, arXiv:2106.09685. rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. DoRA:
    Liu et al. 2024, arXiv:2402.09353.
    """
    names = {"attention+mlp": "|".join(ATTENTION + MLP), "all-linear": r"\w+_proj"}
    decoder = rf".*language_model.*\.({names.get(config.lora_targets, '|'.join(ATTENTION))})"
    tower = rf".*vision_tower.*\.({'|'.join(TOWER)})"
    projector = config.lora_targets == "projector"
    if projector and config.use_dora:
        raise ConfigError("lora_targets=projector: DoRA is not defined for a bare parameter; "
                          "set use_dora=false")
    return LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, bias="none", task_type="CAUSAL_LM",
        # accelerate's FSDP recomputes activations with other dropout masks than those of the forward pass
        lora_dropout=0 if projector or launch.sharded() else config.lora_dropout,
        target_modules=f"({decoder}|{tower})" if config.lora_targets == "vision" else decoder,
        target_parameters=[PROJECTOR] if projector else None,
        use_rslora=config.use_rslora, use_dora=config.use_dora,
    )


def why_no_features(config: RunConfig) -> str:
    """Why a picture's features cannot be computed once for the whole training; "" if they can."""
    if config.lora_targets in CHANGES_PICTURES:
        return f"lora_targets={config.lora_targets} changes them"
    return "under FSDP no process holds the whole tower" if launch.sharded() else ""


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
    and ``pixels``, a function that loads the picture (float tensor, crops x 3 x height x width); rows
    of one picture share it
    """
    load = functools.lru_cache(maxsize=None)(lambda file: functools.partial(_pixels, processor, file))
    rows = []
    for start in tqdm(range(0, len(scenarios), batch_size), desc="encoding", leave=False):
        part = slice(start, start + batch_size)
        files = [folder / s.image for s, folder in zip(scenarios[part], images_dirs[part])]
        rows += [row | {"pixels": load(file)}
                 for row, file in zip(_encode(processor, scenarios[part], files), files)]
    return rows


def _pixels(processor, file: Path) -> torch.Tensor:
    return processor.image_processor(images=[load_image(file)], return_tensors="pt")["pixel_values"]


def _encode(processor, scenarios: list[Scenario], files: list[Path]) -> list[dict]:
    pictures = [load_image(file) for file in files]

    def tokens(turns, **options):
        return processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"}, **options)

    full = tokens([prompts.messages(s, p, ANSWERS[s.verdict]) for s, p in zip(scenarios, pictures)])
    asked = tokens([prompts.messages(s, p) for s, p in zip(scenarios, pictures)], add_generation_prompt=True)
    rows = []
    for index, scenario in enumerate(scenarios):
        length, start = int(full["attention_mask"][index].sum()), int(asked["attention_mask"][index].sum())
        ids = full["input_ids"][index, :length]
        if not torch.equal(ids[:start], asked["input_ids"][index, :start]):
            raise ValueError(f"{scenario.id}: the chat template does not put the answer after the prompt")
        labels = ids.clone()
        labels[:start] = -100
        end = start + int((ids[start:] == _end_of_turn(processor)).nonzero()[0]) + 1
        labels[end:] = -100  # the newline after the turn is not part of the answer
        rows.append({"input_ids": ids.clone(), "labels": labels,
                     "token_type_ids": full["token_type_ids"][index, :length].clone()})
    return rows


def _end_of_turn(processor) -> int:
    return processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")


@torch.no_grad()
def cache_image_features(model, rows: list[dict], batch_size: int = 64) -> list[dict]:
    """Put beside each row what the frozen tower and projector make of its picture.

    Equal results, less work: every picture goes through the tower once, not once an epoch and row.
    Pictures are loaded batch by batch; a batch that does not fit into memory is halved.
    """
    device = next(model.parameters()).device
    waiting = [row["pixels"] for row in rows if "image_features" not in row]
    waiting = list({id(load): load for load in waiting}.values())
    features = {}
    bar = tqdm(total=len(waiting), desc="image features", leave=False)

    def run(size: int) -> None:
        while part := waiting[:size]:
            pixels = [load() for load in part]
            made = model.get_image_features(torch.cat(pixels).to(device)).pooler_output.cpu()
            features.update(zip(map(id, part), made.split([len(p) for p in pixels])))
            del waiting[:size]
            bar.update(len(part))

    _until_it_fits(run, min(batch_size, max(1, len(waiting))), lambda size: size // 2)
    for row in rows:
        row.setdefault("image_features", features.get(id(row["pixels"])))
    return rows


def collator(pad_token_id: int):
    """Batch encoded rows, padded at the right end; loads the pictures of rows without features."""

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
            batch["pixel_values"] = torch.cat([r["pixels"]() for r in rows])
        return batch

    return collate


def epoch_order(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Order of rows in one epoch: the trainer's own, but the rows of a batch longest first.

    A batch is what one optimizer step sees, over all accumulation steps and processes. Its micro-batches
    then hold rows of about one length, and what is learned stays the same up to rounding. Grouping over
    more than a batch, as transformers' sampler does, makes batches of like texts: on the stand-in that
    cost more accuracy (99.3 % to 98.0 %, n=2,000, one run each) than it saved padding.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [row for batch in batches for row in sorted(batch, key=lambda i: -lengths[i])]


# --- training -------------------------------------------------------------------------------------


def train_adapter(
    base, processor, train_rows: list[dict], val_rows: list[dict], config: RunConfig, out_dir: str | Path,
    resume: bool = True, extra: dict | None = None, quiet: bool = False,
) -> Path:
    """Train a LoRA adapter and save it; an interrupted call continues from its last checkpoint.

    Out of memory, the micro-batch is halved and the accumulation doubled, and training goes on from
    its last checkpoint: the effective batch, and so the adapter up to rounding and dropout, stays.

    Parameters
    ----------
    base : model from :func:`medlib.models.load`; its weights are not changed
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
    with launch.state().main_process_first():
        if launch.state().is_main_process and not resume:
            clear_checkpoints(out_dir)
        last_whole_checkpoint(out_dir / "checkpoints")
    settings = config

    def attempt(batch_size: int) -> None:
        _train(base, processor, train_rows, val_rows, settings, out_dir, extra or {}, quiet)

    def smaller(batch_size: int) -> int:
        nonlocal settings
        settings = smaller_micro_batch(settings)
        launch.say(f"out of memory with {batch_size} scenarios a forward pass; going on from the last "
                   f"checkpoint with {settings.batch_size}, and {settings.gradient_accumulation} passes "
                   "an optimizer step: the effective batch stays")
        return settings.batch_size

    _until_it_fits(attempt, config.batch_size, smaller)
    launch.state().wait_for_everyone()
    return out_dir


def smaller_micro_batch(config: RunConfig) -> RunConfig:
    """Half the micro-batch, or the next smaller one that leaves the effective batch as it is.

    >>> small = smaller_micro_batch(RunConfig(batch_size=6, gradient_accumulation=2))
    >>> small.batch_size, small.gradient_accumulation
    (3, 4)
    """
    rows = config.batch_size * config.gradient_accumulation
    size = next((n for n in range(config.batch_size // 2, 0, -1) if rows % n == 0), 0)
    return config.model_copy(update={"batch_size": size, "gradient_accumulation": rows // max(1, size)})


def _until_it_fits(function, batch_size: int, smaller) -> None:
    """Call ``function(batch_size)``; out of memory, again with what ``smaller`` makes of the size.

    accelerate's ``find_executable_batch_size``, but the memory is cleared only after a failure, and
    after the error, whose traceback holds the tensors, is gone.
    """
    size = batch_size
    while True:
        try:
            return function(size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        if launch.processes() > 1:
            raise models.ModelError(f"out of memory with batch_size={size} in one of {launch.processes()} "
                                    "processes; set batch_size to half and gradient_accumulation to double")
        if size == 1:
            raise models.ModelError("out of memory with one scenario a forward pass; set "
                                    "gradient_checkpointing=true, quantization=4bit, or take a smaller model")
        clear_device_cache(garbage_collection=True)
        size = smaller(size)


def _train(base, processor, train_rows, val_rows, config, out_dir, extra, quiet) -> None:
    """One try at the micro-batch of ``config``; leaves the base as it was, whatever happens."""
    checkpoints = out_dir / "checkpoints"
    last = last_whole_checkpoint(checkpoints)
    epochs_before = json.loads((Path(last) / "trainer_state.json").read_text())["epoch"] if last else 0
    set_seed(config.seed)
    forward = base.__dict__.get("forward")
    model = get_peft_model(base, lora_config(config))
    try:
        trainer = _trainer(model, processor, train_rows, val_rows, config, checkpoints)
        if not quiet:
            launch.say(f"{len(train_rows)} training and {len(val_rows)} validation scenarios; {describe(model)}")
        started = time.time()
        result = trainer.train(resume_from_checkpoint=last)
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if launch.sharded() else None
        if launch.state().is_main_process:
            model.peft_config["default"].base_model_name_or_path = config.model  # not this machine's path
            # embeddings are untouched; "auto" would ask the hub
            model.save_pretrained(out_dir, save_embedding_layers=False, state_dict=weights)
            processor.save_pretrained(out_dir)
            metadata = _metadata(model, trainer, result, config, time.time() - started, epochs_before)
            (out_dir / "training_metadata.json").write_text(json.dumps(metadata | extra, indent=2) + "\n")
    finally:  # the base comes back as it was, after an interruption too
        model.unload()
        base.__dict__.pop("forward", None)  # TRL wraps the instance's forward
        if forward is not None:
            base.forward = forward
        base.eval()


def last_whole_checkpoint(checkpoints: Path) -> str | None:
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


class _Trainer(SFTTrainer):
    """TRL's trainer, with `epoch_order` and, without a GPU, a loss on the answer's positions only."""

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.order is None else self.order

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs["labels"].device.type == "cuda" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # TRL's fused head scores every position where there is no Triton; the answer is a tenth of them
        labels = inputs["labels"][:, 1:]
        labelled = labels != -100
        first = int(labelled.any(0).nonzero()[0])
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] + 1 - first).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, first:].flatten(), ignore_index=-100, reduction="sum")
        if num_items_in_batch is None:
            return loss / labelled.sum()
        # all tokens of the step, over accumulation and processes; DDP then averages over processes
        return loss / num_items_in_batch * self.accelerator.num_processes


class _GroupedByLength(torch.utils.data.Sampler):
    """`epoch_order` of whatever epoch the trainer is in, so that a resumed one goes on in its order."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, steps_done) -> None:
        self.lengths, self.batch_size, self.seed, self.steps_done = lengths, batch_size, seed, steps_done

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        epoch = self.steps_done() // -(-len(self) // self.batch_size)
        return iter(epoch_order(self.lengths, self.batch_size, self.seed, epoch))


def _trainer(model, processor, train_rows, val_rows, config: RunConfig, checkpoints: Path) -> SFTTrainer:
    effective_batch = config.batch_size * config.gradient_accumulation * launch.processes()
    steps_per_epoch = -(-len(train_rows) // effective_batch)
    interval = max(1, steps_per_epoch // config.evaluations_per_epoch)
    device = next(model.parameters()).device.type
    main = launch.state().is_main_process
    recompute = device == "cuda" if config.gradient_checkpointing is None else config.gradient_checkpointing
    arguments = SFTConfig(
        output_dir=str(checkpoints), seed=config.seed, data_seed=config.seed,
        num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
        # no activations are kept for a backward pass; it shrinks with the micro-batch
        per_device_eval_batch_size=min(config.eval_batch_size, 4 * config.batch_size),
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.lr, weight_decay=config.weight_decay, lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup_ratio * steps_per_epoch * config.epochs)),
        bf16=next(model.parameters()).dtype == torch.bfloat16, use_cpu=device == "cpu",
        eval_strategy="steps" if val_rows else "no", eval_steps=interval,
        save_strategy="steps", save_steps=interval, save_total_limit=2,
        load_best_model_at_end=bool(val_rows), metric_for_best_model="eval_loss" if val_rows else None,
        logging_steps=max(1, interval // 5), report_to="tensorboard",
        # FSDP recomputes by its own setting, and refuses to be told twice
        gradient_checkpointing=recompute and not launch.sharded(), max_length=None,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device == "cuda", dataloader_num_workers=config.workers,
        disable_tqdm=not (main and sys.stderr.isatty()),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process drives one card; DataParallel would multiply the batch
    patience = config.early_stopping_patience if val_rows else 0
    # TRL wants a `datasets.Dataset`; ours carries row numbers, so that the tensors are never copied
    rows, collate = train_rows + val_rows, collator(processor.tokenizer.pad_token_id)
    numbers = Dataset.from_dict({"row": list(range(len(rows)))})
    trainer = _Trainer(
        model=model, args=arguments, processing_class=processor,
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
        data_collator=lambda batch: collate([rows[item["row"]] for item in batch]),
        train_dataset=numbers.select(range(len(train_rows))),
        eval_dataset=numbers.select(range(len(train_rows), len(rows))) if val_rows else None,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL makes the adapter of a quantized base bfloat16, which a T4 lacks
            parameter.data = parameter.data.float()
    trainer.order = _GroupedByLength(
        [len(row["input_ids"]) for row in train_rows], effective_batch, config.seed,
        lambda: trainer.state.global_step) if config.group_by_length else None
    return trainer


def _metadata(model, trainer, result, config, seconds, epochs_before) -> dict:
    trainable, total, share = trainable_share(model)
    samples = (trainer.state.epoch - epochs_before) * len(trainer.train_dataset)  # TRL counts those not run, too
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return {
        "base_model": config.model, "trainable_parameters": trainable, "total_parameters": total,
        "trainable_percent": round(share, 4),
        "epochs_run": trainer.state.epoch, "steps": trainer.state.global_step,
        "train_loss": result.training_loss, "best_eval_loss": trainer.state.best_metric,
        "loss_per_epoch": losses_per_epoch(history), "history": history,
        "samples_per_second": round(samples / seconds, 2), "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(peak_memory_mib()), "device": str(next(model.parameters()).device),
        "resumed": epochs_before > 0, "processes": launch.processes(), "config": config.model_dump(),
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
