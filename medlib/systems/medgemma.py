"""The model itself, untouched and with an adapter: rows over one loaded base."""

from __future__ import annotations

import contextlib
from pathlib import Path

from medlib.config import ANSWERS, METHODS, ModelError, NotRun, adapter_dir, provenance
from medlib.models import loading, scoring
from medlib.models.prompts import INSTRUCTION
from medlib.systems.registry import System, register
from medlib.systems.session import Session
from medlib.training import adapters


@register("medgemma")
def medgemma(setting: Session) -> System:
    """The untouched base model."""
    return _system(setting, "medgemma", folder=None)


@register("medgemma-lora")
def medgemma_lora(setting: Session) -> System:
    """The base model with this run's adapter (or the one named)."""
    return _system(setting, "medgemma-lora", adapter_dir(setting.config))


def after_feedback(method: str) -> None:
    """Register the row of a method that went on with the adapter; ``medgemma-ppo:2`` is its run of seed 2."""
    name = f"medgemma-{method}"

    @register(name)
    def build(setting: Session) -> System:
        seed = int(setting.variant) if setting.variant else setting.config.seed
        try:
            folder = adapters.rl_adapter(setting.config, method, seed)
        except ModelError as error:
            raise NotRun(str(error)) from error
        return _system(setting, f"{name}:{setting.variant}".rstrip(":"), folder)


for _method in METHODS:
    after_feedback(_method)


def _system(setting: Session, name: str, folder: Path | None) -> System:
    try:
        adapter = loading.file_hash(folder / "adapter_model.safetensors") if folder else ""
    except ModelError as error:
        raise NotRun(str(error)) from error

    def asked(question):
        def ask(suite):
            with _model(setting, folder) as model:
                return question(model, setting.base[0], suite, setting.config.eval_batch_size)

        return ask

    return System(name, revision(setting, adapter), asked(scoring.p_correct),
                  speak=asked(scoring.free_answers))


def revision(setting: Session, adapter: str = "") -> str:
    """SHA-256 over weights, adapter, precision, prompt and answers."""
    config = setting.config
    dtype = loading.pick_dtype(loading.pick_device(), config.dtype)
    made_of = [loading.weights_hash(config.model), adapter, str(dtype),
               config.quantization or config.use_8bit, INSTRUCTION, ANSWERS]
    return provenance.digest(made_of)


@contextlib.contextmanager
def _model(setting: Session, folder: Path | None):
    """The base with one adapter switched on, or none; the base alone while nobody asked for an adapter."""
    if folder == adapter_dir(setting.config):
        yield setting.adapted
    elif folder:
        yield from _another_adapter(setting.adapted, folder)
    elif setting.has_adapter:
        with setting.adapted.disable_adapter():
            yield setting.adapted
    else:
        yield setting.base[1]


def _another_adapter(model, folder: Path):
    """Switch to an adapter beside the run's own, loaded on first use; switch back afterwards."""
    name = folder.parent.name
    if name not in model.peft_config:
        model.load_adapter(folder, adapter_name=name, use_safetensors=True)
    model.set_adapter(name)
    try:
        yield model.eval()
    finally:
        model.set_adapter("default")
