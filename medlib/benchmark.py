"""Every system on every suite: what was asked, what was answered, and the tables made of it.

Predictions are tables under ``system/suite`` names. Answers are kept one by one
(`medlib.systems.Setting.ask`), so a second run costs seconds and an interrupted one goes on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from medlib import (
    calibration,
    corruptions,
    data,
    evaluation,
    metrics,
    models,
    novelty,
    provenance,
    risk,
    rl,
    suites,
    workflow,
)
from medlib.config import ROWS, RunConfig, adapter_dir, path
from medlib.data import Suite
from medlib.rl import compare
from medlib.systems import NotRun, Setting
from medlib.workflow import ADAPTER, BASE

BARS = {"accuracy": 0.90, "sensitivity": 0.90, "specificity": 0.95, "spread": 5.0}
FIGURE_NAMES = {"accuracy": "Accuracy", "sensitivity": "Valid treatments recognised",
                "specificity": "Errors caught", "spread": "Spread across modalities"}

#: The ladder that the project climbs; the other rows are references beside it.
RUNGS = ("constant", "heuristics", "biomedclip-probe", ADAPTER)
#: Systems that look, and were fitted to the task: asked about altered and foreign pictures too.
LOOKING = ("biomedclip-probe", ADAPTER)
#: Rows that contain the adapter, so that it need not be above them.
FUSED = "medgemma-lora+biomedclip"
ABOVE = (FUSED, *(f"medgemma-{method}" for method in rl.METHODS))
#: Systems that learned nothing from core24, so that all 24 cases are held out for them.
UNTRAINED = ("constant", "heuristics", "biomedclip", BASE)


class Benchmark:
    """One run's frames, filled suite by suite; a system that cannot be asked is noted with its reason."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.suites = data.prepare(config)
        self.setting = Setting(config, self.suites)
        self.frames: dict[str, pd.DataFrame] = {}
        self.not_run: dict[str, str] = {}

    def ask(self, names, suite: Suite, label: str, ablation: str = "", free: bool = False) -> None:
        """Ask every system; its frame is called ``system/label``, or ``system ablation/label``."""
        for name in names:
            key = f"{name} {ablation}".strip() + f"/{label}"
            if key in self.frames or name in self.not_run or name not in self.config.systems:
                continue
            try:
                self.frames[key] = self.setting.ask(name, suite, free and self.config.generate)
            except NotRun as reason:
                self.not_run[name] = str(reason)


def evaluate(config: RunConfig) -> dict[str, pd.DataFrame]:
    """Base and adapter on core24 and on the held-out suite, with ablations and core-only folds.

    Returns
    -------
    dict of predictions tables by ``system/suite``.

    Raises
    ------
    ModelError
        If there is no adapter yet.
    """
    run = Benchmark(config.model_copy(update={"systems": (BASE, ADAPTER)}))
    _evaluate(run)
    return _written(run)


def benchmark(config: RunConfig) -> dict[str, pd.DataFrame]:
    """All systems of ``config.systems`` on all suites; frames by ``system/suite``."""
    run = Benchmark(config)
    if ADAPTER in config.systems:
        _evaluate(run)
    heldout, everyone = run.suites["test"], config.systems
    run.ask(everyone, heldout, "heldout", free=True)
    run.ask(everyone, run.suites["core_val"], "core24_val", free=True)
    run.ask(UNTRAINED, core24_all(run.suites), "core24_folds", free=True)
    run.ask(everyone, run.suites["val"], "val")
    run.ask(everyone, suites.contradiction("test", config.contradiction_pairs, config.seed), "contradiction")
    run.ask(everyone, suites.paraphrase(heldout, config.seed), "paraphrase")
    for view, suite in suites.corruption_suites(heldout, config.corruption_pairs).items():
        run.ask(LOOKING, suite, view)
    foreign = suites.out_of_distribution()
    run.ask(LOOKING, foreign, "ood")
    _add_novelty(run, foreign)
    return _written(run)


def after_feedback(config: RunConfig) -> dict[str, pd.DataFrame]:
    """The supervised adapter and every run that learned from feedback, on the suites that compare them."""
    names = compare.rows(config)
    run = Benchmark(config.model_copy(update={"systems": (*names, FUSED)}))
    pairs, seed = config.contradiction_pairs, config.seed
    run.ask([*names, FUSED], data.calibration(config), "calibration")
    run.ask(names, suites.contradiction("val", pairs, seed), "val_contradiction")
    run.ask([*names, FUSED], run.suites["test"], "heldout")
    run.ask([*names, FUSED], suites.contradiction("test", pairs, seed), "contradiction")
    return _written(run)


def _add_novelty(run: Benchmark, foreign: Suite) -> None:
    """How unlike the training pictures each picture is, beside the adapter's verdicts."""
    if f"{ADAPTER}/ood" not in run.frames:
        return
    shown = {"val": run.suites["val"], "heldout": run.suites["test"], "ood": foreign}
    for label, suite in shown.items():
        key = f"{ADAPTER}/{label}"
        run.frames[key] = run.frames[key].assign(novelty=novelty.ask(run.setting, suite))


def _evaluate(run: Benchmark) -> None:
    models.file_hash(adapter_dir(run.config) / "adapter_model.safetensors")  # told before hours of work
    everything = core24_all(run.suites)
    if run.config.core_folds:  # first: its adapters go on the bare base
        run.frames[f"{ADAPTER}/core24_folds"] = workflow.core_folds(run.config, *run.setting.base, everything)
    run.ask([BASE, ADAPTER], run.suites["test"], "heldout", free=True)
    run.ask([BASE, ADAPTER], run.suites["core_val"], "core24_val", free=True)
    run.ask([BASE], everything, "core24_folds", free=True)
    for ablation in suites.ABLATIONS if run.config.ablations else ():
        run.ask([ADAPTER], suites.ablate(run.suites["test"], ablation, run.config.seed), "heldout", ablation)


def core24_all(prepared: dict[str, Suite]) -> Suite:
    """The 24 core cases, both sides of the split."""
    train, val = prepared["core_train"], prepared["core_val"]
    return Suite("core24_all", train.scenarios + val.scenarios, val.images_dir)


def _written(run: Benchmark) -> dict[str, pd.DataFrame]:
    """Frames on disk, with those of earlier calls that rest on the same models and data."""
    folder = path(run.config.run_dir)
    file, stamp, made_of = folder / "predictions.jsonl", folder / "predictions.sha256", _made_of(run)
    same = file.is_file() and stamp.is_file() and stamp.read_text() == made_of
    frames = (evaluation.read_predictions(file) if same else {}) | run.frames
    if frames:
        evaluation.write_predictions(file, frames)
        stamp.write_text(made_of)
    write_metrics(run.config, frames, run.not_run)
    workflow.write_record(run.config, run.suites)
    return frames


def _made_of(run: Benchmark) -> str:
    """SHA-256 over all that a prediction rests on, so that frames of another model are never mixed in."""
    config, adapter = run.config, adapter_dir(run.config) / "adapter_model.safetensors"
    fields = ("seed", "images_dir", "dtype", "quantization", "use_8bit", "api_base_url", "contradiction_pairs",
              "corruption_pairs")
    made_of = [[getattr(config, name) for name in fields], data.hashes(run.suites),
               models.weights_hash(config.model), models.weights_hash(config.biomedclip),
               models.file_hash(adapter) if adapter.is_file() else ""]
    return provenance.digest(made_of)


# --- tables ---------------------------------------------------------------------------------------


def systems_on(frames: dict[str, pd.DataFrame], suite: str) -> dict[str, pd.DataFrame]:
    """Frames of one suite by system, lowest rung first; ablations left out."""
    found = {key.rsplit("/", 1)[0]: frame for key, frame in frames.items()
             if key.rsplit("/", 1)[1] == suite and " " not in key and not compare.is_repeat(key.rsplit("/", 1)[0])}
    order = [name for name in ROWS if name in found]
    return {name: found[name] for name in order + [name for name in found if name not in order]}


def scores_on(frames: dict[str, pd.DataFrame], suite: str = "heldout") -> dict[str, dict]:
    """Scores of every system on one suite, lowest rung first."""
    return {name: metrics.score(frame) for name, frame in systems_on(frames, suite).items()}


def bars(score: dict) -> pd.DataFrame:
    """The target of each figure beside what was measured, with a plain yes or no."""
    rows = []
    for name, bar in BARS.items():
        if name == "spread":
            value, met, shown, target = score[name], score[name] < bar, "{:.1f} points", f"< {bar:.0f} points"
        else:
            value = score[name]["value"]
            met, shown, target = value >= bar, "{:.1%}", f"≥ {bar:.0%}"
        rows.append({"Figure": FIGURE_NAMES[name], "Target": target, "Measured": shown.format(value),
                     "Met": "yes" if met else "no"})
    return pd.DataFrame(rows)


def climb(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Each rung of the ladder against the one below: is it higher, and is that more than chance?"""
    present = [name for name in RUNGS if f"{name}/heldout" in frames]
    steps = {
        f"{upper} over {lower}": metrics.compare(frames[f"{upper}/heldout"], frames[f"{lower}/heldout"])
        for lower, upper in zip(present, present[1:])
    }
    if not steps:
        return pd.DataFrame(columns=["step", "difference", "low", "high", "p", "p_holm"])
    adjusted = metrics.holm({name: step["p"] for name, step in steps.items()})
    return pd.DataFrame([{"step": name, **step, "p_holm": adjusted[name]} for name, step in steps.items()])


def temperatures(frames: dict[str, pd.DataFrame]) -> dict[str, float]:
    """One temperature a system, fitted on the validation suite."""
    return {name: calibration.fit_temperature(f["p_correct"], f["verdict"] == "CORRECT")
            for name, f in systems_on(frames, "val").items() if is_graded(f)}


def is_graded(frame: pd.DataFrame) -> bool:
    """False for a system that only ever says 0 or 1, which no temperature can change."""
    return not frame["p_correct"].isin([0.0, 0.5, 1.0]).all()


def calibration_table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """ECE and Brier score on the held-out suite, before and after the validation suite's temperature."""
    rows = []
    for name, temperature in temperatures(frames).items():
        before = frames[f"{name}/heldout"]
        after = calibration.calibrated(before, temperature)
        row = {"system": name, "temperature": temperature}
        for moment, frame in {"before": before, "after": after}.items():
            score = metrics.score(frame)
            row |= {f"ece_{moment}": score["ece"], f"brier_{moment}": score["brier"]}
        rows.append(row)
    return pd.DataFrame(rows)


def latency(frames: dict[str, pd.DataFrame], suite: str = "heldout") -> pd.DataFrame:
    """Accuracy, seconds a case and US dollars per 1,000 cases (nan without a price) by system."""
    rows = []
    for name, frame in systems_on(frames, suite).items():
        accuracy = metrics.score(frame)["accuracy"]
        usd = 1000 * frame["usd"].mean() if "usd" in frame else float("nan")
        rate = {"accuracy": accuracy["value"], **{k: accuracy[k] for k in ("low", "high", "n")}}
        rows.append({"system": name, **rate, "seconds": frame["seconds"].mean(), "usd_per_1000": usd})
    return pd.DataFrame(rows)


def corruption_table(frames: dict[str, pd.DataFrame], system: str = ADAPTER) -> pd.DataFrame:
    """Accuracy under every kind and severity of picture damage; severity 0 is the clean picture."""
    rows = []
    for kind, severity, key in corruption_keys(frames, system):
        rate = metrics.score(frames[key])["accuracy"]
        rows.append({"kind": kind, "severity": severity, "accuracy": rate["value"], "low": rate["low"],
                     "high": rate["high"], "n": rate["n"]})
    return pd.DataFrame(rows)


def corruption_keys(frames: dict[str, pd.DataFrame], system: str) -> list[tuple[str, int, str]]:
    """(kind, severity, name of the frame) of every damaged view that the system was asked about."""
    views = [(*view.split("-"), f"{system}/{view}") for view in corruptions.views()]
    return [(kind, int(severity), key) for kind, severity, key in views if key in frames]


def pairs_right(frame: pd.DataFrame) -> dict:
    """Counterfactual pairs with both members right, as a proportion."""
    return metrics.proportion(*evaluation.pair_accuracy(frame))


def claims(frames: dict[str, pd.DataFrame]) -> list[dict]:
    """What the benchmark set out to show about the adapter: claim, bar, measured, met."""
    steps, found = climb(frames), []
    if len(steps):
        shown = [f"{100 * step.difference:+.1f} [{100 * step.low:+.1f}, {100 * step.high:+.1f}]"
                 for step in steps.itertuples()]
        found.append({
            "claim": "each rung is above the one below: " + ", ".join(steps["step"]), "bar": "Holm p < 0.01 each",
            "measured": ", ".join(shown) + " points",
            "met": bool(((steps["difference"] > 0) & (steps["p_holm"] < 0.01)).all())})
    # by scenario and by whole pair: the claim must hold both ways
    local = {name: max(t["p_holm"], t["p_cluster_holm"]) if t["difference"] > 0 else 1.0
             for name, t in adapter_tests(frames).items() if name not in ABOVE and ":" not in name}
    if local:
        worst = max(local, key=local.get)
        found.append({"claim": "the adapter is above every local row that does not contain it",
                      "bar": "Holm p < 0.01", "measured": f"p = {local[worst]:.2g} at worst ({worst})",
                      "met": local[worst] < 0.01})
    pairs = pairs_right(frames[f"{ADAPTER}/heldout"])
    if pairs["n"]:
        found.append({"claim": "both members of a counterfactual pair are right", "bar": "≥ 85 %",
                      "measured": f"{pairs['value']:.1%} [{pairs['low']:.1%}, {pairs['high']:.1%}]",
                      "met": pairs["value"] >= 0.85})
    if f"{ADAPTER}/val" in frames:
        ece = calibration_table(frames).set_index("system").loc[ADAPTER, "ece_after"]
        found.append({"claim": "calibrated after a temperature fitted on validation", "bar": "ECE ≤ 0.05",
                      "measured": f"{ece:.3f}", "met": ece <= 0.05})
    return found


def claims_table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`claims` in words."""
    return pd.DataFrame([{"Claim": c["claim"], "Bar": c["bar"], "Measured": c["measured"],
                          "Met": "yes" if c["met"] else "no"} for c in claims(frames)])


def harder_suites(config: RunConfig, frames: dict[str, pd.DataFrame]) -> list[dict]:
    """Accuracy of every system on the plain and on the harder suites, and its pairs right as a whole."""
    names, rows = figure_names(config), []
    for name, heldout in systems_on(frames, "heldout").items():
        rates = {"Held out": metrics.score(heldout)["accuracy"], "Whole pairs": pairs_right(heldout)}
        for title, suite in (("Other words", "paraphrase"), ("Note contradicts picture", "contradiction")):
            if f"{name}/{suite}" in frames:
                rates[title] = metrics.score(frames[f"{name}/{suite}"])["accuracy"]
        shown = {title: f"{100 * r['value']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
                 for title, r in rates.items()}
        rows.append({"System": names.get(name, name)} | shown)
    return rows


def abstention_rules(frames: dict[str, pd.DataFrame], coverage: float = 0.95) -> list[dict]:
    """Two ways of knowing a foreign picture: an unsure verdict, and features unlike the training pictures'.

    Both thresholds answer ``coverage`` of the validation suite.

    Returns
    -------
    list of dict: ``rule``; ``foreign`` and ``heldout``: share refused, see `metrics.proportion`;
    ``auroc``: foreign against held-out pictures.
    """
    val, heldout, foreign = (frames[f"{ADAPTER}/{suite}"] for suite in ("val", "heldout", "ood"))
    doubt = {
        "an unsure verdict": lambda f: -calibration.certainty(f["p_correct"]),
        "an unknown kind of picture": lambda f: f["novelty"].to_numpy(),
    }
    rules = []
    for rule, measure in doubt.items():
        if rule != "an unsure verdict" and "novelty" not in foreign:
            continue
        limit = novelty.threshold(measure(val), coverage)
        refused = {name: metrics.proportion(int((measure(f) > limit).sum()), len(f))
                   for name, f in (("foreign", foreign), ("heldout", heldout))}
        is_foreign = np.repeat([1, 0], [len(foreign), len(heldout)])
        auroc = roc_auc_score(is_foreign, np.concatenate([measure(foreign), measure(heldout)]))
        rules.append({"rule": rule, **refused, "auroc": float(auroc)})
    return rules


# --- what a run leaves behind -----------------------------------------------------------------------


def write_metrics(config: RunConfig, frames: dict[str, pd.DataFrame], not_run: dict[str, str] | None = None):
    """``metrics.json``: scores of every system and suite, paired tests, calibration, tables."""
    # there is no verdict on a foreign picture
    scores = {key: metrics.score(frame) for key, frame in frames.items() if not key.endswith("/ood")}
    main = {name: scores[f"{name}/heldout"] for name in systems_on(frames, "heldout")}
    record = {
        "headline": headline(config, main), "names": figure_names(config), "systems": main,
        "scores": scores,
        "tests": {}, "tables": {}, "not_run": not_run or {},
    }
    if len(main) > 1:
        every_pair = metrics.compare_all(systems_on(frames, "heldout"), cluster="pair")
        record["comparisons"] = every_pair.to_dict(orient="records")
    if ADAPTER in main:
        record["tests"] = adapter_tests(frames)
        record["pairs"] = pairs_right(frames[f"{ADAPTER}/heldout"])
        record["tables"] = {
            "Targets on the held-out suite": bars(main[ADAPTER]).to_dict(orient="records"),
            "What the benchmark set out to show": claims_table(frames).to_dict(orient="records"),
        }
        if f"{ADAPTER}/contradiction" in frames:
            record["tables"]["Harder suites"] = harder_suites(config, frames)
    if best := compare.recommended(frames):
        record["recommendation"] = compare.recommendation(frames, record["names"])
        for name in dict.fromkeys([fewest_false_alarms(config, frames), best]):
            strict = risk.apply(frames[f"{name}/heldout"], strict_choices(config, frames)[name].threshold)
            title = f"Last rung: {record['names'][name]}, threshold without a critical miss on calibration cases"
            record["tables"][title] = risk.bars(strict).to_dict(orient="records")
    if f"{ADAPTER}/val" in frames:
        record["calibration"] = calibration_table(frames).to_dict(orient="records")
    return provenance.write_json_atomic(path(config.run_dir) / "metrics.json", record)


def strict_choices(config: RunConfig, frames: dict[str, pd.DataFrame]) -> dict[str, risk.Choice]:
    """The threshold without a critical miss on calibration cases, by system; promises hold for all at once."""
    asked = systems_on(frames, "calibration")
    return {name: risk.choose(frame, None, config.risk_confidence, len(asked)) for name, frame in asked.items()}


def fewest_false_alarms(config: RunConfig, frames: dict[str, pd.DataFrame]) -> str:
    """The system that pays least for missing no critical error, by calibration cases alone."""
    found = strict_choices(config, frames)
    return min(found, key=lambda name: found[name].false_alarms["value"])


def adapter_tests(frames: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """The adapter against every other system on the held-out suite, Holm-corrected over them."""
    others = {name: f for name, f in systems_on(frames, "heldout").items() if name != ADAPTER}
    reference = frames[f"{ADAPTER}/heldout"]
    tests = {name: metrics.compare(reference, frame, cluster="pair") for name, frame in others.items()}
    for p in ("p", "p_cluster"):
        adjusted = metrics.holm({name: test[p] for name, test in tests.items()})
        tests = {name: test | {f"{p}_holm": adjusted[name]} for name, test in tests.items()}
    return tests


def headline(config: RunConfig, main: dict[str, dict]) -> str:
    """One sentence that a reader takes away."""
    if not {BASE, ADAPTER} <= set(main):
        return ""
    before, after = main[BASE]["accuracy"], main[ADAPTER]["accuracy"]
    return (
        f"LoRA took {workflow.model_label(config)} from {before['value']:.1%} to {after['value']:.1%} "
        f"accuracy [95 % interval {after['low']:.1%} to {after['high']:.1%}] on {after['n']:,} held-out "
        "scenarios."
    )


def figure_names(config: RunConfig) -> dict[str, str]:
    """How figures and tables name the rows; a stand-in is never called by the real model's name alone."""
    def label(model: str) -> str:
        return Path(model).name + (" (stand-in)" if models.is_standin(model) else "")

    model, dual = label(config.model), label(config.biomedclip)
    return {
        "constant": "Always CORRECT", "heuristics": "Hand-written rules", "keyword-probe": "Bag of words",
        "biomedclip": f"{dual}, zero-shot", "biomedclip-probe": f"{dual}, linear probe",
        BASE: f"{model}, untouched", ADAPTER: f"{model} + LoRA",
        FUSED: f"{Path(config.model).name} + LoRA + {dual}",
        **{f"medgemma-{method}": f"{model} + LoRA + {name}" for method, name in rl.METHODS.items()},
    }
