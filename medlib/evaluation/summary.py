"""Tables and claims made of predictions, and ``metrics.json``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from medlib import stats
from medlib.config import ADAPTER, BASE, METHODS, ROWS, RunConfig, path, provenance
from medlib.data import corruptions
from medlib.evaluation import compare_methods
from medlib.models import loading
from medlib.stats import risk
from medlib.stats.risk import Choice
from medlib.systems import novelty

BARS = {"accuracy": 0.90, "sensitivity": 0.90, "specificity": 0.95, "spread": 5.0}
FIGURE_NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
    "spread": "Spread across modalities",
}

#: The ladder that the project climbs; the other rows are references beside it.
RUNGS = ("constant", "heuristics", "biomedclip-probe", ADAPTER)
#: Rows that contain the adapter, so that it need not be above them.
FUSED = "medgemma-lora+biomedclip"
ABOVE = (FUSED, *(f"medgemma-{method}" for method in METHODS))


# --- tables ---------------------------------------------------------------------------------------


def systems_on(frames: dict[str, pd.DataFrame], suite: str) -> dict[str, pd.DataFrame]:
    """Frames of one suite by system, lowest rung first; ablations left out."""
    found = {
        key.rsplit("/", 1)[0]: frame
        for key, frame in frames.items()
        if key.rsplit("/", 1)[1] == suite
        and " " not in key
        and not compare_methods.is_repeat(key.rsplit("/", 1)[0])
    }
    order = [name for name in ROWS if name in found]
    return {name: found[name] for name in order + [name for name in found if name not in order]}


def scores_on(frames: dict[str, pd.DataFrame], suite: str = "heldout") -> dict[str, dict]:
    """Scores of every system on one suite, lowest rung first."""
    return {name: stats.score(frame) for name, frame in systems_on(frames, suite).items()}


def bars(score: dict) -> pd.DataFrame:
    """The target of each figure beside what was measured, with a plain yes or no."""
    rows = []
    for name, bar in BARS.items():
        if name == "spread":
            value, met, shown, target = score[name], score[name] < bar, "{:.1f} points", f"< {bar:.0f} points"
        else:
            value = score[name]["value"]
            met, shown, target = value >= bar, "{:.1%}", f"≥ {bar:.0%}"
        rows.append(
            {
                "Figure": FIGURE_NAMES[name],
                "Target": target,
                "Measured": shown.format(value),
                "Met": "yes" if met else "no",
            }
        )
    return pd.DataFrame(rows)


def climb(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Each rung of the ladder against the one below: is it higher, and is that more than chance?"""
    present = [name for name in RUNGS if f"{name}/heldout" in frames]
    steps = {
        f"{upper} over {lower}": stats.compare(frames[f"{upper}/heldout"], frames[f"{lower}/heldout"])
        for lower, upper in zip(present, present[1:])
    }
    if not steps:
        return pd.DataFrame(columns=["step", "difference", "low", "high", "p", "p_holm"])
    adjusted = stats.holm({name: step["p"] for name, step in steps.items()})
    return pd.DataFrame([{"step": name, **step, "p_holm": adjusted[name]} for name, step in steps.items()])


def temperatures(frames: dict[str, pd.DataFrame]) -> dict[str, float]:
    """One temperature a system, fitted on the validation suite."""
    return {
        name: stats.fit_temperature(f["p_correct"], f["verdict"] == "CORRECT")
        for name, f in systems_on(frames, "val").items()
        if is_graded(f)
    }


def is_graded(frame: pd.DataFrame) -> bool:
    """False for a system that only ever says 0 or 1, which no temperature can change."""
    return not frame["p_correct"].isin([0.0, 0.5, 1.0]).all()


def calibration_table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """ECE and Brier score on the held-out suite, before and after the validation suite's temperature."""
    rows = []
    for name, temperature in temperatures(frames).items():
        before = frames[f"{name}/heldout"]
        after = stats.calibrated(before, temperature)
        row = {"system": name, "temperature": temperature}
        for moment, frame in {"before": before, "after": after}.items():
            score = stats.score(frame)
            row |= {f"ece_{moment}": score["ece"], f"brier_{moment}": score["brier"]}
        rows.append(row)
    return pd.DataFrame(rows)


def latency(frames: dict[str, pd.DataFrame], suite: str = "heldout") -> pd.DataFrame:
    """Accuracy, seconds a case and US dollars per 1,000 cases (nan without a price) by system."""
    rows = []
    for name, frame in systems_on(frames, suite).items():
        accuracy = stats.score(frame)["accuracy"]
        usd = 1000 * frame["usd"].mean() if "usd" in frame else float("nan")
        rate = {"accuracy": accuracy["value"], **{k: accuracy[k] for k in ("low", "high", "n")}}
        rows.append({"system": name, **rate, "seconds": frame["seconds"].mean(), "usd_per_1000": usd})
    return pd.DataFrame(rows)


def corruption_table(frames: dict[str, pd.DataFrame], system: str = ADAPTER) -> pd.DataFrame:
    """Accuracy under every kind and severity of image damage; severity 0 is the clean image."""
    rows = []
    for kind, severity, key in corruption_keys(frames, system):
        rate = stats.score(frames[key])["accuracy"]
        rows.append(
            {
                "kind": kind,
                "severity": severity,
                "accuracy": rate["value"],
                "low": rate["low"],
                "high": rate["high"],
                "n": rate["n"],
            }
        )
    return pd.DataFrame(rows)


def corruption_keys(frames: dict[str, pd.DataFrame], system: str) -> list[tuple[str, int, str]]:
    """(kind, severity, name of the frame) of every damaged view that the system was asked about."""
    views = [(*view.split("-"), f"{system}/{view}") for view in corruptions.views()]
    return [(kind, int(severity), key) for kind, severity, key in views if key in frames]


def pairs_right(frame: pd.DataFrame) -> dict:
    """Counterfactual pairs with both members right, as a proportion."""
    return stats.proportion(*stats.pair_accuracy(frame))


def claims(frames: dict[str, pd.DataFrame]) -> list[dict]:
    """What the benchmark set out to show about the adapter: claim, bar, measured, met."""
    steps, found = climb(frames), []
    if len(steps):
        shown = [
            f"{100 * step.difference:+.1f} [{100 * step.low:+.1f}, {100 * step.high:+.1f}]"
            for step in steps.itertuples()
        ]
        found.append(
            {
                "claim": "each rung is above the one below: " + ", ".join(steps["step"]),
                "bar": "Holm p < 0.01 each",
                "measured": ", ".join(shown) + " points",
                "met": bool(((steps["difference"] > 0) & (steps["p_holm"] < 0.01)).all()),
            }
        )
    # by scenario and by whole pair: the claim must hold both ways
    local = {
        name: max(t["p_holm"], t["p_cluster_holm"]) if t["difference"] > 0 else 1.0
        for name, t in adapter_tests(frames).items()
        if name not in ABOVE and ":" not in name
    }
    if local:
        worst = max(local, key=local.get)
        found.append(
            {
                "claim": "the adapter is above every local row that does not contain it",
                "bar": "Holm p < 0.01",
                "measured": f"p = {local[worst]:.2g} at worst ({worst})",
                "met": local[worst] < 0.01,
            }
        )
    pairs = pairs_right(frames[f"{ADAPTER}/heldout"])
    if pairs["n"]:
        found.append(
            {
                "claim": "both members of a counterfactual pair are right",
                "bar": "≥ 85%",
                "measured": f"{pairs['value']:.1%} [{pairs['low']:.1%}, {pairs['high']:.1%}]",
                "met": pairs["value"] >= 0.85,
            }
        )
    if f"{ADAPTER}/val" in frames:
        ece = calibration_table(frames).set_index("system").loc[ADAPTER, "ece_after"]
        found.append(
            {
                "claim": "calibrated after a temperature fitted on validation",
                "bar": "ECE ≤ 0.05",
                "measured": f"{ece:.3f}",
                "met": ece <= 0.05,
            }
        )
    return found


def claims_table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`claims` in words."""
    return pd.DataFrame(
        [
            {"Claim": c["claim"], "Bar": c["bar"], "Measured": c["measured"], "Met": "yes" if c["met"] else "no"}
            for c in claims(frames)
        ]
    )


def harder_suites(config: RunConfig, frames: dict[str, pd.DataFrame]) -> list[dict]:
    """Accuracy of every system on the plain and on the harder suites, and its pairs right as a whole."""
    names, rows = figure_names(config), []
    for name, heldout in systems_on(frames, "heldout").items():
        rates = {"Held out": stats.score(heldout)["accuracy"], "Whole pairs": pairs_right(heldout)}
        for title, suite in (("Other words", "paraphrase"), ("Note contradicts image", "contradiction")):
            if f"{name}/{suite}" in frames:
                rates[title] = stats.score(frames[f"{name}/{suite}"])["accuracy"]
        shown = {
            title: f"{100 * r['value']:.1f}% [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            for title, r in rates.items()
        }
        rows.append({"System": names.get(name, name)} | shown)
    return rows


def abstention_rules(frames: dict[str, pd.DataFrame], coverage: float = 0.95) -> list[dict]:
    """Two ways of knowing a foreign image: an unsure verdict, and features unlike the training images'.

    Both thresholds answer ``coverage`` of the validation suite.

    Returns
    -------
    list of dict: ``rule``; ``foreign`` and ``heldout``: share refused, see `stats.proportion`;
    ``auroc``: foreign against held-out images.
    """
    val, heldout, foreign = (frames[f"{ADAPTER}/{suite}"] for suite in ("val", "heldout", "ood"))
    doubt = {
        "an unsure verdict": lambda f: -stats.certainty(f["p_correct"]),
        "an unknown kind of image": lambda f: f["novelty"].to_numpy(),
    }
    rules = []
    for rule, measure in doubt.items():
        if rule != "an unsure verdict" and "novelty" not in foreign:
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


def write_metrics(config: RunConfig, frames: dict[str, pd.DataFrame], not_run: dict[str, str] | None = None):
    """``metrics.json``: scores of every system and suite, paired tests, calibration, tables."""
    # there is no verdict on a foreign image
    scores = {key: stats.score(frame) for key, frame in frames.items() if not key.endswith("/ood")}
    main = {name: scores[f"{name}/heldout"] for name in systems_on(frames, "heldout")}
    record = {
        "headline": headline(config, main),
        "names": figure_names(config),
        "systems": main,
        "scores": scores,
        "tests": {},
        "tables": {},
        "not_run": not_run or {},
    }
    if len(main) > 1:
        every_pair = stats.compare_all(systems_on(frames, "heldout"), cluster="pair")
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
    if best := compare_methods.recommended(frames):
        record["recommendation"] = compare_methods.recommendation(frames, record["names"])
        for name in dict.fromkeys([fewest_false_alarms(config, frames), best]):
            strict = risk.apply(frames[f"{name}/heldout"], strict_choices(config, frames)[name].threshold)
            title = f"Last rung: {record['names'][name]}, threshold without a critical miss on calibration cases"
            record["tables"][title] = risk.targets(strict).to_dict(orient="records")
    if f"{ADAPTER}/val" in frames:
        record["calibration"] = calibration_table(frames).to_dict(orient="records")
    return provenance.write_json_atomic(path(config.run_dir) / "metrics.json", record)


def strict_choices(config: RunConfig, frames: dict[str, pd.DataFrame]) -> dict[str, Choice]:
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
    tests = {name: stats.compare(reference, frame, cluster="pair") for name, frame in others.items()}
    for p in ("p", "p_cluster"):
        adjusted = stats.holm({name: test[p] for name, test in tests.items()})
        tests = {name: test | {f"{p}_holm": adjusted[name]} for name, test in tests.items()}
    return tests


def headline(config: RunConfig, main: dict[str, dict]) -> str:
    """One sentence that a reader takes away."""
    if not {BASE, ADAPTER} <= set(main):
        return ""
    before, after = main[BASE]["accuracy"], main[ADAPTER]["accuracy"]
    return (
        f"LoRA took {loading.model_label(config)} from {before['value']:.1%} to {after['value']:.1%} "
        f"accuracy [95% interval {after['low']:.1%} to {after['high']:.1%}] on {after['n']:,} held-out "
        "scenarios."
    )


def figure_names(config: RunConfig) -> dict[str, str]:
    """How figures and tables name the rows; a stand-in is never called by the real model's name alone."""

    def label(model: str) -> str:
        return Path(model).name + (" (stand-in)" if loading.is_standin(model) else "")

    model, dual = label(config.model), label(config.biomedclip)
    return {
        "constant": "Always CORRECT",
        "heuristics": "Hand-written rules",
        "keyword-probe": "Bag of words",
        "biomedclip": f"{dual}, zero-shot",
        "biomedclip-probe": f"{dual}, linear probe",
        BASE: f"{model}, untouched",
        ADAPTER: f"{model} + LoRA",
        FUSED: f"{Path(config.model).name} + LoRA + {dual}",
        **{f"medgemma-{method}": f"{model} + LoRA + {name}" for method, name in METHODS.items()},
    }
