"""The model itself, untouched and with the adapter: two rows over one loaded base."""

from __future__ import annotations

import contextlib

from medlib import evaluation, models, prompts, provenance
from medlib.config import adapter_dir
from medlib.schema import ANSWERS
from medlib.systems import NotRun, Setting, System, register


@register("medgemma")
def medgemma(setting: Setting) -> System:
    """The untouched base model."""
    return _system(setting, "medgemma", adapter="")


@register("medgemma-lora")
def medgemma_lora(setting: Setting) -> System:
    """The base model with this run's adapter (or the one named)."""
    try:
        adapter = models.file_hash(adapter_dir(setting.config) / "adapter_model.safetensors")
    except models.ModelError as error:
        raise NotRun(str(error)) from error
    return _system(setting, "medgemma-lora", adapter)


def _system(setting: Setting, name: str, adapter: str) -> System:
    def asked(question):
        def ask(suite):
            with _model(setting, bool(adapter)) as model:
                return question(model, setting.base[0], suite, setting.config.eval_batch_size)

        return ask

    return System(name, revision(setting, adapter), asked(evaluation.p_correct),
                  speak=asked(evaluation.free_answers))


def revision(setting: Setting, adapter: str = "") -> str:
    """SHA-256 over weights, adapter, precision, prompt and answers."""
    config = setting.config
    dtype = models.pick_dtype(models.pick_device(), config.dtype)
    made_of = [models.weights_hash(config.model), adapter, str(dtype),
               config.quantization or config.use_8bit, prompts.INSTRUCTION, ANSWERS]
    return provenance.digest(made_of)


@contextlib.contextmanager
def _model(setting: Setting, adapted: bool):
    """The base with its adapter switched on or off; the base alone while nobody asked for the adapter."""
    if adapted:
        yield setting.adapted
    elif setting.has_adapter:
        with setting.adapted.disable_adapter():
            yield setting.adapted
    else:
        yield setting.base[1]
