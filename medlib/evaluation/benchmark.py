"""Every system on every suite: questions are collected, answered (in several processes) and scored."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import (
    ADAPTER,
    BASE,
    METHODS,
    DataError,
    NotRun,
    RunConfig,
    adapter_dir,
    files,
    jobs,
    path,
    provenance,
    runs,
    settings,
)
from medlib.data import core24, ood, sources, variants
from medlib.data.suite import Suite
from medlib.data.variants import ABLATIONS
from medlib.evaluation import compare_methods, measured, summary
from medlib.evaluation.results import Results, run_seed
from medlib.evaluation.summary import FUSED
from medlib.models import adapter_files, loading
from medlib.models.standin import own as standin_own
from medlib.systems import Session, novelty, registry
from medlib.training import adapters, core_folds, record

#: Systems that look, and were fitted to the task: asked about altered and foreign images too.
LOOKING = ("biomedclip-probe", ADAPTER)
#: Systems whose answers take a model long enough to be worth a process of their own.
MODELS = (
    "biomedclip",
    "biomedclip-probe",
    BASE,
    "two-questions",
    ADAPTER,
    *(f"medgemma-{method}" for method in METHODS),
)
#: Systems that do not see what an image shows.
BLIND = ("constant", "heuristics", "keyword-probe", "image-statistics")
#: Systems that can answer before there is an adapter.
WITHOUT_ADAPTER = (*BLIND, "biomedclip", "biomedclip-probe", BASE, "two-questions")
#: Answers that a model gives in about the time in which a process starts and loads it.
MANY = 500
#: Systems that learned nothing from core24, so that all 24 cases are held out for them.
UNTRAINED = ("constant", "heuristics", "biomedclip", BASE, "two-questions")


class Benchmark:
    """One run's predictions, filled suite by suite; a system that cannot run is noted with its reason."""

    def __init__(self, config: RunConfig, systems: tuple[str, ...] | None = None) -> None:
        self.recorded = config
        self.config = config.model_copy(update={"systems": systems}) if systems else config
        standin_own.check_models(config)
        self.suites = sources.prepare(config)
        self.session = Session(config, self.suites)
        self.parts: dict[tuple[str, str, str], pd.DataFrame] = {}
        self.not_run: dict[str, str] = {}
        self.questions: dict[tuple[str, str, str], tuple[str, Suite, bool]] = {}

    def ask(self, names, suite: Suite, label: str, ablation: str = "", free: bool = False) -> None:
        """Put a question to every system about a suite, if it has cases; the table calls it ``label``."""
        for name in names:
            if name in self.config.systems and len(suite) and registry.can_answer(name, suite):
                self.questions.setdefault((name, label, ablation), (name, suite, free and self.config.generate))

    def answer(self) -> None:
        """Have all questions answered, those to models in several processes if there are many."""
        self._answer_side_by_side(jobs.count(self.config.processes))
        for key, (name, suite, free) in self.questions.items():
            if key in self.parts or name in self.not_run:
                continue
            try:
                self.parts[key] = self.session.ask(name, suite, free)
            except NotRun as reason:
                self.not_run[name] = str(reason)

    def _answer_side_by_side(self, processes: int) -> None:
        """Let other processes answer what is not known yet; the answers are then read from disk."""
        if processes == 1:
            return
        waiting = []
        for name, suite, free in self.questions.values():
            if name.partition(":")[0] in MODELS:
                with contextlib.suppress(NotRun):
                    waiting.append((self.session.unanswered(name, suite, free), name, suite, free))
        waiting = [question for question in waiting if question[0]]
        if sum(question[0] for question in waiting) < MANY:
            return
        waiting.sort(key=lambda question: -question[0])  # the longest first, so that all end together
        parts = [(self.config, *question[1:]) for question in waiting]
        jobs.run(_answer, parts, processes, "questions answered")


def _answer(config: RunConfig, name: str, suite: Suite, free: bool) -> None:
    _session(config).ask(name, suite, free)


@functools.lru_cache(maxsize=1)
def _session(config: RunConfig) -> Session:
    """The session of this process, whose models are loaded once for all its jobs."""
    return Session(config, sources.prepare(config))


def without_adapter(config: RunConfig) -> None:
    """Answer and train everything that does not wait for the adapter, so that it can be done beside training."""
    for draw in (sources.feedback, sources.monitoring, sources.tuning, sources.calibration):
        draw(config)
    sources.contradiction(config, "val")
    run = Benchmark(config)
    _ask_everyone(run)
    if ADAPTER in config.systems and _has_folds(run):
        core_folds.core_folds(config, core24_all(run.suites), lambda: run.session.base)
    run.questions = {key: value for key, value in run.questions.items() if value[0] in WITHOUT_ADAPTER}
    run.answer()


def evaluate(config: RunConfig) -> Results:
    """Base and adapter on core24 and on the held-out suite, with ablations and core-only folds.

    Raises
    ------
    ModelError
        If there is no adapter yet.
    """
    with runs.alone(config.run_dir):
        run = Benchmark(config, (BASE, ADAPTER))
        _evaluate(run)
        run.answer()
        return _written(run)


def benchmark(config: RunConfig, systems: tuple[str, ...] | None = None) -> Results:
    """These systems, by default those of ``config.systems``, on all suites."""
    with runs.alone(config.run_dir):
        run = Benchmark(config, systems)
        if ADAPTER in run.config.systems:
            _evaluate(run)
        _ask_everyone(run)
        run.answer()
        _add_novelty(run)
        return _written(run)


def _ask_everyone(run: Benchmark) -> None:
    """Every system of the configuration about every suite."""
    config = run.config
    heldout, everyone = run.suites["test"], config.systems
    run.ask(everyone, heldout, "heldout", free=True)
    run.ask(everyone, run.suites["core_val"], "core24_val", free=True)
    run.ask(UNTRAINED, core24_all(run.suites), "core24_folds", free=True)
    run.ask(everyone, run.suites["val"], "val")
    run.ask(everyone, sources.contradiction(config, "test"), "contradiction")
    run.ask(everyone, sources.paraphrase(config), "paraphrase")
    run.ask(everyone, sources.demographics(config), "demographics")
    run.ask(everyone, sources.patient_pairs(config, "test"), "patients")
    run.ask(everyone, sources.second_renderer(config), "renderer")
    run.ask(everyone, sources.unseen_findings(config), "unseen")
    run.ask(everyone, variants.orders(variants.balanced(heldout, config.corruption_pairs)), "orders")
    for view, suite in variants.corruption_suites(heldout, config.corruption_pairs).items():
        run.ask(LOOKING, suite, view)
    run.ask(LOOKING, ood.out_of_distribution(), "ood")


def after_feedback(config: RunConfig) -> Results:
    """The supervised adapter and every run that learned from feedback, on the suites that compare them."""
    names = compare_methods.run_names(config)
    first = [name for name in names if not run_seed(name)[1]]
    with runs.alone(config.run_dir):
        run = Benchmark(config, (*names, FUSED))
        run.ask([*first, FUSED], sources.calibration(config), "calibration")
        run.ask(names, sources.tuning(config), "tuning")
        run.ask(names, sources.contradiction(config, "val"), "val_contradiction")
        run.ask([*names, FUSED], run.suites["test"], "heldout")
        run.ask([*names, FUSED], sources.contradiction(config, "test"), "contradiction")
        run.answer()
        return _written(run)


def _add_novelty(run: Benchmark) -> None:
    """How unlike the training images each image is, beside the adapter's verdicts."""
    if (ADAPTER, "ood", "") not in run.parts:
        return
    for label in ("val", "heldout", "ood"):
        key = ADAPTER, label, ""
        _, suite, _ = run.questions[key]
        run.parts[key] = run.parts[key].assign(novelty=novelty.ask(run.session, suite))


def _evaluate(run: Benchmark) -> None:
    adapters.supervised_hash(run.config)  # reported before hours of work
    everything = core24_all(run.suites)
    if _has_folds(run):  # first: its adapters go on the bare base
        folds = core_folds.core_folds(run.config, everything, lambda: run.session.base)
        run.parts[ADAPTER, "core24_folds", ""] = folds
    run.ask([BASE, ADAPTER], run.suites["test"], "heldout", free=True)
    run.ask([BASE, ADAPTER], run.suites["core_val"], "core24_val", free=True)
    run.ask([BASE], everything, "core24_folds", free=True)
    for ablation in ABLATIONS if run.config.ablations else ():
        run.ask([ADAPTER], variants.ablate(run.suites["test"], ablation, run.config.seed), "heldout", ablation)


def _has_folds(run: Benchmark) -> bool:
    return run.config.core_folds and len(core24_all(run.suites)) > 0


def core24_all(prepared: dict[str, Suite]) -> Suite:
    """The 24 core cases, both sides of the split; empty where findings are held out, as it is then not all."""
    train, val = prepared["core_train"], prepared["core_val"]
    both = train.scenarios + val.scenarios
    return Suite("core24_all", both if len(both) == core24.CASES else [], val.images_dir)


def _written(run: Benchmark) -> Results:
    """The predictions on disk, with those of earlier calls that rest on the same models and data."""
    folder = path(run.config.run_dir)
    file, stamp, made_of = folder / "predictions.jsonl", folder / "predictions.sha256", _made_of(run)
    same = file.is_file() and stamp.is_file() and stamp.read_text() == made_of
    facts = measured.facts(run.config, run.suites)
    earlier = measured.still_valid(folder, _earlier(file), facts) if same else {}
    results = Results.join(earlier | run.parts)
    if len(results):
        if not same:  # between the two writes no stamp may stand beside predictions that it does not name
            stamp.unlink(missing_ok=True)
        stats.write_predictions(file, results.table)
        files.write_text(stamp, made_of)
    summary.write_metrics(run.config, results, run.not_run, facts)
    record.write_record(run.recorded, run.suites)
    return results


def _earlier(file: Path) -> dict:
    """The parts of the table on disk; none if it was cut off: the answers that made it are still there."""
    try:
        return Results.read(file).parts
    except DataError:
        return {}


def _made_of(run: Benchmark) -> str:
    """SHA-256 over all that a prediction rests on, so that those of another model are never mixed in."""
    config, adapter = run.config, adapter_dir(run.config) / adapter_files.WEIGHTS
    made_of = [
        config.of(settings.Run, settings.Model, settings.Data, settings.Suites, settings.Scoring),
        config.of(settings.Benchmark, settings.Api),
        sources.hashes(run.suites),
        loading.base_hash(config.model),
        loading.weights_hash(config.biomedclip),
        loading.file_hash(adapter) if adapter.is_file() else "",
    ]
    return provenance.digest(made_of)
