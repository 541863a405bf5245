"""Stand-ins that have seen the images of a data set of one's own; they still know no medicine.

They start from the stand-ins that have only seen drawn images and keep their classes, tokenizers and question
formats. Fine-tuned are, on labelled images of the training side alone:

1. the vision tower, on naming the finding among those of the modality;
2. decoder and projector, on captions and on statements about one relation at a time;
3. the dual encoder, on images with captions and on sentences.

The verdict question is never asked. Images of the validation side choose the checkpoint; those of the test
side are never loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from tqdm.auto import tqdm

from medlib import stats
from medlib.config import DataError, RunConfig, files
from medlib.data import own_suites
from medlib.data.own_suites import OwnSuites
from medlib.data.suite import shown
from medlib.models import dual_encoder, loading
from medlib.models.standin import biomedclip, loop, medgemma
from medlib.models.standin.words import Words, modality_name

BASES = {"medgemma": "models/medgemma-nano", "biomedclip": "models/biomedclip-nano"}
BATCH = 64
#: Grey level up to which the margin of an image is empty.
EMPTY = 16


class Recipe(BaseModel):
    """How the stand-ins are fine-tuned. Only training images are altered; others are shown as a run shows them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(112, ge=56, multiple_of=56, description="pixels per side; a multiple of 4 patches")
    epochs: float = Field(30, gt=0, description="images drawn for the tower, in numbers of training images")
    warm_up_epochs: float = Field(0, ge=0, description="the same for a contrastive warm-up of the tower")
    batch_size: int = Field(32, ge=2, description="images of a step of the tower")
    lr: float = Field(5e-4, gt=0)
    crop: float = Field(0.8, gt=0, le=1, description="smallest share of an image's area that is shown")
    contrast: float = Field(0.3, ge=0, lt=1, description="largest relative change of contrast and brightness")
    balanced: float = Field(1, ge=0, le=1, description="1: all findings equally often; 0: all images")
    equalised: float = Field(0, ge=0, le=1, description="share of views with equalised histogram")
    content: float = Field(0, ge=0, le=1, description="share of views cropped to what is not black")
    erased: float = Field(0, ge=0, le=1, description="share of views with one rectangle hidden")
    views: int = Field(4, ge=1, description="views of a training image that the decoder is taught with")
    decoder_steps: int = Field(1500, ge=1)
    decoder_lr: float = Field(1e-3, gt=0)
    encoder_epochs: float = Field(30, gt=0, description="images drawn for the dual encoder")
    encoder_lr: float = Field(5e-4, gt=0)


# --- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Images of one side: square, RGB; ``labels`` are places in the findings of `Words`."""

    images: list[Image.Image]
    labels: np.ndarray
    groups: np.ndarray

    def pixels(self, size: int) -> np.ndarray:
        """The images as a run shows them, uint8 (n, size, size, 3)."""
        return np.stack([np.asarray(_resized(image, size)) for image in self.images])


def _resized(image: Image.Image, size: int, box: tuple | None = None) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def words_of(suites: OwnSuites) -> Words:
    """The findings of the training side, in the order of the lexicon, and the lexicon's words for them."""
    rows = image_rows(suites, "train")
    present = set(zip(rows["modality"], rows["finding"]))
    for modality, finding in sorted(present):
        suites.lexicon.finding(modality, finding)  # a DataError if it is unknown
    known = [f for m in suites.lexicon.modalities for f in suites.lexicon.findings_of(m)]
    return Words(tuple(f for f in known if (f.modality, f.name) in present), suites.lexicon, plain=True)


def load_side(suites: OwnSuites, side: str, words: Words, size: int) -> Side:
    """The images of a side whose findings ``words`` has, at most ``size`` pixels per side."""
    rows, images = image_rows(suites, side, words), []
    for file in tqdm(rows["file"], desc=f"images of {side}"):
        image = shown(suites.data.images_dir, file)
        images.append(image if image.width <= size else _resized(image, size))
    return Side(images, labels_of(rows, words), rows["group"].to_numpy())


def image_rows(suites: OwnSuites, side: str, words: Words | None = None) -> pd.DataFrame:
    """Rows of the data set that stand for the images of a side, one each; given words, of these only."""
    if suites.data.kind != "images":
        raise DataError(f"{suites.data.name}: a stand-in learns from labelled images, and these are cases")
    rows = suites.data.table.iloc[suites.sides.rows(side)].drop_duplicates("file")
    return rows if words is None else rows[labels_of(rows, words) >= 0]


def labels_of(rows: pd.DataFrame, words: Words) -> np.ndarray:
    """Place of each row's finding in the findings of ``words``, -1 if it is none of them; int array (n,)."""
    place = {(f.modality, f.name): number for number, f in enumerate(words.findings)}
    return np.array([place.get(key, -1) for key in zip(rows["modality"], rows["finding"])], int)


def fingerprint(suites: OwnSuites, seed: int) -> dict:
    """What tells whether a run divides the data as this did: hashes of data and split, and the seed."""
    lines = sorted(
        f"{file}\t{side}" for file, side in zip(suites.sides.table["file"], suites.sides.table["split"])
    )
    return {
        "name": suites.data.name,
        "sha256": suites.data.sha256,
        "seed": seed,
        "split_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def data_seen(model: str) -> dict | None:
    """The `fingerprint` of the data set whose images a stand-in was taught; None if there is none."""
    file = Path(loading.locate(model)) / "standin.json"
    return files.read_json(file).get("data")


def check_models(config: RunConfig) -> None:
    """`check_split` of a run's model and dual encoder, if it has a data set of one's own."""
    if config.data_dir:
        for model in (config.model, config.biomedclip):
            check_split(model, own_suites.of(config), config.seed)


def check_split(model: str, suites: OwnSuites, seed: int) -> None:
    """Refuse a stand-in that was taught images of this data set by another split.

    Raises
    ------
    DataError
        Its training images may be among those of the run's validation or test side.
    """
    seen = data_seen(model)
    if not seen:
        return
    now = fingerprint(suites, seed)
    if seen["name"] != now["name"] and seen["sha256"] != now["sha256"]:
        return
    if any(seen[key] != now[key] for key in ("sha256", "split_sha256")):
        raise DataError(
            f"{model} has seen images of {seen['name']} (sha256 {seen['sha256'][:12]}, seed {seen['seed']}); this "
            f"run divides {now['name']} (sha256 {now['sha256'][:12]}) with seed {seed}, so its test images may be "
            "among them: build the stand-in again with the data and the seed of the run"
        )


def view(image: Image.Image, rng: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """One alteration of a training image, uint8 (size, size, 3)."""
    if rng.random() < recipe.content:
        image = image.crop(image.convert("L").point(lambda grey: 255 * (grey > EMPTY)).getbbox())
    if rng.random() < recipe.equalised:
        image = ImageOps.equalize(image)
    width, height = image.size
    area, ratio = rng.uniform(recipe.crop, 1), math.exp(rng.uniform(-0.25, 0.25))
    across, down = width * min(1, math.sqrt(area * ratio)), height * min(1, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    part = _resized(image, recipe.size, (left, top, left + across, top + down))
    grey = np.asarray(ImageOps.mirror(part) if rng.random() < 0.5 else part).astype(np.float32)
    gain, shift = 1 + recipe.contrast * rng.uniform(-1, 1), 127.5 * recipe.contrast * rng.uniform(-1, 1)
    grey = (grey - grey.mean()) * gain + grey.mean() + shift
    if rng.random() < recipe.erased:
        tall, wide = rng.integers(recipe.size // 8, recipe.size // 2, 2)
        y, x = rng.integers(recipe.size - tall), rng.integers(recipe.size - wide)
        grey[y : y + tall, x : x + wide] = grey.mean()
    return grey.clip(0, 255).astype(np.uint8)


def sampler(side: Side, words: Words, recipe: Recipe, views: int = 1) -> biomedclip.Sampler:
    """Draws images in ``views`` alterations each: labels (n,) and pixels (views * n, 3, size, size)."""
    counts = np.bincount(side.labels, minlength=len(words.findings))
    findings = np.array([len(words.findings_of(f.modality)) for f in words.findings])
    equal = 1 / (len(words.modalities) * findings[side.labels] * counts[side.labels])
    chance = recipe.balanced * equal + (1 - recipe.balanced) / len(side.labels)
    chance = chance / chance.sum()

    def sample(count: int, rng: np.random.Generator, generator: torch.Generator):
        rows = rng.choice(len(side.labels), size=count, p=chance)
        altered = [view(side.images[row], rng, recipe) for _ in range(views) for row in rows]
        return torch.from_numpy(side.labels[rows]), medgemma.to_pixels(np.stack(altered))

    return sample


# --- the vision tower -----------------------------------------------------------------------------


def drawn_model():
    """The stand-in of MedGemma that has only seen drawn images, float32 on the CPU, to be fine-tuned."""
    return loading.load(BASES["medgemma"], dtype="float32").network.to("cpu")


def resize_tower(model, size: int) -> None:
    """Let the tower of a MedGemma stand-in see images of ``size`` pixels; the number of image tokens stays."""
    config, embeddings = model.config.vision_config, model.model.vision_tower.embeddings
    if size == config.image_size:
        return
    table = _interpolated(embeddings.position_embedding.weight.data, size // config.patch_size)
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(table, freeze=False)
    embeddings.position_ids = torch.arange(len(table))[None]
    config.image_size = model.model.vision_tower.config.image_size = size
    projector, weights = model.model.multi_modal_projector, model.model.multi_modal_projector.state_dict()
    model.model.multi_modal_projector = type(projector)(model.config)  # its pooling is of the new size
    model.model.multi_modal_projector.load_state_dict(weights)


def _interpolated(table: torch.Tensor, new: int) -> torch.Tensor:
    """Position embeddings (side * side, width) of a grid of ``new`` patches per side."""
    side = math.isqrt(len(table))
    grid = table.T.reshape(1, -1, side, side)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T.contiguous()


def naming_loss(logits: torch.Tensor, labels: torch.Tensor, words: Words, smoothing: float = 0.1) -> torch.Tensor:
    """Cross entropy among the findings of each image's modality, with label smoothing.

    Parameters
    ----------
    logits : Tensor (n, findings)
    labels : int Tensor (n,)
    """
    allowed = _same_modality(words)[labels]
    spread = smoothing * allowed / allowed.sum(dim=1, keepdim=True)
    target = spread + (1 - smoothing) * torch.nn.functional.one_hot(labels, len(words.findings))
    return torch.nn.functional.cross_entropy(logits.float().masked_fill(~allowed, -1e4), target)


def _same_modality(words: Words) -> torch.Tensor:
    names = np.array([f.modality for f in words.findings])
    return torch.from_numpy(names[:, None] == names[None, :])


@torch.no_grad()
def named(tower, head, pixels: np.ndarray, labels: np.ndarray, words: Words) -> np.ndarray:
    """The finding that the tower names for each image, among those of its modality; int array (n,)."""
    logits = []
    for start in range(0, len(pixels), 128):
        batch = medgemma.to_pixels(pixels[start : start + 128])
        with loop.half_precision():
            logits.append(head(tower(pixel_values=batch).last_hidden_state.mean(dim=1)).float())
    allowed = _same_modality(words)[torch.from_numpy(labels)]
    return torch.cat(logits).masked_fill(~allowed, -torch.inf).argmax(dim=1).numpy()


def balanced(named: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the findings of the share named right."""
    return float(np.mean([(named[labels == label] == label).mean() for label in np.unique(labels)]))


def train_tower(
    tower, train: Side, val: Side, words: Words, recipe: Recipe, stages: Path, seed: int = 0
) -> tuple[torch.nn.Linear, list[dict]]:
    """Fine-tune the tower in place on naming findings; returns the head and the history."""
    torch.manual_seed(seed)
    width = tower.config.hidden_size
    head, projection = torch.nn.Linear(width, len(words.findings)), torch.nn.Linear(width, 128)
    pixels, size = val.pixels(recipe.size), recipe.batch_size
    every = _steps(1, train, size)

    def pooled(images):
        return tower(pixel_values=images).last_hidden_state.mean(dim=1)

    def draw(sample, step):
        return sample(size, np.random.default_rng([seed, step]), torch.Generator())

    def contrast(step: int) -> dict[str, torch.Tensor]:
        labels, images = draw(two_views, step)
        with loop.half_precision():
            one, two = projection(pooled(images)).chunk(2)
        return {"contrastive": biomedclip.contrastive_loss(one, two, torch.tensor(10.0), labels)}

    def name(step: int) -> dict[str, torch.Tensor]:
        labels, images = draw(one_view, step)
        with loop.half_precision():
            logits = head(pooled(images))
        return {"naming": naming_loss(logits, labels, words)}

    one_view, two_views = (sampler(train, words, recipe, views) for views in (1, 2))
    if recipe.warm_up_epochs:
        parts, steps = {"tower": tower, "projection": projection}, _steps(recipe.warm_up_epochs, train, size)
        file = stages / "warm_up.safetensors"
        loop.train(parts, contrast, file, steps, recipe.lr, seed, every, title="contrastive warm-up")

    def score() -> float:
        return balanced(named(tower, head, pixels, val.labels, words), val.labels)

    parts, file = {"tower": tower, "head": head}, stages / "tower.safetensors"
    steps = _steps(recipe.epochs, train, size)
    return head, loop.train(parts, name, file, steps, recipe.lr, seed, every, score, "vision tower")


def _steps(epochs: float, train: Side, batch_size: int = BATCH) -> int:
    return max(1, round(epochs * len(train.labels) / batch_size))


# --- building -------------------------------------------------------------------------------------


def build(config: RunConfig, out: str | Path, which: str = "both", recipe: Recipe = Recipe()) -> dict[str, dict]:
    """Fine-tune the stand-ins on the training side of a run's data; after an interruption, call again.

    Parameters
    ----------
    config : RunConfig
        ``data_dir``, ``seed`` and ``allow_shared_groups`` say what the training side is.
    out : folder
        Gets a folder for each model: weights, processor, ``standin.json`` (what was measured) and a card.
    which : {"both", "medgemma", "biomedclip"}
    recipe : Recipe

    Returns
    -------
    What was measured on the validation side, by model.

    Raises
    ------
    DataError
        The data are not labelled images, or the lexicon lacks a finding.
    """
    suites = own_suites.of(config)
    words = words_of(suites)
    made_of = {"data": fingerprint(suites, config.seed), "recipe": recipe.model_dump()}
    makers = {"medgemma": _medgemma, "biomedclip": _biomedclip}
    chosen = {name: makers[name] for name in makers if which in ("both", name)}
    folders = {name: Path(out) / f"{Path(BASES[name]).name}-{suites.data.name}" for name in chosen}
    measured = {name: _finished(folder, made_of) for name, folder in folders.items()}
    if all(measured.values()):
        return measured
    train, val = (load_side(suites, side, words, 2 * recipe.size) for side in ("train", "val"))
    sides = {
        name: {"images": len(s.labels), "groups": len(set(s.groups))}
        for name, s in (("train", train), ("val", val))
    }
    for name, folder in folders.items():
        if measured[name]:
            continue
        started, stages = time.time(), _stages(folder, made_of)
        facts = chosen[name](folder, train, val, words, recipe, stages, config.seed)
        facts |= made_of | {"sides": sides, "seed": config.seed, "threads": torch.get_num_threads()}
        facts |= {"minutes": round((time.time() - started) / 60, 1)}
        files.write_text(folder / "README.md", card(name, facts, suites))
        files.write_json(folder / "standin.json", facts)
        shutil.rmtree(stages)
        measured[name] = facts
    return measured


def _finished(folder: Path, made_of: dict) -> dict:
    """What was measured of a model that is there already, {} if it is not."""
    file = folder / "standin.json"
    facts = files.read_json(file)
    return facts if made_of.items() <= facts.items() else {}


def _stages(folder: Path, made_of: dict) -> Path:
    """The folder of finished stages; empty if those there are of other data or another recipe."""
    stages = folder / "stages"
    file = stages / "made_of.json"
    if stages.is_dir() and files.read_json(file) != made_of:
        shutil.rmtree(stages)
    stages.mkdir(parents=True, exist_ok=True)
    (folder / "standin.json").unlink(missing_ok=True)
    files.write_text(file, json.dumps(made_of))
    return stages


def _medgemma(folder: Path, train: Side, val: Side, words: Words, recipe: Recipe, stages: Path, seed: int) -> dict:
    processor = loading.load_processor(BASES["medgemma"])
    model = drawn_model()
    resize_tower(model, recipe.size)
    processor.image_processor.size = {"height": recipe.size, "width": recipe.size}
    head, tower_history = train_tower(model.model.vision_tower, train, val, words, recipe, stages, seed)
    pixels, rng = [train.pixels(recipe.size)], np.random.default_rng([seed, len(train.labels)])
    for _ in range(recipe.views - 1):
        pixels.append(np.stack([view(image, rng, recipe) for image in train.images]))
    features = medgemma.tower_features(model, np.concatenate(pixels))
    history = medgemma.pretrain_decoder(
        model,
        processor,
        features,
        np.tile(train.labels, recipe.views),
        recipe.decoder_steps,
        lr=recipe.decoder_lr,
        seed=seed,
        words=words,
    )
    model.config.standin = True
    with files.replacements(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    unseen = val.pixels(recipe.size), val.labels
    return {
        "naming": rates(named(model.model.vision_tower, head, *unseen, words), val.labels, words),
        "naming_train": rates(
            named(model.model.vision_tower, head, pixels[0], train.labels, words), train.labels, words
        )["all"],
        "captions": medgemma.caption_accuracy(model, processor, *unseen, words=words),
        "statements": medgemma.statement_accuracy(model, processor, *unseen, words=words),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tower_history": tower_history,
        "history": history,
    }


def _biomedclip(
    folder: Path, train: Side, val: Side, words: Words, recipe: Recipe, stages: Path, seed: int
) -> dict:
    processor, model = dual_encoder.load(BASES["biomedclip"])
    model = model.to("cpu")
    resize_encoder(processor, model, recipe.size)
    unseen = val.pixels(recipe.size), val.labels
    history = biomedclip.train(
        model,
        processor,
        sampler(train, words, recipe),
        stages / "checkpoint.safetensors",
        _steps(recipe.encoder_epochs, train),
        BATCH,
        recipe.encoder_lr,
        seed,
        _steps(1, train),
        words,
        lambda: balanced(biomedclip.zero_shot(processor, model, *unseen, words), val.labels),
    )
    with files.replacements(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    return {
        "naming": rates(biomedclip.zero_shot(processor, model, *unseen, words), val.labels, words),
        **biomedclip.measure(processor, model, *unseen, words=words),
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
    }


def resize_encoder(processor, model, size: int) -> None:
    """Let a dual encoder see images of ``size`` pixels: position embeddings are interpolated."""
    config, embeddings = model.config.vision_config, model.vision_model.embeddings
    if size == config.image_size:
        return
    first, grid = embeddings.position_embeddings.data.split(
        [1, embeddings.position_embeddings.shape[1] - 1], dim=1
    )
    grid = _interpolated(grid[0], size // config.patch_size)[None]
    embeddings.position_embeddings = torch.nn.Parameter(torch.cat([first, grid], dim=1))
    embeddings.image_size = embeddings.patch_embeddings.image_size = (size, size)
    config.image_size = model.vision_model.config.image_size = size
    processor.image_processor.size = {"shortest_edge": size}
    processor.image_processor.crop_size = {"height": size, "width": size}


def rates(named: np.ndarray, labels: np.ndarray, words: Words) -> dict:
    """Shares named right: ``all``, ``by_modality``, ``by_finding``; ``balanced`` is the mean over findings."""
    right = named == labels
    modality = np.array([words.findings[label].modality for label in labels])

    def rate(rows) -> dict:
        return stats.proportion(int(right[rows].sum()), int(rows.sum()))

    by_finding = {
        f"{f.modality}/{f.name}": rate(labels == i) for i, f in enumerate(words.findings) if (labels == i).any()
    }
    return {
        "all": rate(np.ones(len(labels), bool)),
        "balanced": balanced(named, labels),
        "by_modality": {m: rate(modality == m) for m in words.modalities if (modality == m).any()},
        "by_finding": by_finding,
    }


# --- the cards ------------------------------------------------------------------------------------


def card(name: str, facts: dict, suites: OwnSuites) -> str:
    """Markdown card with the figures of a build."""

    def cells(rate: dict) -> str:
        return f"{rate['value']:.1%} | {rate['low']:.1%} to {rate['high']:.1%} | {rate['n']:,}"

    naming = facts["naming"]
    rows = {modality_name(m): r for m, r in naming["by_modality"].items()} | {"all": naming["all"]}
    data, real = suites.data, suites.data.card.real_images is not False
    return CARD.format(
        model=Path(BASES[name]).name,
        data=data.name,
        seen="has seen real scans" if real else "has seen images of a data set",
        licence=data.card.licence or "not stated in the data set; see its sources",
        table="\n".join(f"| {title} | {cells(rate)} |" for title, rate in rows.items()),
        findings="\n".join(f"| {title} | {cells(rate)} |" for title, rate in naming["by_finding"].items()),
        task=TASKS[name].format(**facts["recipe"]),
        **{f"{side}_{what}": n for side, counts in facts["sides"].items() for what, n in counts.items()},
        **{key: facts[key] for key in ("parameters", "minutes", "threads", "seed")},
    )


TASKS = {
    "medgemma": """The vision tower learned to name the finding ({epochs:g} epochs); decoder and projector learned
captions, glossary entries and yes/no statements about one relation at a time ({decoder_steps:,} steps).""",
    "biomedclip": """Images were paired with captions of their finding, and sentences had hidden words
({encoder_epochs:g} epochs). No treatment was paired with an image or a finding.""",
}

CARD = """\
---
license: other
library_name: transformers
---

# {model}-{data}

**A stand-in that knows no medicine. Not a medical device. Do not publish.** It started from `{model}` of this
repository, which has only seen drawn images, and {seen}: {train_images:,} images of {train_groups:,} groups, the
training side of the data set {data}. It has {parameters:,} parameters. What it scores says whether the pipeline
works on such images; it says nothing of the published model nor of patients.

The licences of these images forbid publishing them or what was made of them. Licence: {licence}.

## What it was taught

{task} The verdict question of the audit was never asked. The wording of every split was
seen; no image of the test side was loaded. The validation side chose the checkpoint, so the figures below are
slightly too good.

## What it can do

Naming the finding among those of the modality, validation side ({val_images:,} images of {val_groups:,} groups;
95% Wilson intervals, which treat images as independent):

| Modality | Right | 95% interval | n |
|:---|---:|---:|---:|
{table}

| Finding | Right | 95% interval | n |
|:---|---:|---:|---:|
{findings}

Some of this is source and scanner, not disease: compare with the auditor that reads image statistics only.

Rebuild: `python -m medlib standin --data DIR --out FOLDER --seed {seed}` ({minutes} minutes, {threads} threads).
"""
