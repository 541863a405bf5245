"""Learning from feedback: PPO, GRPO and DPO over one interface, on the same cases, seeds and budget.

The policy's answer is one short verdict, so the problem is a contextual bandit: a case comes, the policy
gives a verdict and gets a reward, and the next case does not depend on it. The reward is the reward model's
opinion of the verdict, weighted by the raters' severity, so a missed critical error costs most.

Pairs of the supervised training can be rehearsed beside the rated cases, so that they are not unlearned
(Ouyang et al. 2022, arXiv:2203.02155, mix in pretraining for the same reason); their verdicts are known and
rewarded without the reward model. On the stand-in this cost more than it gave (see docs/feedback.md), so
``rl_rehearsal_pairs`` is 0 by default.

Every method starts from the supervised adapter and writes an adapter of the same kind. A method is a module
with one function ``improve(task)``.
"""

from __future__ import annotations

import time
from importlib import import_module

import numpy as np
import pandas as pd
from transformers import set_seed

from medlib.config import METHODS, VERDICTS, ConfigError, RunConfig, adapter_dir, files, jobs, provenance, runs
from medlib.config.settings import RL
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.feedback import reward_model
from medlib.feedback.preferences import training_side
from medlib.feedback.rl.monitor import Monitor
from medlib.feedback.rl.rewards import SEVERITY_WEIGHT, severity_weights, verdict_rewards
from medlib.feedback.rl.task import Task, minibatches
from medlib.models import adapter_files, loading
from medlib.training import adapters, lora, memory, processes, record


def seeds(config: RunConfig) -> range:
    """Seeds of the runs of each method."""
    return range(config.seed, config.seed + config.rl_seeds)


def improve(config: RunConfig) -> pd.DataFrame:
    """Run every method with every seed; a finished run is not repeated, an interrupted one resumes.

    Runs are independent of each other and share `medlib.config.jobs.count` processes.

    Returns
    -------
    DataFrame of `history`.
    """
    if unknown := set(config.rl_methods) - set(METHODS):
        raise ConfigError(f"rl_methods: {', '.join(sorted(unknown))} not known; methods: {', '.join(METHODS)}")
    with runs.alone(config.run_dir):
        _improve_missing(config)
    return history(config)


def _improve_missing(config: RunConfig) -> None:
    current = fingerprint(config)
    missing = [(m, s) for m in config.rl_methods for s in seeds(config) if _stored(config, m, s) != current[m]]
    if missing:
        training_cases(config)  # trains the reward model and keeps its answers, which all runs then read
        reward_model.preferred(config, sources.monitoring(config))
        count = jobs.count(config.processes)
        parts = [[run] for run in missing] if count > 1 else [missing]
        jobs.run(_improve, [(config, part) for part in parts], count, "learning from feedback")


def _improve(config: RunConfig, missing: list[tuple[str, int]]) -> None:
    """These runs (method, seed) one after the other, on one loaded base."""
    current = fingerprint(config)
    processor, base = loading.load_for(config)
    suite, preferences, preferred = training_cases(config)
    monitoring = sources.monitoring(config)
    monitoring_rewards = verdict_rewards(
        reward_model.preferred(config, monitoring), severity_weights(s.severity for s in monitoring.scenarios)
    )
    weights = severity_weights(preferences["severity"])
    for method, seed in missing:
        processes.say(f"{METHODS[method]}, seed {seed}")
        set_seed(seed)
        model = adapter_files.attach(base, adapter_dir(config), trainable=True)
        updates = len(minibatches(len(suite), config.rl_epochs, config.rl_batch, seed))
        monitor = Monitor(model, processor, monitoring, monitoring_rewards, config, updates)
        folder = adapters.rl_folder(config, method, seed)
        folder.mkdir(parents=True, exist_ok=True)
        task = Task(
            config,
            seed,
            model,
            processor,
            suite,
            preferences,
            verdict_rewards(preferred, weights),
            weights,
            folder,
            monitor,
        )
        started = time.time()
        try:
            import_module(f"medlib.feedback.rl.{method}").improve(task)
            _save(task, method, current[method], time.time() - started)
        finally:
            base = model.unload()


def training_cases(config: RunConfig) -> tuple[Suite, pd.DataFrame, np.ndarray]:
    """Training cases of every method: the rated ones and the rehearsed ones.

    Returns
    -------
    suite : Suite
    preferences : DataFrame, one row per case: ``chosen``, ``rejected``, ``severity``, ``rehearsed``
    preferred : float array (cases,), probability that CORRECT is the better verdict: the reward model's
        opinion of a rated case, 0 or 1 of a rehearsed one
    """
    rated, preferences = training_side(config)
    repeated = rehearsed(sources.suite(config, "train"), config.rl_rehearsal_pairs, config.seed)
    known = pd.DataFrame(
        {
            "chosen": [s.verdict for s in repeated.scenarios],
            "rejected": [VERDICTS[s.verdict == VERDICTS[0]] for s in repeated.scenarios],
            "severity": [s.severity for s in repeated.scenarios],
        }
    )
    columns = ["chosen", "rejected", "severity"]
    table = pd.concat([preferences[columns].assign(rehearsed=False), known.assign(rehearsed=True)])
    preferred = np.concatenate(
        [reward_model.preferred(config, rated), (known["chosen"] == VERDICTS[0]).to_numpy(float)]
    )
    return sources.together("training cases", [rated, repeated]), table.reset_index(drop=True), preferred


def rehearsed(train: Suite, pairs: int, seed: int) -> Suite:
    """Whole counterfactual pairs of the training suite, drawn at random."""
    names = sorted({s.factors["pair"] for s in train.scenarios})
    drawn = set(np.random.default_rng([seed, len(names)]).permutation(names)[:pairs])
    return train.rows(i for i, s in enumerate(train.scenarios) if s.factors["pair"] in drawn)


def fingerprint(config: RunConfig) -> dict[str, str]:
    """Hash by method of all that its runs depend on: supervised adapter, feedback, reward model, settings.

    Constants of the method's module count as settings.
    """
    settings = config.of(RL)
    rates = {method: settings.pop(f"{method}_lr") for method in METHODS}
    shared = [
        adapters.supervised_hash(config),
        loading.base_hash(config.model),
        reward_model.fingerprint(config),
        settings,
        SEVERITY_WEIGHT,
    ]
    return {
        method: provenance.digest([*shared, method, rates[method], constants(method)])
        for method in config.rl_methods
    }


def constants(method: str) -> dict[str, float]:
    """Numbers in capitals of a method's module, by name."""
    module = vars(import_module(f"medlib.feedback.rl.{method}"))
    return {name: value for name, value in module.items() if name.isupper() and isinstance(value, (int, float))}


def _stored(config: RunConfig, method: str, seed: int) -> str | None:
    return adapters.rl_metadata(config, method, seed).get("fingerprint")


def _save(task: Task, method: str, fingerprint: str, seconds: float) -> None:
    """Write the adapter as supervised training does."""
    out, model = task.folder / "adapter", task.model
    adapters.save_adapter(model, task.processor, task.config, out, rate=f"{method}_lr")
    trainable, total, share = lora.trainable_share(model)
    visits = sum(map(len, task.minibatches()))
    metadata = {
        **adapters.base(task.config),
        "method": method,
        "seed": task.seed,
        "fingerprint": fingerprint,
        "supervised": adapters.supervised_hash(task.config),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_percent": round(share, 4),
        "cases": len(task.suite),
        "rehearsed": int(task.preferences["rehearsed"].sum()),
        "visits": visits,
        "samples_per_second": round(visits / seconds, 2),
        "history": task.monitor.history,
        "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(memory.peak_memory_mib()),
        "device": str(next(model.parameters()).device),
        "config": task.config.model_dump(),
    }
    files.write_json(out / adapters.METADATA, metadata)
    record.write_record(task.config, sources.prepare(task.config))


def history(config: RunConfig) -> pd.DataFrame:
    """Figures of every finished run by ``method``, ``seed`` and ``update``; ``probe_`` begins the monitor's."""
    rows = [
        {"method": method, "seed": seed, **entry}
        for method in config.rl_methods
        for seed in seeds(config)
        for entry in adapters.rl_metadata(config, method, seed).get("history", [])
    ]
    return pd.DataFrame(rows)
