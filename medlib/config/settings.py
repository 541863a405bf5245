"""One typed configuration: notebook parameters, command-line flags and profiles share its names.

`RunConfig` is put together from stages; a fingerprint is made of the stages that its result depends on, so
that a new field cannot be forgotten there.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medlib.config.errors import ConfigError
from medlib.config.models import is_standin
from medlib.config.profiles import load_profile

STANDIN = "models/medgemma-nano"
DUAL_STANDIN = "models/biomedclip-nano"

#: Rows of the benchmark unless told otherwise; ``openai:<model>`` costs money and must be asked for.
ROWS = (
    "constant",
    "heuristics",
    "keyword-probe",
    "image-statistics",
    "biomedclip",
    "biomedclip-probe",
    "medgemma",
    "two-questions",
    "medgemma-lora",
    "medgemma-lora+biomedclip",
    "medgemma-sft",
    "medgemma-ppo",
    "medgemma-grpo",
    "medgemma-dpo",
)

Value = TypeVar("Value")
NEUTRAL = object()
#: Type of a field that says how fast, where or which of several parts, and changes none of their results:
#: no part of a fingerprint.
Neutral = Annotated[Value, NEUTRAL]


class Run(BaseModel):
    """Where, and with which random numbers."""

    run_dir: Neutral[str] = Field("runs/latest", description="where results go")
    seed: int = Field(0, ge=0, description="seed of data, initialisation, shuffling and dropout")
    processes: Neutral[int | None] = Field(
        None, ge=1, description="independent jobs side by side; None: one per core, or one on a GPU"
    )


class Model(BaseModel):
    """The base model and how it is loaded."""

    model: str = Field(STANDIN, description="hub name or folder; the one switch to the real MedGemma")
    trust_remote_code: Neutral[bool] = Field(False, description="let a hub model run its own code")
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="auto: bfloat16 where the hardware has it, else float32",
    )
    quantization: str | None = Field(
        None, pattern="^(none|8bit|4bit|int8)$", description="8bit, 4bit (NF4): bitsandbytes; int8: torchao; none"
    )
    use_8bit: bool = Field(False, description="the same as quantization: 8bit")
    attention: Neutral[str] = Field("sdpa", pattern="^(sdpa|eager|flash_attention_2)$")
    eval_batch_size: Neutral[int] = Field(32, ge=1, description="scenarios per batch when scoring")

    @field_validator("quantization")
    @classmethod
    def _none_is_none(cls, value: str | None) -> str | None:
        return None if value == "none" else value


class Data(BaseModel):
    """What is trained on."""

    data_dir: str | None = Field(None, description="folder with cases or labelled images of your own")
    allow_shared_groups: bool = Field(False, description="accept a split that shares groups or images")
    images_dir: str | None = Field(None, description="folder with the real core24 images")
    allow_masks: Neutral[bool] = Field(False, description="accept segmentation masks in place of scans")
    train_pairs: int = Field(1200, ge=4, description="counterfactual pairs to train on")
    val_pairs: int = Field(96, ge=4, description="pairs for early stopping and calibration")
    held_out_findings: tuple[str, ...] = Field(
        (), description="findings that stand in the held-out suite only, such as xray/ground_glass"
    )


class Training(BaseModel):
    """How the adapter is trained."""

    epochs: float = Field(3, gt=0)
    batch_size: int = Field(4, ge=1, description="scenarios per forward pass")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes per optimizer step")
    lr: float = Field(2e-4, gt=0, description="peak learning rate of AdamW")
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    lora_targets: str = Field(
        "attention",
        pattern="^(attention|attention[+]mlp|all-linear|projector|vision)$",
        description="what LoRA changes; attention: q, k, v, o of the decoder",
    )
    use_rslora: bool = Field(False, description="rank-stabilised LoRA: scale by the root of the rank")
    use_dora: bool = Field(False, description="DoRA: magnitude and direction apart")
    paraphrase_copies: int = Field(0, ge=0, description="copies of each training case in other words")
    pair_copies: int = Field(1, ge=1, description="how often a counterfactual pair whose image decides is seen")
    note_pairs: int = Field(0, ge=0, description="further training pairs whose note contradicts the image")
    patient_pairs: int = Field(0, ge=0, description="further training pairs of which the patient decides")
    early_stopping_patience: int = Field(3, ge=0, description="evaluations without gain; 0: never stop")
    evaluations_per_epoch: int = Field(2, ge=1)
    group_by_length: bool = Field(True, description="cases of one length side by side in a batch: less padding")
    gradient_checkpointing: Neutral[bool | None] = Field(None, description="None: on a GPU only")
    cache_image_features: Neutral[bool] = Field(
        True, description="run the frozen vision tower once per image and cache its features"
    )
    workers: Neutral[int] = Field(0, ge=0, description="processes that load images while the model trains")


class Suites(BaseModel):
    """What systems are measured on."""

    test_pairs: int = Field(1000, ge=1, description="pairs of the held-out suite")
    contradiction_pairs: int = Field(200, ge=4, description="pairs whose note contradicts the image")
    corruption_pairs: int = Field(24, ge=4, description="pairs shown through each altered image")
    patient_suite_pairs: int = Field(100, ge=4, description="pairs of which the patient decides")
    renderer_pairs: int = Field(200, ge=4, description="held-out pairs with images of the second renderer")
    calibration_pairs: int = Field(600, ge=12, description="pairs for the threshold, and as many for tuning")


class Scoring(BaseModel):
    """What the adapter is asked."""

    adapter: Neutral[str | None] = Field(None, description="adapter folder to evaluate; default: this run's own")
    generate: bool = Field(True, description="also let the model answer freely")
    core_folds: Neutral[bool] = Field(True, description="leave-one-image-group-out over core24")
    core_fold_epochs: float = Field(6, gt=0)
    ablations: Neutral[bool] = Field(True, description="parts of the input withheld, one at a time")


class Benchmark(BaseModel):
    """What the adapter is compared with."""

    systems: Neutral[tuple[str, ...]] = Field(ROWS, description="rows of the benchmark, lowest rung first")
    biomedclip: str = Field(DUAL_STANDIN, description="hub name or folder of the dual encoder")


class Api(BaseModel):
    """How a model behind an API is asked."""

    api_base_url: str | None = Field(None, description="OpenAI-compatible endpoint; None: OpenAI's")
    api_timeout_s: Neutral[float] = Field(60, gt=0, description="seconds a request may take")
    api_retries: Neutral[int] = Field(5, ge=0, description="tries after a failed request, with back-off")
    api_workers: Neutral[int] = Field(4, ge=1, description="requests at a time")
    api_allow_real_images: Neutral[bool] = Field(False, description="let images of one's own leave this machine")

    @field_validator("api_base_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        host(value or "")
        return value


def host(address: str) -> str | None:
    """Host of an endpoint's address; ValueError, which does not repeat it, if it is none."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  # asked for what it raises
    except ValueError:
        raise ValueError("not an address, such as https://host:8000/v1") from None
    return parts.hostname


class Feedback(BaseModel):
    """What raters are shown and say."""

    feedback_pairs: int = Field(160, ge=4, description="counterfactual pairs that raters are shown")
    feedback_note_pairs: int = Field(80, ge=0, description="pairs whose note contradicts the image, among them")
    ratings: str | None = Field(None, description="SQLite file of clinicians' ratings; None: simulated raters")
    rater_noise: float = Field(0.05, ge=0, lt=0.5, description="share of a simulated rater's wrong ratings")


class Reward(BaseModel):
    """How the reward model is trained."""

    reward_epochs: float = Field(4, gt=0, description="passes of the reward model over the preferences")
    reward_lr: float = Field(1e-4, gt=0, description="peak learning rate of the reward model")


class RL(BaseModel):
    """How the adapter learns from feedback."""

    rl_methods: Neutral[tuple[str, ...]] = Field(
        ("sft", "ppo", "grpo", "dpo"), description="ways of learning from feedback"
    )
    rl_seeds: Neutral[int] = Field(3, ge=1, description="runs of each method")
    rl_epochs: float = Field(4, gt=0, description="passes over the training cases: the budget of every method")
    rl_rehearsal_pairs: int = Field(0, ge=0, description="training pairs rehearsed beside the rated cases")
    rl_batch: int = Field(16, ge=2, description="cases per update")
    rl_samples: int = Field(4, ge=2, description="answers drawn for a case (PPO, GRPO)")
    rl_beta: float = Field(0.05, ge=0, description="weight of the KL divergence from the supervised adapter")
    rl_kl_limit: float = Field(2.0, gt=0, description="nats from the supervised adapter at which a run is stopped")
    sft_lr: float = Field(1e-5, gt=0)
    ppo_lr: float = Field(1e-5, gt=0)
    grpo_lr: float = Field(1e-5, gt=0)
    dpo_lr: float = Field(1e-5, gt=0)


class Threshold(BaseModel):
    """How the decision threshold is chosen."""

    risk_level: float = Field(0.02, gt=0, lt=1, description="share of critical errors that may be missed")
    risk_confidence: float = Field(0.9, gt=0, lt=1, description="probability with which that holds")


class Use(BaseModel):
    """What errors are like where the auditor would be used; assumed, so say what holds for you."""

    error_prevalence: Neutral[float] = Field(0.03, gt=0, lt=1, description="share of decisions that are errors")
    note_prevalence: Neutral[float] = Field(
        0.02, ge=0, lt=1, description="share of notes that contradict the image"
    )
    miss_weights: Neutral[tuple[float, float, float]] = Field(
        (1.0, 2.0, 4.0),
        description="what a missed moderate, high and critical error weighs; a query without need weighs 1",
    )


#: Every field of `RunConfig` belongs to exactly one of these.
STAGES = (Run, Model, Data, Training, Suites, Scoring, Benchmark, Api, Feedback, Reward, RL, Threshold, Use)
Part = type[BaseModel] | str  # a stage, or the name of one field


class RunConfig(*reversed(STAGES)):  # type: ignore[misc]  # mypy knows no bases made at run time
    """Everything that a run can be told; every field is a notebook parameter and a flag."""

    # defaults too: 40 and 40.0 would be two fingerprints
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def of(self, *parts: Part) -> dict[str, Any]:
        """What a result of these stages (or single fields) depends on: their values without the neutral ones."""
        return {name: getattr(self, name) for name in fields(*parts) if not is_neutral(name)}


def fields(*parts: Part) -> tuple[str, ...]:
    """Names of the fields of these stages; a name stands for itself."""
    return tuple(name for part in parts for name in ([part] if isinstance(part, str) else part.model_fields))


def is_neutral(name: str) -> bool:
    """True for a field that changes no result: speed, places, which of several parts are run."""
    return NEUTRAL in RunConfig.model_fields[name].metadata


def recipe_of(model: str) -> str:
    """The profile for a model: ``standin`` for one that its config.json marks so, else ``medgemma-4b``."""
    return "standin" if is_standin(model) else "medgemma-4b"


def profile_settings(profile: str) -> dict[str, Any]:
    """The settings of a profile, layers and all; ConfigError names file and key of one that there is not."""
    values = {}
    for layer in profile.split("+"):
        values |= (own := load_profile(layer))
        if unknown := [str(key) for key in own if key not in RunConfig.model_fields]:
            known = ", ".join(RunConfig.model_fields)
            raise ConfigError(f"profiles/{layer}.yaml: {', '.join(unknown)} not known; settings: {known}")
    return values


def resolve(profile: str | None = "standin", **overrides: Any) -> RunConfig:
    """Defaults, then the profile, then every override that is not None.

    Examples
    --------
    >>> resolve("standin", lr=1e-3, epochs=None).lr
    0.001
    """
    if profile == "standin":
        model = str(overrides.get("model") or STANDIN)
        profile = recipe_of(model)
        if profile != "standin":
            print(f"{model} is no stand-in by its config.json: recipe of the profile {profile}", file=sys.stderr)
    values = profile_settings(profile) if profile else {}
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise ConfigError("bad configuration: " + "; ".join(map(_told, error.errors()))) from None


def _told(error: Any) -> str:
    """What is wrong with a setting; of an address, which may hold a password, not what was given."""
    name = ".".join(map(str, error["loc"]))
    return f"{name}: {error['msg']}" + ("" if name == "api_base_url" else f" (got {error['input']!r})")
