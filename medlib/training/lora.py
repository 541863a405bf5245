"""What LoRA changes, and how many parameters that is."""

from __future__ import annotations

from peft import LoraConfig

from medlib.config import ConfigError, RunConfig
from medlib.training import processes

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TOWER = ("q_proj", "k_proj", "v_proj", "out_proj")
#: The projector's matrix is a bare parameter in Gemma 3, so no module could be named for it.
PROJECTOR = "multi_modal_projector.mm_input_projection_weight"
#: Choices of ``lora_targets`` that change what becomes of an image; its features cannot be kept then.
CHANGES_IMAGES = ("projector", "vision")


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
        raise ConfigError("lora_targets=projector: DoRA is not defined for a bare parameter; set use_dora=false")
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        bias="none",
        task_type="CAUSAL_LM",
        # accelerate's FSDP recomputes activations with other dropout masks than those of the forward pass
        lora_dropout=0 if projector or processes.sharded() else config.lora_dropout,
        target_modules=f"({decoder}|{tower})" if config.lora_targets == "vision" else decoder,
        target_parameters=[PROJECTOR] if projector else None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )


def why_no_features(config: RunConfig) -> str:
    """Why an image's features cannot be computed once for the whole training; "" if they can."""
    if config.lora_targets in CHANGES_IMAGES:
        return f"lora_targets={config.lora_targets} changes them"
    return "under FSDP no process holds the whole tower" if processes.sharded() else ""


def trainable_share(model) -> tuple[int, int, float]:
    """(trainable, total, share in percent) of a model's parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return trainable, total, 100 * trainable / total


def describe(model) -> str:
    """One line: trainable parameters and their share."""
    trainable, total, share = trainable_share(model)
    return f"{trainable:,} of {total:,} parameters trainable ({share:.2f}%)"
