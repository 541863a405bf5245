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

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from medlib import stats
from medlib.config import files
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.data.synthetic.lexicon import DEGREES, FINDINGS, Finding
from medlib.models.dual_encoder import CONTEXT_LENGTH, BiomedCLIP, embed_images, embed_texts
from medlib.models.standin import loop
from medlib.models.standin import medgemma as medgemma_standin
from medlib.models.standin.medgemma import IMAGE_SIZE, PATCH_SIZE
from medlib.models.standin.words import DRAWN, MODALITY_NAMES, Words, modality_name
from medlib.models.standin.words import caption as canonical_caption

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


def caption(rng: np.random.Generator, finding: Finding, words: Words = DRAWN) -> str:
    """One of many ways to caption an image of a finding, in the words of any split."""
    template = str(rng.choice([*words.phrases(finding), finding.label]))
    text = template.replace("{degree}", str(rng.choice(DEGREES)).lower())
    return str(rng.choice(CAPTIONS)).format(modality=modality_name(finding.modality), words=text)


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


#: Labels (n,) and pixels (n, 3, height, width) of so many images, drawn from these generators.
Sampler = Callable[[int, np.random.Generator, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def drawn_sampler(images: np.ndarray, labels: np.ndarray) -> Sampler:
    """Any of the images (uint8, n x height x width x 3), altered as the other stand-in's are."""

    def sample(count: int, rng: np.random.Generator, generator: torch.Generator):
        rows = rng.integers(len(labels), size=count)
        pixels = medgemma_standin.augment(medgemma_standin.to_pixels(images[rows]), generator)
        return torch.from_numpy(labels[rows]), pixels

    return sample


def train(
    model: BiomedCLIP,
    processor,
    sample: Sampler,
    checkpoint: Path,
    steps: int = 1200,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    every: int = 100,
    words: Words = DRAWN,
    score: Callable[[], float] | None = None,
) -> list[dict]:
    """Train in place; resumes from ``checkpoint`` if that file is there.

    Parameters
    ----------
    sample : function
        Images of ``words.findings``, labelled by their places there.
    score : function, optional
        The weights for which it was highest, at every checkpoint, are those that stay.

    Returns
    -------
    Mean losses of each ``every`` steps, as `medlib.models.standin.loop.train` has them.
    """
    sentences = words.sentences()

    def losses_at(step: int) -> dict[str, torch.Tensor]:
        rng, generator = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed + step)
        labels, pixels = sample(batch_size, rng, generator)
        captions = [caption(rng, words.findings[label], words) for label in labels]
        tokens = processor.tokenizer(captions, padding=True, return_tensors="pt")
        with loop.half_precision():
            shown = model.get_image_features(pixels).pooler_output
            said = model.get_text_features(**tokens).pooler_output
            scale = model.logit_scale.exp().clamp(max=100)
            contrastive = contrastive_loss(shown, said, scale, labels)
            plain_text = list(rng.choice(sentences, size=batch_size))
            masked_words = masked_word_loss(model, processor.tokenizer, plain_text)
        return {"contrastive": contrastive, "masked_words": masked_words}

    return loop.train({"model": model}, losses_at, checkpoint, steps, lr, seed, every, score, "dual encoder")


# --- measuring and building -----------------------------------------------------------------------


def zero_shot(
    processor, model: BiomedCLIP, images: np.ndarray, labels: np.ndarray, words: Words = DRAWN
) -> np.ndarray:
    """Label that each image gets: of its modality, the finding with the most similar canonical caption."""
    shown = embed_images(processor, model, map(Image.fromarray, images))
    modality = np.array([words.findings[label].modality for label in labels])
    named = np.empty(len(labels), int)
    for name in words.modalities:
        places = np.array([i for i, f in enumerate(words.findings) if f.modality == name])
        prompts = embed_texts(processor, model, [canonical_caption(words.findings[i]) for i in places])
        rows = modality == name
        named[rows] = places[(shown[rows] @ prompts.T).argmax(axis=1)]
    return named


def measure(processor, model: BiomedCLIP, images: np.ndarray, labels: np.ndarray, words: Words = DRAWN) -> dict:
    """What the encoder makes of images that it never saw.

    Returns
    -------
    dict
        ``zero_shot``: {modality or "all": proportion of images whose most similar caption, among
        one canonical caption for each finding of the modality, is the right one};
        ``image_to_text``: most similar of all phrases words the finding;
        ``text_to_picture``: most similar of all images shows the finding.
    """
    right = zero_shot(processor, model, images, labels, words) == labels
    modality = np.array([words.findings[label].modality for label in labels])
    degree = DEGREES[1].lower()
    texts = [
        (f"{modality_name(f.modality)}: {p.replace('{degree}', degree)}", number)
        for number, f in enumerate(words.findings)
        for p in words.phrases(f)
    ]
    shown = embed_images(processor, model, map(Image.fromarray, images))
    similarity = shown @ embed_texts(processor, model, [text for text, _ in texts]).T
    about = np.array([number for _, number in texts])

    def rate(hits):
        return stats.proportion(int(np.sum(hits)), len(hits))

    return {
        "zero_shot": {name: rate(right[modality == name]) for name in words.modalities} | {"all": rate(right)},
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
    history = train(model, processor, drawn_sampler(images, labels), checkpoint, steps, seed=seed)
    trained = time.time()
    with files.replacements(out_dir) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
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
    files.write_text(out_dir / "README.md", model_card(measured))
    files.write_json(out_dir / "standin.json", measured)
    shutil.rmtree(stages)
    return measured


def model_card(measured: dict) -> str:
    """Markdown card with the figures of this build."""

    def cells(rate):
        return f"{rate['value']:.1%} | {rate['low']:.1%} to {rate['high']:.1%} | {rate['n']:,}"

    rows = [f"| {modality_name(name)} | {cells(rate)} |" for name, rate in measured["zero_shot"].items()]
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
