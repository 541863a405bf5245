"""The model itself, untouched and with an adapter: rows over one loaded base."""

from __future__ import annotations

import contextlib
from pathlib import Path

from medlib.config import METHODS, ModelError, NotRun, adapter_dir, provenance
from medlib.models import adapter_files, loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.systems.registry import System, register
from medlib.systems.session import Session
from medlib.training import adapters


@register("medgemma")
def medgemma(session: Session) -> System:
    """The untouched base model."""
    return _system(session, "medgemma", folder=None)


@register("medgemma-lora")
def medgemma_lora(session: Session) -> System:
    """The base model with this run's adapter (or the one named)."""
    return _system(session, "medgemma-lora", adapter_dir(session.config))


def after_feedback(method: str) -> None:
    """Register the row of a method that went on with the adapter; ``medgemma-ppo:2`` is its run of seed 2."""
    name = f"medgemma-{method}"

    @register(name)
    def build(session: Session) -> System:
        seed = int(session.variant) if session.variant else session.config.seed
        try:
            folder = adapters.rl_adapter(session.config, method, seed)
        except ModelError as error:
            raise NotRun(str(error)) from error
        return _system(session, f"{name}:{session.variant}".rstrip(":"), folder)


for _method in METHODS:
    after_feedback(_method)


def _system(session: Session, name: str, folder: Path | None) -> System:
    try:
        adapter = loading.file_hash(folder / adapter_files.WEIGHTS) if folder else ""
    except ModelError as error:
        raise NotRun(str(error)) from error

    def bound(question):
        def ask(suite):
            with using(session, folder) as model:
                return question(model, suite, session.config.eval_batch_size)

        return ask

    return System(name, revision(session, adapter), bound(scoring.read), speak=bound(scoring.decode))


def revision(session: Session, adapter: str = "") -> str:
    """SHA-256 over weights, adapter, precision, prompt, answers and the way of reading."""
    config = session.config
    dtype = loading.pick_dtype(loading.pick_device(), config.dtype)
    made_of = [
        loading.base_hash(config.model),
        adapter,
        str(dtype),
        config.quantization or config.use_8bit,
        scoring.VERSION,
    ]
    return provenance.digest(made_of)


@contextlib.contextmanager
def using(session: Session, folder: Path | None):
    """The base with one adapter switched on, or none; the base alone while nobody asked for an adapter."""
    if folder == adapter_dir(session.config):
        yield session.adapted
    elif folder:
        yield from _another_adapter(session.adapted, folder)
    elif session.has_adapter:
        with session.adapted.network.disable_adapter():
            yield session.adapted
    else:
        yield session.base


def _another_adapter(model: VerdictModel, folder: Path):
    """Switch to an adapter beside the run's own, loaded on first use; switch back afterwards."""
    name, network = folder.parent.name, model.network
    if name not in network.peft_config:
        adapter_files.attach(network, folder, name)
    network.set_adapter(name)
    network.eval()
    try:
        yield model
    finally:
        network.set_adapter("default")
