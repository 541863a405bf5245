"""Build `models/biomedclip-nano`: a stand-in of BiomedCLIP's architecture that knows no medicine.

The classes of the published model (`medlib.models.dual_encoder.BiomedCLIP`: ViT and BERT, first-token
pooling, the same projections) at a hundredth of the size, trained from scratch in one loop on two
losses, as the original learned from figures with captions after PubMedBERT had learned from text:

- contrastive: synthetic images and captions that word their finding;
- masked words: sentences on their own, findings and treatments alike.

A treatment is never paired with an image or a finding: captions are what BiomedCLIP knows, not
guidelines. The wording of every split is seen; no test image and no verdict ever is.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from tqdm.auto import tqdm
from transformers import (
    BertConfig,
    BertTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from medlib import stats
from medlib.config import MODALITIES
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.data.synthetic.lexicon import DEGREES, FINDINGS, Finding, findings_of
from medlib.models.dual_encoder import CONTEXT_LENGTH, BiomedCLIP, embed_images, embed_texts
from medlib.models.standin import medgemma as medgemma_standin
from medlib.models.standin.medgemma import IMAGE_SIZE, MODALITY_NAMES, PATCH_SIZE

WIDTH, LAYERS, HEADS = 128, 4, 4
VOCABULARY = 1024
MASKED = 0.15  # share of words hidden, as in BERT
CAPTIONS = ("{words}", "{modality}: {words}", "{modality} showing {words}")


# --- tokenizer and model --------------------------------------------------------------------------


def build_processor() -> VisionTextDualEncoderProcessor:
    """WordPiece tokenizer of our own phrases, and the image size of the other stand-in."""
    trainer = BertWordPieceTokenizer(lowercase=True)
    names = [f.label for f in FINDINGS] + list(MODALITY_NAMES.values()) + list(CAPTIONS)
    trainer.train_from_iterator(
        grammar.phrases() + names, vocab_size=VOCABULARY, min_frequency=1, show_progress=False
    )
    tokenizer = BertTokenizer(vocab=trainer.get_vocab(), model_max_length=CONTEXT_LENGTH)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=Image.Resampling.BILINEAR,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return VisionTextDualEncoderProcessor(image_processor, tokenizer)


def build_model(processor: VisionTextDualEncoderProcessor, seed: int = 0) -> BiomedCLIP:
    """A randomly initialised dual encoder of about two million parameters, marked as a stand-in."""
    torch.manual_seed(seed)
    shape = dict(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH
    )
    vision = ViTConfig(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, layer_norm_eps=1e-6, **shape)
    text = BertConfig(vocab_size=len(processor.tokenizer), max_position_embeddings=CONTEXT_LENGTH, **shape)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=WIDTH)
    config.standin = True
    return BiomedCLIP(config)


# --- training -------------------------------------------------------------------------------------


def caption(rng: np.random.Generator, finding: Finding) -> str:
    """One of many ways to caption an image of a finding, in the words of any split."""
    templates = [p for phrases in finding.phrases.values() for p in phrases] + [finding.label]
    words = str(rng.choice(templates)).replace("{degree}", str(rng.choice(DEGREES)).lower())
    return str(rng.choice(CAPTIONS)).format(modality=MODALITY_NAMES[finding.modality], words=words)


def contrastive_loss(images, texts, scale, findings: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, in which every caption of the image's finding is a right answer.

    With 13 findings a batch holds many images of one finding; plain CLIP would push a caption away
    from images that it describes.

    Parameters
    ----------
    images, texts : Tensor (n, projection), need not be unit vectors
    scale : Tensor (), factor of the cosine
    findings : int Tensor (n,), which finding a pair is about

    References
    ----------
    Radford et al. (2021), CLIP; Yang et al. (2022), "Unified contrastive learning in
    image-text-label space".
    """
    images, texts = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (images, texts))
    logits = scale * images @ texts.T
    right = (findings[:, None] == findings[None, :]).float()
    right = right / right.sum(dim=1, keepdim=True)  # symmetric, so it serves both directions
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def masked_word_loss(model: BiomedCLIP, tokenizer, sentences: list[str]) -> torch.Tensor:
    """BERT's own task: tell hidden words from the rest of the sentence (output tied to the input)."""
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    ids, special = batch["input_ids"], torch.tensor(tokenizer.all_special_ids)
    hidden = (torch.rand(ids.shape) < MASKED) & ~torch.isin(ids, special)
    hidden[:, 1] = True  # never an empty loss
    batch["input_ids"] = ids.masked_fill(hidden, tokenizer.mask_token_id)
    states = model.text_model(**batch).last_hidden_state[hidden]
    logits = states @ model.text_model.embeddings.word_embeddings.weight.T
    return torch.nn.functional.cross_entropy(logits.float(), ids[hidden])


def train(
    model: BiomedCLIP,
    processor,
    images: np.ndarray,
    labels: np.ndarray,
    checkpoint: Path,
    steps: int = 1200,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    every: int = 100,
) -> list[dict]:
    """Train in place; goes on from ``checkpoint`` if that file is there.

    Every step draws from a generator of its own number, so a resumed training sees what an
    uninterrupted one would have seen.

    Returns
    -------
    Mean losses of each ``every`` steps.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    first, history = _restore(checkpoint, model, optimizer) if checkpoint.is_file() else (0, [])
    sentences, labels, recent = grammar.phrases(), torch.from_numpy(labels), []
    model.train()
    for step in (bar := tqdm(range(first, steps), desc="dual encoder", initial=first, total=steps)):
        rng, generator = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed + step)
        torch.manual_seed(seed + step)  # dropout and masks
        rows = torch.from_numpy(rng.integers(len(labels), size=batch_size))
        pixels = medgemma_standin.augment(medgemma_standin.to_pixels(images[rows.numpy()]), generator)
        captions = [caption(rng, FINDINGS[labels[row]]) for row in rows]
        tokens = processor.tokenizer(captions, padding=True, return_tensors="pt")
        with medgemma_standin.half_precision():
            shown = model.get_image_features(pixels).pooler_output
            said = model.get_text_features(**tokens).pooler_output
            scale = model.logit_scale.exp().clamp(max=100)
            contrastive = contrastive_loss(shown, said, scale, labels[rows])
            plain_text = list(rng.choice(sentences, size=batch_size))
            words = masked_word_loss(model, processor.tokenizer, plain_text)
        for group in optimizer.param_groups:
            group["lr"] = lr * medgemma_standin.schedule(step, steps)
        optimizer.zero_grad()
        (contrastive + words).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append((contrastive.item(), words.item()))
        if step % every == every - 1 or step == steps - 1:
            means = np.mean(recent, axis=0)
            history.append({"step": step + 1, "contrastive": means[0], "masked_words": means[1]})
            recent = []
            bar.set_postfix(contrastive=f"{means[0]:.3f}", masked_words=f"{means[1]:.3f}")
            _keep(checkpoint, model, optimizer, step + 1, history)
    model.eval()
    return history


def _keep(file: Path, model, optimizer, step: int, history: list[dict]) -> None:
    """Write weights and optimizer state as safetensors, in one move."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    part = file.with_suffix(".part")
    save_file(state, part, metadata={"step": str(step), "history": json.dumps(history, default=float)})
    part.replace(file)


def _restore(file: Path, model, optimizer) -> tuple[int, list[dict]]:
    """(next step, history) of an interrupted training; weights and optimizer are set in place."""
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict] = {}
    for name, tensor in load_file(file).items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        else:
            number, _, moment = rest.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    print(f"resuming at step {facts['step']} of {file.name}")
    return int(facts["step"]), json.loads(facts["history"])


# --- measuring and building -----------------------------------------------------------------------


def measure(processor, model: BiomedCLIP, images: np.ndarray, labels: np.ndarray) -> dict:
    """What the encoder makes of images that it never saw.

    Returns
    -------
    dict
        ``zero_shot``: {modality or "all": proportion of images whose most similar caption, among
        one canonical caption for each finding of the modality, is the right one};
        ``image_to_text``: most similar of all phrases words the finding;
        ``text_to_picture``: most similar of all images shows the finding.
    """
    shown = embed_images(processor, model, map(Image.fromarray, images))
    modality = np.array([FINDINGS[label].modality for label in labels])
    right = np.zeros(len(labels), bool)
    for name in MODALITIES:
        findings, rows = findings_of(name), modality == name
        prompts = embed_texts(processor, model, [medgemma_standin.caption(f) for f in findings])
        similarity = shown[rows] @ prompts.T
        right[rows] = [
            findings[best] is FINDINGS[label] for best, label in zip(similarity.argmax(axis=1), labels[rows])
        ]
    degree = DEGREES[1].lower()
    texts = [
        (f"{MODALITY_NAMES[f.modality]}: {p.replace('{degree}', degree)}", number)
        for number, f in enumerate(FINDINGS)
        for phrases in f.phrases.values()
        for p in phrases
    ]
    similarity = shown @ embed_texts(processor, model, [text for text, _ in texts]).T
    about = np.array([number for _, number in texts])

    def rate(hits):
        return stats.proportion(int(np.sum(hits)), len(hits))

    return {
        "zero_shot": {name: rate(right[modality == name]) for name in MODALITIES} | {"all": rate(right)},
        "picture_to_text": rate(about[similarity.argmax(axis=1)] == labels),
        "text_to_picture": rate(labels[similarity.argmax(axis=0)] == about),
    }


def build(
    out_dir: str | Path, per_finding: int = 800, steps: int = 1200, held_out: int = 100, seed: int = 0
) -> dict:
    """Rebuild the stand-in from nothing; after an interruption, call again: it goes on where it was.

    Writes weights (safetensors), processor, ``standin.json`` (what was measured) and a model card.

    Parameters
    ----------
    per_finding, held_out : int
        Images a finding to train on, and to measure on.
    """
    out_dir, started = Path(out_dir), time.time()
    stages = out_dir / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    processor = build_processor()
    model = build_model(processor, seed)
    images, labels = medgemma_standin.image_pool(per_finding, SEED_BASE["pretrain"])
    drawn = time.time()
    checkpoint = stages / "checkpoint.safetensors"
    history = train(model, processor, images, labels, checkpoint, steps, seed=seed)
    trained = time.time()
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    unseen = medgemma_standin.image_pool(held_out, SEED_BASE["pretrain_held_out"])
    measured = measure(processor, model, *unseen)
    measured |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "pictures": len(images),
        "steps": steps,
        "seed": seed,
        "minutes_drawing": round((drawn - started) / 60, 1),
        "minutes_training": round((trained - drawn) / 60, 1),
        "threads": torch.get_num_threads(),
        "history": history,
    }
    (out_dir / "standin.json").write_text(json.dumps(measured, indent=2, default=float) + "\n")
    (out_dir / "README.md").write_text(model_card(measured))
    shutil.rmtree(stages)
    return measured


def model_card(measured: dict) -> str:
    """Markdown card with the figures of this build."""

    def cells(rate):
        return f"{rate['value']:.1%} | {rate['low']:.1%} to {rate['high']:.1%} | {rate['n']:,}"

    rows = [
        f"| {MODALITY_NAMES.get(name, 'all')} | {cells(rate)} |" for name, rate in measured["zero_shot"].items()
    ]
    retrieval = {name: cells(measured[name]) for name in ("picture_to_text", "text_to_picture")}
    facts = ("parameters", "pictures", "steps", "seed", "threads", "minutes_drawing", "minutes_training")
    return CARD.format(
        zero_shot="\n".join(rows), findings=len(FINDINGS), **retrieval, **{name: measured[name] for name in facts}
    )


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---

# biomedclip-nano

**A stand-in that knows no medicine. Not a medical device.** It has the architecture of
`microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224` (ViT and BERT, first-token pooling, the
same two projections; `medlib.models.dual_encoder.BiomedCLIP`) with {parameters:,} parameters, trained from
scratch by this repository on synthetic images, so that every row of the benchmark runs offline on
a laptop. What it scores says whether the pipeline works; it says nothing of BiomedCLIP nor of
patients.

## What it was taught

{pictures:,} synthetic images of {findings} findings with captions of the finding (contrastive
loss), and sentences with hidden words (BERT's loss), {steps:,} steps of 64 each. Treatments occur
only among those sentences, as plain text: none was paired with an image or with a finding, because
BiomedCLIP knows captions, not guidelines. The wording of every split was seen, as BiomedCLIP has met
the words of medicine; the test images, and every verdict, were never seen.

## What it can do

On held-out synthetic images, which share no seed with training (95% Wilson intervals).
Zero-shot naming of the finding, among the findings of its modality:

| Modality | Right | 95% interval | n |
|:---|---:|---:|---:|
{zero_shot}

Retrieval, most similar item, right if it is about the same finding:

| Query | Right | 95% interval | n |
|:---|---:|---:|---:|
| image, all phrases | {picture_to_text} |
| phrase, all images | {text_to_picture} |

Rebuild: `make standin` (drawing {minutes_drawing} minutes, training {minutes_training}, threads
{threads}, seed {seed}).
"""
