"""Tables and claims made of predictions, and ``metrics.json``."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from medlib import stats
from medlib.config import ADAPTER, BASE, METHODS, RunConfig, path, provenance
from medlib.data import corruptions
from medlib.evaluation import compare_methods
from medlib.evaluation.results import Results
from medlib.models import loading
from medlib.stats import risk
from medlib.stats.risk import Choice
from medlib.stats.text import difference_text, number, p_text, percent, points, rate_text, targets_table
from medlib.systems import novelty

TARGETS = {"accuracy": 0.90, "sensitivity": 0.90, "specificity": 0.95, "spread": 5.0}
FIGURE_NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
    "spread": "Spread across modalities",
}

#: The ladder that the project climbs; the other systems are references beside it.
RUNGS = ("constant", "heuristics", "biomedclip-probe", ADAPTER)
#: Systems that contain the adapter, so that it need not be above them.
FUSED = "medgemma-lora+biomedclip"
ABOVE = (FUSED, *(f"medgemma-{method}" for method in METHODS))
#: Of one run's results; they are asked for by metrics.json, tables, figures and sentences alike.
once = lru_cache(maxsize=8)


# --- tables ---------------------------------------------------------------------------------------


def targets(score: dict) -> pd.DataFrame:
    """The target of each figure beside what was measured, with a plain yes or no."""
    rows = []
    for name, target in TARGETS.items():
        if name == "spread":
            value = score[name]
            row = f"< {target:.0f} points", f"{points(value)} points", value < target
        else:
            value = score[name]["value"]
            row = f"≥ {percent(target, 0)}", percent(value), value >= target
        rows.append((FIGURE_NAMES[name], *row))
    return targets_table(rows)


@once
def climb(results: Results) -> pd.DataFrame:
    """Each rung of the ladder against the one below: is it higher, and is that more than chance?"""
    present = [name for name in RUNGS if results.has(name, "heldout")]
    steps = {
        f"{upper} over {lower}": stats.compare(results.of(upper, "heldout"), results.of(lower, "heldout"))
        for lower, upper in zip(present, present[1:])
    }
    if not steps:
        return pd.DataFrame(columns=["step", "difference", "low", "high", "p", "p_holm"])
    adjusted = stats.holm({name: step["p"] for name, step in steps.items()})
    return pd.DataFrame([{"step": name, **step, "p_holm": adjusted[name]} for name, step in steps.items()])


@once
def every_pair(results: Results) -> pd.DataFrame:
    """Every pair of systems on the held-out suite, see `stats.compare_all`."""
    return stats.compare_all(results.on("heldout"), cluster="pair")


@once
def adapter_tests(results: Results) -> dict[str, dict]:
    """The adapter against every other system on the held-out suite, Holm-corrected over them."""
    others = results.on("heldout")
    reference = others.pop(ADAPTER)
    tests = {name: stats.compare(reference, frame, cluster="pair") for name, frame in others.items()}
    for p in ("p", "p_cluster"):
        adjusted = stats.holm({name: test[p] for name, test in tests.items()})
        tests = {name: test | {f"{p}_holm": adjusted[name]} for name, test in tests.items()}
    return tests


@once
def temperatures(results: Results) -> dict[str, float]:
    """One temperature per system, fitted on the validation suite."""
    return {
        name: stats.fit_temperature(frame["p_correct"], frame["verdict"] == "CORRECT")
        for name, frame in results.on("val").items()
        if is_graded(frame)
    }


def is_graded(frame: pd.DataFrame) -> bool:
    """False for a system that only ever says 0 or 1, which no temperature can change."""
    return not frame["p_correct"].isin([0.0, 0.5, 1.0]).all()


@once
def calibration_table(results: Results) -> pd.DataFrame:
    """ECE and Brier score on the held-out suite, before and after the validation suite's temperature."""
    rows = []
    for name, temperature in temperatures(results).items():
        before = results.score(name, "heldout")
        after = stats.score(stats.calibrated(results.of(name, "heldout"), temperature))
        rows.append(
            {
                "system": name,
                "temperature": temperature,
                "ece_before": before["ece"],
                "brier_before": before["brier"],
                "ece_after": after["ece"],
                "brier_after": after["brier"],
            }
        )
    return pd.DataFrame(rows)


def latency(results: Results, suite: str = "heldout") -> pd.DataFrame:
    """Accuracy, seconds per case and US dollars per 1,000 cases (nan without a price) by system."""
    rows = []
    for name, frame in results.on(suite).items():
        usd = 1000 * frame["usd"].mean() if "usd" in frame else float("nan")
        rate = _rate(results.score(name, suite))
        rows.append({"system": name, **rate, "seconds": frame["seconds"].mean(), "usd_per_1000": usd})
    return pd.DataFrame(rows)


def corruption_table(results: Results, system: str = ADAPTER) -> pd.DataFrame:
    """Accuracy under every kind and severity of image damage; severity 0 is the clean image."""
    rows = []
    for view in corruption_views(results, system):
        kind, severity = view.split("-")
        rows.append({"kind": kind, "severity": int(severity), **_rate(results.score(system, view))})
    return pd.DataFrame(rows)


def corruption_views(results: Results, system: str) -> list[str]:
    """The damaged views that the system was asked about."""
    return [view for view in corruptions.views() if results.has(system, view)]


def _rate(score: dict) -> dict:
    """The accuracy as columns of a table."""
    rate = score["accuracy"]
    return {"accuracy": rate["value"], **{name: rate[name] for name in ("low", "high", "n")}}


def pairs_right(frame: pd.DataFrame) -> dict:
    """Counterfactual pairs with both members right, as a proportion."""
    return stats.proportion(*stats.pair_accuracy(frame))


@once
def claims(results: Results) -> list[dict]:
    """What the benchmark set out to show about the adapter: claim, target, measured, met."""
    rows, steps = [], climb(results)
    if len(steps):
        differences = ", ".join(map(difference_text, steps.to_dict(orient="records")))
        is_met = bool(((steps["difference"] > 0) & (steps["p_holm"] < 0.01)).all())
        claim = "these rungs are each above the one below: " + ", ".join(steps["step"])
        rows.append((claim, "Holm p < 0.01 each", f"{differences} points", is_met))
    # by scenario and by whole pair: the claim must hold both ways
    local = {
        name: max(t["p_holm"], t["p_cluster_holm"]) if t["difference"] > 0 else 1.0
        for name, t in adapter_tests(results).items()
        if name not in ABOVE and ":" not in name
    }
    if local:
        worst = max(local, key=lambda name: local[name])
        claim = "the adapter is above every local system that does not contain it"
        rows.append((claim, "Holm p < 0.01", f"{p_text(local[worst])} at worst ({worst})", local[worst] < 0.01))
    pairs = pairs_right(results.of(ADAPTER, "heldout"))
    if pairs["n"]:
        claim = "both members of a counterfactual pair are right"
        rows.append((claim, "≥ 85%", rate_text(pairs), pairs["value"] >= 0.85))
    if results.has(ADAPTER, "val"):
        error = calibration_table(results).set_index("system").loc[ADAPTER, "ece_after"]
        claim = "calibrated after a temperature fitted on validation"
        rows.append((claim, "ECE ≤ 0.05", number(error), error <= 0.05))
    return [dict(zip(("claim", "target", "measured", "met"), row)) for row in rows]


def claims_table(results: Results) -> pd.DataFrame:
    """`claims` in words."""
    return targets_table([tuple(claim.values()) for claim in claims(results)], "Claim")


def harder_suites(config: RunConfig, results: Results) -> pd.DataFrame:
    """Accuracy of every system on the plain and on the harder suites, and its pairs right as a whole."""
    names, rows = figure_names(config), []
    for name, score in results.scores("heldout").items():
        rates = {"Held out": score["accuracy"], "Whole pairs": pairs_right(results.of(name, "heldout"))}
        for title, suite in (("Other words", "paraphrase"), ("Note contradicts image", "contradiction")):
            if results.has(name, suite):
                rates[title] = results.score(name, suite)["accuracy"]
        if results.has(name, "orders"):
            rates["Flipped by an order in the note"] = flipped(
                results.of(name, "heldout"), results.of(name, "orders")
            )
        rows.append({"System": names.get(name, name)} | {k: rate_text(rate) for k, rate in rates.items()})
    return pd.DataFrame(rows)


def flipped(plain: pd.DataFrame, ordered: pd.DataFrame) -> dict:
    """Share of cases whose verdict changes once the note gives an order, as a proportion."""
    same = stats.consistency(plain[plain["id"].isin(ordered["id"])], ordered)
    return stats.proportion(same["n"] - round(same["value"] * same["n"]), same["n"])


@once
def abstention_rules(results: Results, coverage: float = 0.95) -> list[dict]:
    """Two ways of knowing a foreign image: an unsure verdict, and features unlike the training images'.

    Both thresholds answer ``coverage`` of the validation suite.

    Returns
    -------
    list of dict: ``rule``; ``foreign`` and ``heldout``: share refused, see `stats.proportion`;
    ``auroc``: foreign against held-out images.
    """
    val, heldout, foreign = (results.of(ADAPTER, suite) for suite in ("val", "heldout", "ood"))
    doubt = {
        "an unsure verdict": lambda f: -stats.certainty(f["p_correct"]),
        "an unknown kind of image": lambda f: f["novelty"].to_numpy(),
    }
    rules = []
    for rule, measure in doubt.items():
        if rule != "an unsure verdict" and ("novelty" not in foreign or foreign["novelty"].isna().any()):
            continue
        limit = novelty.threshold(measure(val), coverage)
        refused = {
            name: stats.proportion(int((measure(f) > limit).sum()), len(f))
            for name, f in (("foreign", foreign), ("heldout", heldout))
        }
        is_foreign = np.repeat([1, 0], [len(foreign), len(heldout)])
        auroc = roc_auc_score(is_foreign, np.concatenate([measure(foreign), measure(heldout)]))
        rules.append({"rule": rule, **refused, "auroc": float(auroc)})
    return rules


# --- what a run leaves behind -----------------------------------------------------------------------


def write_metrics(
    config: RunConfig, results: Results, not_run: dict[str, str] | None = None, measured: dict | None = None
) -> Path:
    """``metrics.json``: scores of every system and suite, paired tests, calibration, tables.

    Parameters
    ----------
    not_run : reason by system
    measured : what the figures are of, from `medlib.evaluation.measured.facts`
    """
    main, names = results.scores("heldout"), figure_names(config)
    record = {
        "headline": headline(config, main),
        "names": names,
        "systems": main,
        "scores": {
            f"{system} {ablation}".strip() + f"/{suite}": results.score(system, suite, ablation)
            for system, suite, ablation in results.parts
            if suite != "ood"  # there is no verdict on a foreign image
        },
        "tests": {},
        "tables": {},
        "not_run": not_run or {},
        "refused": refused(results),
        "measured": measured or {},
    }
    if len(main) > 1:
        record["comparisons"] = every_pair(results).to_dict(orient="records")
    tables = {}
    if ADAPTER in main:
        record["tests"] = adapter_tests(results)
        record["pairs"] = pairs_right(results.of(ADAPTER, "heldout"))
        tables["Targets on the held-out suite"] = targets(main[ADAPTER])
        tables["What the benchmark set out to show"] = claims_table(results)
        if results.has(ADAPTER, "contradiction"):
            tables["Harder suites"] = harder_suites(config, results)
    if best := compare_methods.recommended(results):
        record["recommendation"] = compare_methods.recommendation(results, names)
        choices = strict_choices(config, results)
        for name in dict.fromkeys([fewest_false_alarms(config, results), best]):
            if name not in choices:
                continue
            strict = risk.apply(results.of(name, "heldout"), choices[name].threshold)
            title = f"Last rung: {names[name]}, threshold without a critical miss on calibration cases"
            tables[title] = risk.targets(strict)
    if results.has(ADAPTER, "val"):
        record["calibration"] = calibration_table(results).to_dict(orient="records")
    record["tables"] = {title: table.to_dict(orient="records") for title, table in tables.items()}
    return provenance.write_json_atomic(path(config.run_dir) / "metrics.json", record)


def refused(results: Results) -> dict[str, int]:
    """Cases that a system did not judge, such as broken images, by system and suite; none is left out."""
    counts = {key: int(f["refused"].notna().sum()) for key, f in results.parts.items() if "refused" in f}
    return {"/".join(filter(None, (system, suite, part))): n for (system, suite, part), n in counts.items() if n}


def scores_written(metrics: dict, suite: str) -> dict[str, dict]:
    """Scores of one suite in ``metrics.json`` by system; "medgemma-lora text_only" is one with an ablation."""
    keys = {key: key.rpartition("/") for key in metrics["scores"]}
    return {system: metrics["scores"][key] for key, (system, _, name) in keys.items() if name == suite}


@once
def strict_choices(config: RunConfig, results: Results) -> dict[str, Choice]:
    """The threshold without a critical miss on calibration cases, by system; promises hold for all at once.

    Empty if those cases hold no critical error, or no valid treatment.
    """
    frames = results.on("calibration")
    with contextlib.suppress(risk.RiskError):
        return {n: risk.choose(frame, None, config.risk_confidence, len(frames)) for n, frame in frames.items()}
    return {}


def fewest_false_alarms(config: RunConfig, results: Results) -> str:
    """The system that misses no critical calibration case with the fewest false alarms on these cases.

    Without thresholds to compare, the supervised adapter.
    """
    choices = strict_choices(config, results)
    return min(choices, key=lambda name: choices[name].false_alarms["value"], default=ADAPTER)


def headline(config: RunConfig, main: dict[str, dict]) -> str:
    """One sentence that a reader takes away."""
    if not {BASE, ADAPTER} <= set(main):
        return ""
    before, after = main[BASE]["accuracy"], main[ADAPTER]["accuracy"]
    return (
        f"LoRA took {loading.model_label(config)} from {percent(before['value'])} to {percent(after['value'])} "
        f"accuracy [95% interval {percent(after['low'])} to {percent(after['high'])}] on {after['n']:,} held-out "
        "scenarios."
    )


def figure_names(config: RunConfig) -> dict[str, str]:
    """How figures and tables name the systems; a stand-in is never called by the real model's name alone."""

    def label(model: str) -> str:
        return Path(model).name + (" (stand-in)" if loading.is_standin(model) else "")

    model, dual = label(config.model), label(config.biomedclip)
    return {
        "constant": "Always CORRECT",
        "heuristics": "Hand-written rules",
        "keyword-probe": "Bag of words",
        "image-statistics": "Image statistics, words known",
        "biomedclip": f"{dual}, zero-shot",
        "biomedclip-probe": f"{dual}, linear probe",
        BASE: f"{model}, untouched",
        ADAPTER: f"{model} + LoRA",
        FUSED: f"{Path(config.model).name} + LoRA + {dual}",
        **{f"medgemma-{method}": f"{model} + LoRA + {name}" for method, name in METHODS.items()},
    }
