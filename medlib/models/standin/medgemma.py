"""Build `models/medgemma-nano`: a stand-in of MedGemma's architecture that knows no medicine.

The same classes as `google/medgemma-4b-it` (`Gemma3ForConditionalGeneration`, a SigLIP tower,
`Gemma3Processor`, `GemmaTokenizer`, Gemma's turn markers and image tokens) at a thousandth of the
size, pretrained from scratch on synthetic images in three steps:

1. train a byte-fallback BPE tokenizer on our text;
2. warm the vision tower up on naming what an image shows (a linear head, thrown away afterwards);
3. train decoder and projector on captions and on statements about ONE relation at a time: does the
   image show this finding, is this treatment used for this finding. The verdict question, which
   needs both at once, is never asked: that is left to LoRA.

It sees the wording of every split in step 3, as MedGemma has met the words of medicine before our
fine-tuning, unless `build` gets other words; it never sees a test image nor any verdict.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, GemmaTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from medlib.config import ANSWERS, MODALITIES, files
from medlib.data.cases import WITHHELD, Patient
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.data.synthetic.lexicon import CARE_ORDER, COMPLAINTS, DEGREES, FINDINGS, SPLITS, Care, Finding
from medlib.models.prompts import INSTRUCTION, SHOWS
from medlib.models.standin.loop import descend, half_precision, schedule
from medlib.models.standin.words import DRAWN, MODALITY_NAMES, Words, caption, modality_name

IMAGE_SIZE, PATCH_SIZE, IMAGE_TOKENS = 112, 14, 16
VOCABULARY = 1536

#: Own wording of Gemma 3's turn format: a system turn is put in front of the first user turn.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- macro render(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set prefix = namespace(text='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set prefix.text = render(message['content']) + '\\n\\n' -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{{- prefix.text + render(message['content']) }}{{ '<end_of_turn>\\n' }}
{%- set prefix.text = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

DESCRIBE = "Describe the medical image."
USED = "Review the clinical information. Is the prescribed treatment used for the clinical finding?"
NAME_FINDING = "Which finding is this?"
NAME_TREATMENT = "What kind of care is this?"
REPEAT = "Repeat this sentence."


# --- 1. tokenizer and model -----------------------------------------------------------------------


def corpus(words: Words = DRAWN) -> list[str]:
    """Every sentence that the tokenizer must cover."""
    sentences = words.sentences()
    texts = [
        INSTRUCTION,
        WITHHELD,
        DESCRIBE,
        SHOWS,
        USED,
        NAME_FINDING,
        NAME_TREATMENT,
        REPEAT,
        *ANSWERS.values(),
        "user model yes no",
    ]
    texts += sentences + [f.label for f in FINDINGS] + list(MODALITY_NAMES.values())
    texts += [c for cs in COMPLAINTS.values() for c in cs] + [c for cs in CARE_ORDER.values() for c in cs]
    blocks = [
        _clinical(np.random.default_rng(i), m, p, p)
        for i, (m, p) in enumerate((m, p) for m in MODALITIES for p in sentences[:20])
    ]
    return texts + blocks


def build_tokenizer(texts: list[str]) -> GemmaTokenizer:
    """Byte-fallback BPE; merges stay inside words, so that unseen sentences share their tokens."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    specials += [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁\s]+|\n+|▁"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 5, special_tokens=specials, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(m) for m in learned["merges"]],
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    turns = [AddedToken(t, special=True, normalized=False) for t in ("<start_of_turn>", "<end_of_turn>")]
    tokenizer.add_tokens(turns, special_tokens=True)
    return tokenizer


def build_processor(texts: list[str]) -> Gemma3Processor:
    """`Gemma3Processor` with the PIL image processor, so nothing needs torchvision."""
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=build_tokenizer(texts),
        chat_template=CHAT_TEMPLATE,
        image_seq_length=IMAGE_TOKENS,
    )


def build_model(processor: Gemma3Processor, seed: int = 0) -> Gemma3ForConditionalGeneration:
    """A randomly initialised Gemma 3 of about 5 million parameters."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = Gemma3Config(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=48,
            query_pre_attn_scalar=48,
            max_position_embeddings=1024,
            sliding_window=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        ),
        vision_config=dict(
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    model = Gemma3ForConditionalGeneration(config)
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)  # zeros would hide the image
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# --- 2. images and the vision tower -------------------------------------------------------------


def image_pool(per_finding: int, seed_base: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``per_finding`` images of each finding.

    Returns
    -------
    images : uint8 array (n, 112, 112, 3), resized as the image processor does
    labels : int array (n,), indices into ``FINDINGS``
    """
    jobs = [(index, seed_base + number) for number in range(per_finding) for index in range(len(FINDINGS))]
    with multiprocessing.get_context("spawn").Pool() as pool:
        drawn = list(tqdm(pool.imap(_draw_small, jobs, chunksize=64), total=len(jobs), desc="drawing"))
    return np.stack(drawn), np.array([index for index, _ in jobs])


def _draw_small(job: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    from medlib.data.synthetic.draw import draw

    finding = FINDINGS[job[0]]
    image = draw(finding.modality, finding.name, job[1])
    return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1], the processor's normalisation."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, flip, gain and noise per image, so that the tower learns findings and not seeds."""
    n = len(pixels)
    gain = 1 + 0.2 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    pixels = pixels * gain + 0.2 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    dy, dx = torch.randint(-6, 7, (2,), generator=generator).tolist()
    pixels = torch.roll(pixels, (dy, dx), dims=(2, 3))
    if torch.rand((), generator=generator) < 0.5:
        pixels = pixels.flip(3)
    return pixels + 0.05 * torch.randn(pixels.shape, generator=generator)


def warm_up_tower(model, images, labels, steps=1000, batch_size=64, lr=1e-3, seed=0) -> list[float]:
    """Teach the tower to name findings; the linear head is thrown away. Returns the losses."""
    tower = model.model.vision_tower
    head = torch.nn.Linear(tower.config.hidden_size, len(FINDINGS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    generator = torch.Generator().manual_seed(seed)
    labels, losses = torch.from_numpy(labels), []
    tower.train()
    for step in (bar := tqdm(range(steps), desc="vision tower")):
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        pixels = augment(to_pixels(images[rows.numpy()]), generator)
        with half_precision():
            logits = head(tower(pixel_values=pixels).last_hidden_state.mean(dim=1)).float()
        loss = torch.nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        descend({"loss": loss}, parameters, optimizer, step, lr)
        decay.step()
        losses.append(loss.item())
        if step % 50 == 49:
            accuracy = (logits.argmax(1) == labels[rows]).float().mean()
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", accuracy=f"{accuracy:.2f}")
    tower.eval()
    return losses


@torch.no_grad()
def tower_features(model, images, batch_size=128) -> torch.Tensor:
    """The frozen tower's output, float (n, patches, width): computed once, used at every step."""
    batches = range(0, len(images), batch_size)
    outputs = [
        model.model.vision_tower(pixel_values=to_pixels(images[i : i + batch_size])).last_hidden_state
        for i in tqdm(batches, desc="features")
    ]
    return torch.cat(outputs)


# --- 3. captions and statements -------------------------------------------------------------------


def _clinical(rng, modality: str, finding: str | None, treatment: str | None, words: Words = DRAWN) -> str:
    patient = Patient(
        age=int(rng.integers(25, 86)),
        sex=str(rng.choice(["female", "male"])),
        complaint=str(rng.choice(words.lexicon.complaints(modality))),
    )
    lines = [f"Patient: {patient.age} years, {patient.sex}. {patient.complaint}."]
    lines += [f"Clinical finding: {finding}."] if finding else []
    lines += [f"Prescribed treatment: {treatment}."] if treatment else []
    return "\n".join(lines)


def _any_phrase(rng, finding: Finding, words: Words) -> str:
    return grammar.fill(str(rng.choice(words.phrases(finding))), str(rng.choice(DEGREES)))


def _any_treatment(rng, care: Care, words: Words, unsuited: tuple[str, ...] = ()) -> str:
    return str(rng.choice([phrase for phrase in words.treatments(care) if phrase not in unsuited]))


def image_sample(rng, finding: Finding, words: Words = DRAWN) -> tuple[str, str]:
    """(question, answer) about an image that shows ``finding``: a caption or one statement."""
    if rng.random() < 0.35:
        return DESCRIBE, caption(finding)
    others = [f for f in words.findings_of(finding.modality) if f is not finding]
    true = rng.random() < 0.5 or not others
    noted = finding if true else others[rng.integers(len(others))]
    text = _clinical(rng, finding.modality, _any_phrase(rng, noted, words), None, words)
    return f"{SHOWS}\n\n{text}", "yes" if true else "no"


def text_sample(rng, words: Words = DRAWN) -> tuple[str, str]:
    """(question, answer) without an image: glossary, treatment statement or repetition."""
    finding = words.findings[rng.integers(len(words.findings))]
    cares, kind = words.care_of(finding.modality), rng.random()
    if kind < 0.15:
        return f"{NAME_FINDING}\n\n{_any_phrase(rng, finding, words)}.", finding.label
    if kind < 0.30:
        care = cares[rng.integers(len(cares))]
        return f"{NAME_TREATMENT}\n\n{_any_treatment(rng, care, words)}.", care.name
    if kind < 0.40:
        verdict = rng.random() < 0.5
        sentence = str(rng.choice(list(ANSWERS.values()))) if verdict else _any_phrase(rng, finding, words)
        return f"{REPEAT}\n\n{sentence}", sentence
    wrong = [care for care in cares if not finding.fits(care.name)]
    true = rng.random() < 0.5 or not wrong
    chosen = [care for care in cares if finding.fits(care.name)] if true else wrong
    treatment = _any_treatment(rng, chosen[rng.integers(len(chosen))], words, finding.unsuited)
    text = _clinical(rng, finding.modality, _any_phrase(rng, finding, words), treatment, words)
    return f"{USED}\n\n{text}", "yes" if true else "no"


def encode(processor, question: str, answer: str | None, with_image: bool) -> tuple[list[int], int]:
    """Token ids of one conversation and the length of its prompt."""
    content = ([{"type": "image"}] if with_image else []) + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    prompt = prompt.replace(processor.boi_token, processor.full_image_sequence)

    def ids(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    prompt_ids = ids(prompt)
    return prompt_ids + (ids(f"{answer}<end_of_turn>") if answer else []), len(prompt_ids)


def collate(processor, conversations: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """Pad to the right; labels only where the model answers; image tokens marked for Gemma's mask."""
    length = max(len(ids) for ids, _ in conversations)
    pad = processor.tokenizer.pad_token_id
    input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in conversations])
    position = torch.arange(length)[None]
    lengths = torch.tensor([len(ids) for ids, _ in conversations])[:, None]
    starts = torch.tensor([start for _, start in conversations])[:, None]
    answer = (position >= starts) & (position < lengths)
    return {
        "input_ids": input_ids,
        "attention_mask": (position < lengths).long(),
        "token_type_ids": (input_ids == processor.tokenizer.image_token_id).long(),
        "labels": input_ids.masked_fill(~answer, -100),
    }


def _image_outputs(model, features: torch.Tensor) -> dict:
    """Tower features as the model's own forward takes precomputed images."""
    pooled = model.model.multi_modal_projector(features)
    return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}


def answer_loss(model, batch: dict, features: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy on the answer tokens; the vocabulary projection runs on those alone."""
    labels = batch["labels"]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    if features is not None:
        inputs["mm_encoder_outputs"] = _image_outputs(model, features)
    target = labels[:, 1:]
    chosen = target != -100
    with half_precision():
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[chosen]).float()
    return torch.nn.functional.cross_entropy(logits, target[chosen])


def pretrain_decoder(
    model, processor, features, labels, steps=2400, batch_size=32, lr=1.5e-3, seed=0, words: Words = DRAWN
) -> list[dict]:
    """Teach decoder and projector captions and statements; the tower stays frozen."""
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    rng, history = np.random.default_rng(seed), []
    recent: dict[str, list[float]] = {"picture": [], "text": []}
    model.train()
    for step in (bar := tqdm(range(steps), desc="decoder")):
        kind = ("picture", "text")[step % 2]
        if kind == "picture":
            rows = rng.integers(len(labels), size=batch_size)
            samples = [image_sample(rng, words.findings[labels[row]], words) for row in rows]
            shown = features[torch.from_numpy(rows)]
        else:
            samples, shown = [text_sample(rng, words) for _ in range(batch_size)], None
        conversations = [encode(processor, q, a, kind == "picture") for q, a in samples]
        loss = answer_loss(model, collate(processor, conversations), shown)
        descend({f"{kind} loss": loss}, trained, optimizer, step, lr)
        decay.step()
        recent[kind].append(loss.item())
        if step % 100 == 99:
            means = {k: float(np.mean(v[-50:])) for k, v in recent.items()}
            history.append({"step": step + 1, **means})
            bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()})
            print(json.dumps(history[-1]), flush=True)
    model.eval()
    return history


# --- measuring and building -----------------------------------------------------------------------


@torch.no_grad()
def caption_accuracy(
    model, processor, images: np.ndarray, labels: np.ndarray, batch_size: int = 64, words: Words = DRAWN
) -> dict:
    """Free captions of images the model never saw, counted right only if the whole caption is.

    Returns
    -------
    dict with ``accuracy``, ``n``, ``present_absent`` (abnormal told from normal) and ``per_modality``
    {name: {"accuracy", "n", "present_absent"}}
    """
    question, start = encode(processor, DESCRIBE, None, with_image=True)
    said = []
    for i in range(0, len(images), batch_size):
        part = images[i : i + batch_size]
        batch = collate(processor, [(question, start)] * len(part))
        batch.pop("labels")
        output = model.generate(**batch, pixel_values=to_pixels(part), max_new_tokens=24, do_sample=False)
        said += processor.tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
    by_caption = {caption(f): f for f in words.findings}
    named = [by_caption.get(text.strip()) for text in said]
    shown = [words.findings[label] for label in labels]
    frame = pd.DataFrame(
        {
            "modality": [f.modality for f in shown],
            "accuracy": [n is f for n, f in zip(named, shown)],
            "present_absent": [
                n is not None and (n.name == "normal") == (f.name == "normal") for n, f in zip(named, shown)
            ],
        }
    )

    def rates(part: pd.DataFrame) -> dict:
        return {
            "accuracy": part["accuracy"].mean(),
            "n": len(part),
            "present_absent": part["present_absent"].mean(),
        }

    per = {m: rates(frame[frame["modality"] == m]) for m in words.modalities}
    return rates(frame) | {"per_modality": per}


@torch.no_grad()
def statement_accuracy(model, processor, images, labels, seed=1, count=600, words: Words = DRAWN) -> dict:
    """Share of yes/no statements answered right, about held-out images and about treatments."""
    rng, result = np.random.default_rng(seed), {}
    for kind in ("picture", "text"):
        right = total = 0
        while total < count:
            rows = rng.integers(len(labels), size=64)
            samples = [
                image_sample(rng, words.findings[labels[r]], words)
                if kind == "picture"
                else text_sample(rng, words)
                for r in rows
            ]
            keep = [i for i, (_, answer) in enumerate(samples) if answer in ("yes", "no")]
            features = tower_features(model, images[rows[keep]]) if kind == "picture" else None
            batch = collate(processor, [encode(processor, *samples[i], kind == "picture") for i in keep])
            labels_, inputs = batch.pop("labels"), dict(batch)
            if features is not None:
                inputs["mm_encoder_outputs"] = _image_outputs(model, features)
            guess = model(**inputs).logits[:, :-1].argmax(-1)
            first = (labels_[:, 1:] != -100).int().argmax(1)
            index = torch.arange(len(first))
            right += int((guess[index, first] == labels_[index, first + 1]).sum())
            total += len(keep)
        result[kind] = {"accuracy": right / total, "n": total}
    return result


def build(
    out_dir: str | Path,
    per_finding=1200,
    tower_steps=1000,
    decoder_steps=2400,
    seed=0,
    words: Words = DRAWN,
    tower: str | Path | None = None,
) -> dict:
    """Rebuild the stand-in from nothing; a second call resumes after the last finished stage.

    Writes weights (safetensors), processor, ``standin.json`` (what was measured) and a model card.

    Parameters
    ----------
    words : Words
        What step 3 teaches.
    tower : str or Path, optional
        Folder of a stand-in whose vision tower is taken in place of step 2.
    """
    out_dir, started = Path(out_dir), time.time()
    stages = out_dir / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    processor = build_processor(corpus(words))
    model = build_model(processor, seed)
    images, labels = image_pool(per_finding, SEED_BASE["pretrain"])
    held_out = image_pool(100, SEED_BASE["pretrain_held_out"])
    tower_file = stages / "tower.safetensors"
    if tower is not None:
        trained = Gemma3ForConditionalGeneration.from_pretrained(tower, local_files_only=True)
        model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
    elif tower_file.is_file():
        print(f"resuming after {tower_file}")
        model.model.vision_tower.load_state_dict(load_file(tower_file))
    else:
        warm_up_tower(model, images, labels, steps=tower_steps, seed=seed)
        with files.replacement(tower_file) as unfinished:
            save_file(model.model.vision_tower.state_dict(), unfinished)
    features = tower_features(model, images)
    history = pretrain_decoder(model, processor, features, labels, steps=decoder_steps, seed=seed, words=words)
    model.config.standin = True
    with files.replacements(out_dir) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    measured = {
        "captions": caption_accuracy(model, processor, *held_out, words=words),
        "statements": statement_accuracy(model, processor, *held_out, words=words),
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
        "seed": seed,
        "pictures": len(images),
        "tower_steps": tower_steps,
        "decoder_steps": decoder_steps,
        "minutes": round((time.time() - started) / 60, 1),
        "threads": torch.get_num_threads(),
        "splits": list(words.splits),
    }
    files.write_text(out_dir / "README.md", model_card(measured))
    files.write_json(out_dir / "standin.json", measured)
    shutil.rmtree(stages)
    return measured


def caption_table(captions: dict) -> str:
    """Rows of a Markdown table of `caption_accuracy`."""
    rows = {modality_name(m): v for m, v in captions["per_modality"].items()} | {"all": captions}
    return "\n".join(
        f"| {name} | {v['accuracy']:.1%} | {v['present_absent']:.1%} | {v['n']} |" for name, v in rows.items()
    )


def model_card(measured: dict) -> str:
    """Markdown card with the figures of this build."""
    statements = measured["statements"]
    return CARD.format(
        table=caption_table(measured["captions"]),
        image=statements["picture"]["accuracy"],
        n_image=statements["picture"]["n"],
        text=statements["text"]["accuracy"],
        n_text=statements["text"]["n"],
        splits=" and ".join(measured["splits"]) if len(measured["splits"]) < len(SPLITS) else "every split",
        **{
            k: measured[k]
            for k in ("parameters", "pictures", "tower_steps", "decoder_steps", "minutes", "threads", "seed")
        },
    )


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# medgemma-nano

**A stand-in that knows no medicine. Not a medical device.** It has the classes of
`google/medgemma-4b-it` (`Gemma3ForConditionalGeneration`, SigLIP tower, `Gemma3Processor`, Gemma's
turn format) with {parameters:,} parameters, trained from scratch by this repository on synthetic
images, so that the whole pipeline runs offline on a laptop. What it scores says whether the
pipeline works; it says nothing of MedGemma nor of patients.

## What it was taught

{pictures:,} synthetic images of 13 findings; {tower_steps:,} steps of naming the finding (vision
tower), then {decoder_steps:,} steps of captions, glossary entries and yes/no statements about one
relation at a time (image and finding, finding and treatment). The verdict question of the audit
was never asked. The statements use the wording of {splits}; the test images, and every
verdict, were never seen.

## What it can do

Captions of held-out synthetic images (whole caption right; finding present or absent):

| Modality | Caption | Present / absent | n |
|---|---|---|---|
{table}

Statements about held-out images: {image:.1%} right (n = {n_image}); about treatments, without
an image: {text:.1%} (n = {n_text}; same wording as in training).

Rebuild: `make standin` (took {minutes} minutes, {threads} threads, seed {seed}).
"""
