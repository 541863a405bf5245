"""Learning from feedback: PPO, GRPO and DPO over one interface, on the same cases, seeds and budget.

The policy's answer is one short verdict, so the problem is a contextual bandit: a case comes, a verdict
is given, a reward follows, and the next case does not depend on it. The reward is the reward model's
opinion of the verdict, weighted by the severity that the raters saw, so a missed critical error costs most.

Beside the rated cases, pairs of the supervised training can be visited again, so that they are not unlearned
(Ouyang et al. 2022, arXiv:2203.02155, mix in pretraining for the same reason); their verdicts are known, and
paid for without asking the reward model. On the stand-in it cost more than it gave (see the README), so
``rl_rehearsal_pairs`` is 0 unless told otherwise.

Every method continues the supervised adapter and leaves an adapter of the same kind behind. A method is a
module with one function ``improve(task)``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from transformers import set_seed

from medlib import data, evaluation, feedback, launch, models, provenance, reward, training, workflow
from medlib.config import ConfigError, RunConfig, adapter_dir, path
from medlib.data import Suite
from medlib.schema import VERDICTS

METHODS = {"ppo": "PPO", "grpo": "GRPO", "dpo": "DPO"}
#: What a wrong verdict costs and a right one earns, by the severity that the raters saw.
SEVERITY_WEIGHT = {"none": 1.0, "moderate": 1.0, "high": 2.0, "critical": 4.0}
#: How often a run is watched while it learns.
MEASUREMENTS = 5


@dataclass(frozen=True)
class Task:
    """What every method is given.

    Attributes
    ----------
    model : PeftModel; its adapter "default" is trainable and starts as the supervised one. Whoever adds
        a reference copy of it under another name removes it again.
    suite : Suite of the rated and the rehearsed cases
    preferences : DataFrame, a row a case of the suite: ``chosen`` and ``rejected`` verdict, ``severity``
    rewards : float array (cases, 2), of the verdicts CORRECT and ERROR
    weights : float array (cases,), by severity
    folder : where checkpoints may be kept
    watch : call it with (update, learning figures by name) after every update; a true answer means stop
    """

    config: RunConfig
    seed: int
    model: PeftModel
    processor: object
    suite: Suite
    preferences: pd.DataFrame
    rewards: np.ndarray
    weights: np.ndarray
    folder: Path
    watch: Watch

    def visits(self) -> list[np.ndarray]:
        """Row numbers of the cases of each update: the same for every method with the same seed."""
        return visits(len(self.suite), self.config.rl_epochs, self.config.rl_batch, self.seed)


def visits(cases: int, epochs: float, batch: int, seed: int) -> list[np.ndarray]:
    """Batches of row numbers; every case once in each epoch, none twice in an update.

    >>> [len(b) for b in visits(10, 1.5, 4, seed=0)]
    [4, 4, 4]
    """
    rng = np.random.default_rng([seed, cases])
    batch = min(batch, cases)
    batches = []
    while len(batches) < round(epochs * cases / batch):
        order = rng.permutation(cases)
        batches += [order[start : start + batch] for start in range(0, cases - batch + 1, batch)]
    return batches[: round(epochs * cases / batch)]


class Watch:
    """Looks at a run from outside while it learns, on validation cases that no method trains on.

    A reward can be earned in ways that nobody meant. So beside the reward stand figures that it does
    not see: right verdicts, answers that parse, their length, and the share of the more frequent verdict.
    """

    def __init__(self, task_model, processor, probe: Suite, rewards: np.ndarray, config: RunConfig,
                 updates: int) -> None:
        self.model, self.processor, self.probe, self.rewards = task_model, processor, probe, rewards
        self.limit, self.updates = config.rl_kl_limit, updates
        self.every = max(1, updates // MEASUREMENTS)
        self.start, self.history = None, []
        self.measure(0)

    def __call__(self, update: int, **figures: float) -> bool:
        """Keep the figures of an update, measure now and then; true if the run has gone too far."""
        self.history.append({"update": update, **{name: float(value) for name, value in figures.items()}})
        if update % self.every == 0 or update == self.updates:
            return self.measure(update) > self.limit
        return False

    def measure(self, update: int) -> float:
        """Add a measurement to the history; returns the KL divergence from the start in nats."""
        training_mode = self.model.training
        self.model.eval()
        p = evaluation.p_correct(self.model, self.processor, self.probe).clip(1e-6, 1 - 1e-6)
        spoken = evaluation.free_answers(self.model, self.processor, self.probe)
        self.model.train(training_mode)
        self.start = p if self.start is None else self.start
        said, gold = p >= 0.5, np.array([s.verdict == "CORRECT" for s in self.probe.scenarios])
        measured = {
            "kl": kl(p, self.start), "reward": float((self.rewards * np.stack([p, 1 - p], 1)).sum(1).mean()),
            "accuracy": float((said == gold).mean()), "parsed": float(spoken["parsed"].notna().mean()),
            "length": float(spoken["generated"].str.len().mean()),
            "same_answer": float(max(said.mean(), 1 - said.mean())),
        }
        self.history.append({"update": update, **{f"probe_{name}": value for name, value in measured.items()}})
        return measured["kl"]


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL divergence of verdicts with P(CORRECT) = ``p`` from those with ``q``, in nats.

    >>> kl(np.array([0.5]), np.array([0.5]))
    0.0
    """
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


def rewards(preferred: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Reward of the verdicts CORRECT and ERROR, float array (n, 2), in [-weight, weight].

    Parameters
    ----------
    preferred : probability that CORRECT is the better verdict, by the reward model
    weights : by severity
    """
    signed = weights * (2 * preferred - 1)
    return np.stack([signed, -signed], axis=1)


# --- runs -------------------------------------------------------------------------------------------


def folder_of(config: RunConfig, method: str, seed: int | None = None) -> Path:
    """Where a method's run keeps its adapter; the first seed unless told otherwise."""
    return path(config.run_dir) / "rl" / f"{method}-{config.seed if seed is None else seed}"


def seeds(config: RunConfig) -> range:
    """Seeds of the runs of each method."""
    return range(config.seed, config.seed + config.rl_seeds)


def improve(config: RunConfig) -> pd.DataFrame:
    """Run every method with every seed; a finished run is kept, an interrupted one goes on.

    Returns
    -------
    DataFrame of `history`.
    """
    if unknown := set(config.rl_methods) - set(METHODS):
        raise ConfigError(f"rl_methods: {', '.join(sorted(unknown))} not known; methods: {', '.join(METHODS)}")
    made_of = fingerprint(config)
    missing = [(m, s) for m in config.rl_methods for s in seeds(config) if _kept(config, m, s) != made_of[m]]
    if missing:
        processor, base = models.load_for(config)
        suite, preferences, judged = practice(config)
        probe = data.probe(config)
        at_stake = severity_weights(s.severity for s in probe.scenarios)
        probe_rewards = rewards(reward.preferred(config, probe), at_stake)
        weights = severity_weights(preferences["severity"])
    for method, seed in missing:
        launch.say(f"{METHODS[method]}, seed {seed}")
        set_seed(seed)
        model = PeftModel.from_pretrained(base, adapter_dir(config), is_trainable=True)
        updates = len(visits(len(suite), config.rl_epochs, config.rl_batch, seed))
        watch = Watch(model, processor, probe, probe_rewards, config, updates)
        folder = folder_of(config, method, seed)
        folder.mkdir(parents=True, exist_ok=True)
        task = Task(config, seed, model, processor, suite, preferences, rewards(judged, weights), weights, folder,
                    watch)
        started = time.time()
        try:
            import_module(f"medlib.rl.{method}").improve(task)
            _save(task, method, made_of[method], time.time() - started)
        finally:
            base = model.unload()
    return history(config)


def practice(config: RunConfig) -> tuple[Suite, pd.DataFrame, np.ndarray]:
    """What is visited: rated cases and rehearsed ones.

    Returns
    -------
    suite : Suite
    preferences : DataFrame, a row a case: ``chosen``, ``rejected``, ``severity``, ``rehearsed``
    preferred : float array (cases,), probability that CORRECT is the better verdict: the reward model's
        opinion of a rated case, 0 or 1 of a rehearsed one
    """
    rated, preferences = feedback.training_side(config)
    again = rehearsed(data.suite(config, "train"), config.rl_rehearsal_pairs, config.seed)
    known = pd.DataFrame({"chosen": [s.verdict for s in again.scenarios],
                          "rejected": [VERDICTS[s.verdict == VERDICTS[0]] for s in again.scenarios],
                          "severity": [s.severity for s in again.scenarios]})
    columns = ["chosen", "rejected", "severity"]
    table = pd.concat([preferences[columns].assign(rehearsed=False), known.assign(rehearsed=True)])
    preferred = np.concatenate([reward.preferred(config, rated), (known["chosen"] == VERDICTS[0]).to_numpy(float)])
    return data.together("practice", [rated, again]), table.reset_index(drop=True), preferred


def rehearsed(train: Suite, pairs: int, seed: int) -> Suite:
    """Whole counterfactual pairs of the training suite, drawn at random."""
    names = sorted({s.factors["pair"] for s in train.scenarios})
    drawn = set(np.random.default_rng([seed, len(names)]).permutation(names)[:pairs])
    return train.rows(i for i, s in enumerate(train.scenarios) if s.factors["pair"] in drawn)


def severity_weights(severities) -> np.ndarray:
    """Weight of each case, float array (n,)."""
    return np.array([SEVERITY_WEIGHT[severity] for severity in severities])


FIELDS = ("rl_rehearsal_pairs", "rl_epochs", "rl_batch", "rl_samples", "rl_beta", "rl_kl_limit")


def fingerprint(config: RunConfig) -> dict[str, str]:
    """Names what a method's runs are made of: supervised adapter, feedback, reward model, settings."""
    shared = [_supervised(config), models.weights_hash(config.model), reward.fingerprint(config),
              [getattr(config, name) for name in FIELDS], SEVERITY_WEIGHT]
    return {method: provenance.digest([*shared, method, getattr(config, f"{method}_lr")]) for method in METHODS}


def _kept(config: RunConfig, method: str, seed: int) -> str | None:
    return metadata(config, method, seed).get("fingerprint")


def metadata(config: RunConfig, method: str, seed: int) -> dict:
    """What a finished run wrote about itself; empty if it has not finished."""
    file = folder_of(config, method, seed) / "adapter" / "training_metadata.json"
    complete = file.is_file() and (file.parent / "adapter_model.safetensors").is_file()
    return json.loads(file.read_text()) if complete else {}


def finished(config: RunConfig, method: str, seed: int) -> Path:
    """The adapter of a finished run; ModelError if there is none that went on from this supervised adapter."""
    where = f"{config.run_dir}/rl: {METHODS[method]}, seed {seed}"
    known = metadata(config, method, seed)
    if not known:
        raise models.ModelError(f"{where}: no adapter; run 10_rl first (`python -m medlib rl`)")
    if known["supervised"] != _supervised(config):
        raise models.ModelError(f"{where}: went on from another supervised adapter; run 10_rl again")
    return folder_of(config, method, seed) / "adapter"


def _supervised(config: RunConfig) -> str:
    """SHA-256 of the adapter that every run starts from."""
    return models.file_hash(adapter_dir(config) / "adapter_model.safetensors")


def _save(task: Task, method: str, made_of: str, seconds: float) -> None:
    """The adapter, by the same contract as a supervised one."""
    out, model = task.folder / "adapter", task.model
    model.peft_config["default"].base_model_name_or_path = task.config.model  # not this machine's path
    model.save_pretrained(out, selected_adapters=["default"], save_embedding_layers=False)
    task.processor.save_pretrained(out)
    trainable, total, share = training.trainable_share(model)
    visited = sum(map(len, task.visits()))
    written = {
        "base_model": task.config.model, "method": method, "seed": task.seed, "fingerprint": made_of,
        "supervised": _supervised(task.config),
        "trainable_parameters": trainable, "total_parameters": total, "trainable_percent": round(share, 4),
        "cases": len(task.suite), "rehearsed": int(task.preferences["rehearsed"].sum()),
        "visits": visited, "samples_per_second": round(visited / seconds, 2),
        "history": task.watch.history, "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(training.peak_memory_mib()), "device": str(next(model.parameters()).device),
        "config": task.config.model_dump(),
    }
    provenance.write_json_atomic(out / "training_metadata.json", written)
    workflow.write_record(task.config, data.prepare(task.config))


def history(config: RunConfig) -> pd.DataFrame:
    """What every finished run logged: ``method``, ``seed``, ``update`` and its figures, ``probe_`` the watched."""
    rows = [
        {"method": method, "seed": seed, **entry}
        for method in config.rl_methods for seed in seeds(config)
        for entry in metadata(config, method, seed).get("history", [])
    ]
    return pd.DataFrame(rows)
