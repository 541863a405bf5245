"""The dual encoder: its key map against timm's and open_clip's own arithmetic, loading, embedding."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from medlib.config import ModelError
from medlib.data.synthetic import grammar
from medlib.data.synthetic.grammar import SEED_BASE
from medlib.models import dual_encoder, loading
from medlib.models.dual_encoder import OPEN_CLIP_WEIGHTS, BiomedCLIP
from medlib.models.standin import biomedclip as biomedclip_standin
from medlib.models.standin import loop
from medlib.models.standin import medgemma as medgemma_standin

WIDTH, HEADS, PATCH, SIDE, PROJECTION = 128, 2, 8, 4, 48
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": PROJECTION,
        "vision_cfg": {"timm_model_name": "vit_tiny", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {
            "hf_tokenizer_name": "nobody/nothing",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}


@pytest.fixture(scope="module")
def processor():
    return biomedclip_standin.build_processor()


def text_config(processor):
    return BertConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=160,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="module")
def checkpoint(processor):
    """Random weights under open_clip's names, every tensor far from its usual 0 or 1."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        "logit_scale": torch.tensor(4.4),
        "visual.trunk.cls_token": random(1, 1, WIDTH),
        "visual.trunk.pos_embed": random(1, SIDE**2 + 1, WIDTH),
        "visual.trunk.patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "visual.trunk.patch_embed.proj.bias": random(WIDTH),
        "visual.trunk.norm.weight": 1 + random(WIDTH),
        "visual.trunk.norm.bias": random(WIDTH),
        "visual.head.proj.weight": random(PROJECTION, WIDTH),
        "text.proj.0.weight": random((WIDTH + PROJECTION) // 2, WIDTH),
        "text.proj.2.weight": random(PROJECTION, (WIDTH + PROJECTION) // 2),
        "text.transformer.embeddings.position_ids": torch.arange(256)[None],  # of older transformers
    }
    for i in range(2):
        block = f"visual.trunk.blocks.{i}"
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 200, WIDTH),
            ("mlp.fc2", WIDTH, 200),
        ):
            weights[f"{block}.{name}.weight"] = random(rows, columns)
            weights[f"{block}.{name}.bias"] = random(rows)
        for name in ("norm1", "norm2"):
            weights[f"{block}.{name}.weight"] = 1 + random(WIDTH)
            weights[f"{block}.{name}.bias"] = random(WIDTH)
    bert = BertModel(text_config(processor), add_pooling_layer=False)
    return weights | {f"text.transformer.{k}": random(*v.shape) for k, v in bert.state_dict().items()}


def timm_forward(w, pixels):
    """timm's VisionTransformer (fused q, k, v; pre-norm; token pooling) and open_clip's linear head."""
    head, w = w["visual.head.proj.weight"], {k.removeprefix("visual.trunk."): v for k, v in w.items()}

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    # a patch as one flat row is what the convolution sees
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(2):
        n, tokens, _ = x.shape
        fused = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = fused.reshape(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + linear(mixed, f"blocks.{i}.attn.proj")
        wide = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(wide, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")[:, 0] @ head.T


def open_clip_text_forward(w, ids, config):
    """HFTextEncoder: BERT, the first token's last hidden state, two layers without bias."""
    bert = BertModel(config, add_pooling_layer=False).eval()
    prefix = "text.transformer."
    bert.load_state_dict(
        {
            k.removeprefix(prefix): v
            for k, v in w.items()
            if k.startswith(prefix) and not k.endswith("position_ids")
        }
    )
    first = bert(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    return F.gelu(first @ w["text.proj.0.weight"].T) @ w["text.proj.2.weight"].T


@pytest.fixture(scope="module")
def mapped(checkpoint):
    model = BiomedCLIP(dual_encoder.config_of(checkpoint))
    model.load_state_dict(dual_encoder.key_map(checkpoint))  # strict: no name missing, none left over
    return model.eval()


@torch.no_grad()
def test_key_map_gives_the_images_vectors_of_timm(checkpoint, mapped):
    pixels = torch.randn(3, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(1))
    wanted, got = timm_forward(checkpoint, pixels), mapped.get_image_features(pixels).pooler_output
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.1  # the comparison is not one of zeros


@torch.no_grad()
def test_a_wrong_order_of_q_k_v_would_be_seen(checkpoint, mapped):
    pixels = torch.randn(3, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(1))
    swapped = {k: torch.cat(v.chunk(3)[::-1]) if ".qkv." in k else v for k, v in checkpoint.items()}
    difference = timm_forward(swapped, pixels) - mapped.get_image_features(pixels).pooler_output
    assert difference.abs().max() > 0.1


@torch.no_grad()
def test_key_map_gives_the_text_vectors_and_logits_of_open_clip(checkpoint, mapped, processor):
    ids = torch.randint(5, 500, (3, 12), generator=torch.Generator().manual_seed(2))
    ids[0, 5:] = 0  # padding
    wanted = open_clip_text_forward(checkpoint, ids, text_config(processor))
    mask = (ids != 0).long()
    got = mapped.get_text_features(ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    pixels = torch.randn(2, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(3))
    cosine = F.normalize(timm_forward(checkpoint, pixels), dim=-1) @ F.normalize(wanted, dim=-1).T
    logits = mapped(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits_per_image
    torch.testing.assert_close(logits, torch.tensor(4.4).exp() * cosine, atol=1e-3, rtol=1e-3)


def write_open_clip(folder, checkpoint, processor, settings=OPEN_CLIP, name="open_clip_model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    processor.tokenizer.save_pretrained(folder)
    if name:
        save_file(checkpoint, folder / name)
    return folder


@pytest.mark.parametrize("name", OPEN_CLIP_WEIGHTS)
def test_an_open_clip_folder_loads_and_survives_saving(tmp_path, checkpoint, processor, name):
    folder = write_open_clip(tmp_path / "open_clip", checkpoint, processor, name=name)
    loaded_processor, model = dual_encoder.load(str(folder))
    ours = tmp_path / "ours"
    model.save_pretrained(ours)
    loaded_processor.save_pretrained(ours)
    again_processor, again = dual_encoder.load(str(ours))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]
    texts = ["lobar pneumonia", "clear lungs", "lobar pneumonia"]
    for embed, items in ((dual_encoder.embed_images, images), (dual_encoder.embed_texts, texts)):
        first, second = embed(loaded_processor, model, items), embed(again_processor, again, items)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_images_are_prepared_as_open_clip_does(tmp_path, checkpoint, processor):
    folder = write_open_clip(tmp_path / "open_clip", checkpoint, processor)
    image_processor = dual_encoder.load(str(folder))[0].image_processor
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    side = PATCH * SIDE
    small = np.asarray(image.resize((48, side), Image.Resampling.BICUBIC))[:, 8:40] / 255
    wanted = ((small - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]).transpose(2, 0, 1)
    got = image_processor([image], return_tensors="pt")["pixel_values"][0].numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_batches_and_padding_do_not_change_a_vector(checkpoint, mapped, processor):
    texts = grammar.phrases("test")[:9]
    alone = np.concatenate([dual_encoder.embed_texts(processor, mapped, [text]) for text in texts])
    together = dual_encoder.embed_texts(processor, mapped, texts, batch_size=4)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert dual_encoder.embed_texts(processor, mapped, []).shape == (0, PROJECTION)
    assert dual_encoder.embed_images(processor, mapped, []).shape == (0, PROJECTION)


def test_long_texts_are_cut_at_the_context_length(mapped, processor):
    vectors = dual_encoder.embed_texts(processor, mapped, ["opacity " * 1000, "opacity " * 2000])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_a_folder_with_only_a_pickle_is_refused_with_the_way_out(tmp_path, checkpoint, processor):
    folder = write_open_clip(tmp_path / "open_clip", checkpoint, processor, name=None)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"not even looked at")
    with pytest.raises(ModelError) as error:
        dual_encoder.load(str(folder))
    message = str(error.value)
    assert f"{folder}/open_clip_model.safetensors" in message
    assert "weights_only=True" in message and "hf download" not in message


def test_a_hub_pickle_is_told_to_be_fetched(tmp_path, checkpoint, processor, monkeypatch):
    folder = write_open_clip(tmp_path / "snapshot", checkpoint, processor, name=None)
    monkeypatch.setattr(dual_encoder, "snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(ModelError) as error:
        dual_encoder.load("some/hub-name")
    assert "hf download some/hub-name --local-dir biomedclip" in str(error.value)
    assert str(folder) not in str(error.value)


def test_the_conversion_in_the_error_message_works(tmp_path, checkpoint, processor):
    write_open_clip(tmp_path / "biomedclip", checkpoint, processor, name=None)
    torch.save(checkpoint, tmp_path / "biomedclip" / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        dual_encoder.load(str(tmp_path / "biomedclip"))
    snippet = str(error.value).partition("<<'END'\n")[2].partition("  END")[0]
    exec("\n".join(line.strip() for line in snippet.splitlines()), {})
    dual_encoder.load(str(tmp_path / "biomedclip"))


@pytest.mark.parametrize(
    "section, field, value", [("vision_cfg", "timm_pool", "avg"), ("text_cfg", "hf_pooler_type", "mean_pooler")]
)
def test_another_pooling_is_refused_by_name(tmp_path, checkpoint, processor, section, field, value):
    settings = json.loads(json.dumps(OPEN_CLIP))
    settings["model_cfg"][section][field] = value
    folder = write_open_clip(tmp_path / "open_clip", checkpoint, processor, settings)
    with pytest.raises(ModelError, match=f"{section}.{field}.*{value}"):
        dual_encoder.load(str(folder))


def test_weights_of_another_layout_are_refused(tmp_path, checkpoint, processor):
    broken = {k: v for k, v in checkpoint.items() if k != "text.proj.2.weight"}
    folder = write_open_clip(tmp_path / "open_clip", broken, processor)
    with pytest.raises(ModelError, match="text_projection.2.weight"):
        dual_encoder.load(str(folder))


def test_an_unreachable_hub_model_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(dual_encoder, "snapshot_download", offline)
    with pytest.raises(ModelError, match="nobody/nothing.*models/biomedclip-nano"):
        dual_encoder.load("nobody/nothing")
    with pytest.raises(ModelError):
        dual_encoder.load("models/no-such-folder")


def test_no_pickle_is_fetched_from_the_hub(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        dual_encoder, "snapshot_download", lambda name, **options: asked.update(options) or str(tmp_path)
    )
    dual_encoder.fingerprint("nobody/nothing")
    assert all(not pattern.endswith((".bin", ".pt", "*")) for pattern in asked["allow_patterns"])


def test_the_fingerprint_follows_weights_and_tokenizer(tmp_path, checkpoint, processor):
    folder = write_open_clip(tmp_path / "open_clip", checkpoint, processor)
    first = dual_encoder.fingerprint(str(folder))
    assert first == dual_encoder.fingerprint(str(folder))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    second = dual_encoder.fingerprint(str(folder))
    save_file(checkpoint | {"logit_scale": torch.tensor(4.5)}, folder / "open_clip_model.safetensors")
    assert len({first, second, dual_encoder.fingerprint(str(folder))}) == 3


# --- the stand-in ---------------------------------------------------------------------------------


def test_contrastive_loss_is_clips_where_findings_differ():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(6, 8, generator=generator) for _ in range(2))
    scale = torch.tensor(5.0)
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    plain = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    ours = biomedclip_standin.contrastive_loss(images, texts, scale, torch.arange(6))
    torch.testing.assert_close(ours, plain)
    # pairs of one finding are not pushed apart: swapping their captions changes nothing
    findings = torch.tensor([0, 0, 1, 2, 3, 4])
    swapped = texts[[1, 0, 2, 3, 4, 5]]
    torch.testing.assert_close(
        biomedclip_standin.contrastive_loss(images, texts, scale, findings),
        biomedclip_standin.contrastive_loss(images, swapped, scale, findings),
    )


def test_captions_word_the_finding_and_never_a_treatment():
    from medlib.data.synthetic.lexicon import FINDINGS, TREATMENTS

    rng = np.random.default_rng(0)
    said = {biomedclip_standin.caption(rng, finding) for finding in FINDINGS for _ in range(200)}
    treatments = {p.lower() for care in TREATMENTS.values() for words in care.values() for p in words}
    assert len(said) > 500 and not any("{" in text for text in said)
    assert not any(treatment in text.lower() for text in said for treatment in treatments)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (26, 112, 112, 3), dtype=np.uint8), np.arange(26) % 13


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, processor, noise):
    options = {"steps": 4, "batch_size": 4, "every": 2}
    straight = biomedclip_standin.build_model(processor)
    whole = tmp_path / "whole.safetensors"
    sample = biomedclip_standin.drawn_sampler(*noise)
    history = biomedclip_standin.train(straight, processor, sample, whole, **options)

    keep, file = loop.keep, tmp_path / "broken.safetensors"

    def keep_and_break(*args):
        keep(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "keep", keep_and_break)
        biomedclip_standin.train(biomedclip_standin.build_model(processor), processor, sample, file, **options)
    resumed = biomedclip_standin.build_model(processor, seed=9)  # every weight must come from the checkpoint
    assert biomedclip_standin.train(resumed, processor, sample, file, **options) == history
    assert [row["step"] for row in history] == [2, 4]
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name, atol=0, rtol=0)


def test_a_build_leaves_a_whole_model_with_an_honest_card(tmp_path, monkeypatch):
    def pool(per_finding, seed_base):
        assert seed_base in (SEED_BASE["pretrain"], SEED_BASE["pretrain_held_out"])
        rng = np.random.default_rng(seed_base)
        labels = np.repeat(np.arange(13), per_finding)
        return rng.integers(0, 256, (len(labels), 112, 112, 3), dtype=np.uint8), labels

    monkeypatch.setattr(medgemma_standin, "image_pool", pool)
    measured = biomedclip_standin.build(tmp_path / "nano", per_finding=2, steps=2, held_out=1)
    processor, model = dual_encoder.load(str(tmp_path / "nano"))
    assert loading.is_standin(str(tmp_path / "nano")) and not (tmp_path / "nano" / "stages").exists()
    assert (tmp_path / "nano" / "model.safetensors").stat().st_size < 8e6
    assert measured["zero_shot"]["all"]["n"] == 13 and measured["text_to_picture"]["n"] == 13 * 12
    card = (tmp_path / "nano" / "README.md").read_text()
    assert "knows no medicine" in card and "none was paired" in card
    assert f"{measured['zero_shot']['all']['value']:.1%}" in card
