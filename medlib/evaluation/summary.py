"""Tables and claims made of predictions, and ``metrics.json``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from medlib import stats
from medlib.config import ADAPTER, BASE, METHODS, RunConfig, files, path
from medlib.data import corruptions, own_suites
from medlib.evaluation import compare_methods
from medlib.evaluation.results import Results
from medlib.models import loading
from medlib.stats import prevalence, risk
from medlib.stats.risk import Choice
from medlib.stats.text import (
    TOO_FEW,
    difference_text,
    interval_text,
    number,
    p_text,
    percent,
    rate_text,
    spread_text,
    targets_table,
)
from medlib.systems import novelty

#: Within these the slope of a calibrated model's verdicts must lie, interval and all.
SLOPE = (0.8, 1.25)
TARGETS = {"accuracy": 0.90, "sensitivity": 0.90, "specificity": 0.95, "spread": 5.0}
FIGURE_NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Valid treatments recognised",
    "specificity": "Errors caught",
    "spread": "Spread across modalities",
}

#: Suites with verdicts, and what a reader calls them; the images of all but data of one's own are drawn.
SUITES = {
    "heldout": "Held out",
    "paraphrase": "Other words",
    "demographics": "Another age and sex",
    "contradiction": "Note contradicts image",
    "patients": "Same case, another patient decides",
    "renderer": "Second renderer",
    "unseen": "Findings that training never had",
    "core24_val": "Core set, 8 validation cases",
    "core24_folds": "Core set, all 24",
}

#: Share of verdicts that may change with age and sex where they must not.
FLIPS = 0.01

#: The ladder that the project climbs; the other systems are references beside it.
RUNGS = ("constant", "heuristics", "biomedclip-probe", ADAPTER)
#: Systems that contain the adapter, so that it need not be above them.
FUSED = "medgemma-lora+biomedclip"
ABOVE = (FUSED, *(f"medgemma-{method}" for method in METHODS))
#: p-values of a comparison: by scenario, by whole pair and by cell.
TESTS = ("p", "p_cluster", "p_cell")
#: Of one run's results; they are asked for by metrics.json, tables, figures and sentences alike.
once = lru_cache(maxsize=8)


# --- tables ---------------------------------------------------------------------------------------


def targets(score: dict) -> pd.DataFrame:
    """The target of each figure beside what was measured, with a plain yes or no."""
    rows = []
    for name, target in TARGETS.items():
        if name == "spread":
            value = score[name]
            measured = TOO_FEW if pd.isna(value) else f"{spread_text(score)} points"
            row = f"< {target:.0f} points", measured, value < target
        else:
            value = score[name]["value"]
            row = f"≥ {percent(target, 0)}", percent(value), value >= target
        rows.append((FIGURE_NAMES[name], *row))
    return targets_table(rows)


def targets_by_suite(results: Results, system: str = ADAPTER, below: str = "heuristics") -> pd.DataFrame:
    """The targets on every suite that the system was asked about, beside what the hand-written rules reach."""
    parts = []
    for suite, title in SUITES.items():
        if results.has(system, suite):
            table = targets(results.score(system, suite)).assign(Suite=title)
            rules = targets(results.score(below, suite))["Measured"] if results.has(below, suite) else "not asked"
            parts.append(table.assign(**{"Hand-written rules": rules}))
    columns = ["Suite", "Figure", "Target", "Measured", "Hand-written rules", "Met"]
    return pd.concat(parts, ignore_index=True)[columns]


@once
def climb(results: Results) -> pd.DataFrame:
    """Each rung of the ladder against the one below: is it higher, and is that more than chance?"""
    present = [name for name in RUNGS if results.has(name, "heldout")]
    steps = {
        f"{upper} over {lower}": _tested(results.of(upper, "heldout"), results.of(lower, "heldout"))
        for lower, upper in zip(present, present[1:])
    }
    if not steps:
        return pd.DataFrame(columns=["step", "difference", "low", "high", *TESTS])
    return pd.DataFrame([{"step": name, **step} for name, step in _corrected(steps).items()])


@once
def every_pair(results: Results) -> pd.DataFrame:
    """Every pair of systems on the held-out suite, see `stats.compare_all`."""
    return stats.compare_all(results.on("heldout"), cluster="pair")


@once
def adapter_tests(results: Results) -> dict[str, dict]:
    """The adapter against every other system on the held-out suite, Holm-corrected over them."""
    others = results.on("heldout")
    reference = others.pop(ADAPTER)
    return _corrected({name: _tested(reference, frame) for name, frame in others.items()})


def _tested(a: pd.DataFrame, b: pd.DataFrame) -> dict:
    """`stats.compare` by whole pair, and ``p_cell`` of `stats.flip_test` by cell where cells are known."""
    test = stats.compare(a, b, cluster="pair")
    has_cells = "cell" in a and "cell" in b
    return test | {"p_cell": stats.flip_test(a, b, "cell") if has_cells else float("nan")}


def _corrected(tests: dict[str, dict]) -> dict[str, dict]:
    """Each of `TESTS` with Holm's correction over all comparisons, as ``p_holm`` and so on."""
    for p in TESTS:
        if not any(np.isnan(test[p]) for test in tests.values()):
            adjusted = stats.holm({name: test[p] for name, test in tests.items()})
            tests = {name: test | {f"{p}_holm": adjusted[name]} for name, test in tests.items()}
    return tests


def worst_p(test: Mapping) -> float:
    """The greatest corrected p of the tests by scenario, by whole pair and by cell; 1 if nothing is better."""
    return max(test[f"{p}_holm"] for p in TESTS if f"{p}_holm" in test) if test["difference"] > 0 else 1.0


@once
def temperatures(results: Results) -> dict[str, float]:
    """One temperature per system, fitted on the validation suite."""
    return {
        name: stats.fit_temperature(frame["p_correct"], frame["verdict"] == "CORRECT", frame["pair"])
        for name, frame in results.on("val").items()
        if is_graded(frame)
    }


def is_graded(frame: pd.DataFrame) -> bool:
    """False for a system that only ever says 0 or 1, which no temperature can change."""
    return not frame["p_correct"].isin([0.0, 0.5, 1.0]).all()


def calibration_line(frame: pd.DataFrame) -> dict[str, dict]:
    """`stats.calibration_line` of predictions, by cell where cells are known."""
    names = frame["cell"] if "cell" in frame and frame["cell"].notna().any() else frame["pair"]
    return stats.calibration_line(frame["p_correct"], frame["verdict"] == "CORRECT", names)


@once
def calibration_table(results: Results) -> pd.DataFrame:
    """ECE, Brier score and log loss on the held-out suite, before and after the validation suite's temperature."""
    rows = []
    for name, temperature in temperatures(results).items():
        row = {"system": name, "temperature": temperature}
        before = results.of(name, "heldout")
        for when, frame in {"before": before, "after": stats.calibrated(before, temperature)}.items():
            score = stats.score(frame)
            loss = stats.log_loss(frame["p_correct"], frame["verdict"] == "CORRECT")
            row |= {f"ece_{when}": score["ece"], f"brier_{when}": score["brier"], f"loss_{when}": loss}
        rows.append(row)
    return pd.DataFrame(rows)


def calibration_by_suite(results: Results, system: str = ADAPTER) -> pd.DataFrame:
    """Slope and intercept of a system on every suite, as it is and at the validation suite's temperature."""
    rows = []
    for suite, title in SUITES.items():
        if not results.has(system, suite):
            continue
        frame = results.of(system, suite)
        for when, temperature in {"before": 1.0, "after": temperatures(results).get(system, 1.0)}.items():
            line = calibration_line(stats.calibrated(frame, temperature))
            row = {"Suite": title, "n": f"{len(frame):,}", "Temperature": f"{temperature:.2f}, {when}"}
            rows.append(row | {name.capitalize(): interval_text(value) for name, value in line.items()})
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
        is_met = all(worst_p(step) < 0.01 for step in steps.to_dict(orient="records"))
        claim = "these rungs are each above the one below: " + ", ".join(steps["step"])
        rows.append((claim, "Holm p < 0.01 each", f"{differences} points", is_met))
    # by scenario, by whole pair and by cell: the claim must hold in every way
    local = {
        name: worst_p(t) for name, t in adapter_tests(results).items() if name not in ABOVE and ":" not in name
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
        temperature = temperatures(results).get(ADAPTER, 1.0)
        line = calibration_line(stats.calibrated(results.of(ADAPTER, "heldout"), temperature))
        slope, intercept = line["slope"], line["intercept"]
        is_met = (
            SLOPE[0] <= slope["low"] and slope["high"] <= SLOPE[1] and intercept["low"] <= 0 <= intercept["high"]
        )
        target = f"slope within {SLOPE[0]:g} to {SLOPE[1]:g}, intercept about 0, whole intervals"
        measured = f"slope {interval_text(slope)}, intercept {interval_text(intercept)}"
        rows.append(("calibrated after a temperature fitted on validation", target, measured, bool(is_met)))
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


def further_axes(config: RunConfig, results: Results) -> pd.DataFrame:
    """Accuracy of every system where only the patient decides, on images of a second renderer, on unseen findings.

    Beside the last two stands what it reaches on the same cases as the first renderer draws them, and on the
    held-out cases with the other findings. A column is left out if nothing was asked.
    """
    names, rows = figure_names(config), []
    for name, heldout in results.on("heldout").items():
        rates = {}
        if results.has(name, "patients"):
            rates["Another patient decides"] = results.score(name, "patients")["accuracy"]
            rates["Whole patient pairs"] = pairs_right(results.of(name, "patients"))
        if results.has(name, "renderer"):
            drawn = heldout["id"].isin(results.of(name, "renderer")["id"])
            rates["Second renderer"] = results.score(name, "renderer")["accuracy"]
            rates["Same cases, first renderer"] = stats.score(heldout[drawn])["accuracy"]
        if results.has(name, "unseen"):
            left_out = heldout["id"].isin(results.of(name, "unseen")["id"])
            rates["Findings without training"] = results.score(name, "unseen")["accuracy"]
            if not left_out.all():
                rates["Other findings"] = stats.score(heldout[~left_out])["accuracy"]
        rows.append({"System": names.get(name, name)} | {k: rate_text(rate) for k, rate in rates.items()})
    return pd.DataFrame(rows) if any(len(row) > 1 for row in rows) else pd.DataFrame()


def at_prevalence(config: RunConfig, results: Results) -> pd.DataFrame:
    """What every system would do in 1,000 held-out cases at the prevalence of errors of the configuration."""
    names = figure_names(config)
    rows = {
        names.get(name, name): _projected(config, f, config.error_prevalence) for name, f in _two_sided(results)
    }
    return pd.DataFrame([{"System": name, **row} for name, row in rows.items()] or {"System": []})


def by_prevalence(config: RunConfig, results: Results, system: str = ADAPTER) -> pd.DataFrame:
    """The same of one system at each of `prevalence.PREVALENCES`; empty without both verdicts."""
    frame = dict(_two_sided(results)).get(system)
    shares = prevalence.PREVALENCES if frame is not None else ()
    return pd.DataFrame([{"Errors": percent(share, 0), **_projected(config, frame, share)} for share in shares])


def _two_sided(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """Held-out predictions of every system, if the suite has both gold verdicts."""
    return [(name, frame) for name, frame in results.on("heldout").items() if frame["verdict"].nunique() == 2]


def _projected(config: RunConfig, frame: pd.DataFrame, share: float) -> dict[str, str]:
    figures = prevalence.per_1000(frame, share)
    weight = prevalence.expected_error(frame, share, compare_methods.weights(config))
    return {
        "Queries": interval_text(figures["queries"], ".1f"),
        "Errors caught": interval_text(figures["caught"], ".1f"),
        "Errors missed": interval_text(figures["missed"], ".1f"),
        "Queries that are right": rate_text(figures["ppv"]),
        "Weight of errors": number(weight, ".1f"),
    }


def net_benefit(config: RunConfig, results: Results, system: str = ADAPTER) -> pd.DataFrame:
    """The decision curve of a system on the held-out suite, beside querying everything and nothing."""
    frame = dict(_two_sided(results)).get(system)
    if frame is None:
        return pd.DataFrame()
    curve = prevalence.decision_curve(frame, config.error_prevalence)
    return pd.DataFrame(
        [
            {
                "Query from P(error)": percent(row["threshold"], 0),
                "Net benefit": interval_text(row | {"value": row["net_benefit"]}, ".1f"),
                "Query everything": number(row["query_all"], ".1f"),
                "Query nothing": "0.0",
            }
            for row in curve.to_dict(orient="records")
        ]
    )


def by_age_and_sex(results: Results, system: str = ADAPTER) -> pd.DataFrame:
    """Accuracy of a system on the held-out suite by age band and sex; empty where patients are not stated."""
    frame = results.of(system, "heldout")
    if "age_band" not in frame:
        return pd.DataFrame()
    rows = []
    for (age, sex), part in frame.dropna(subset=["age_band", "sex"]).groupby(["age_band", "sex"]):
        score = stats.score(part)
        rates = {name: rate_text(score[name]) for name in ("accuracy", "sensitivity", "specificity")}
        titles = dict(zip(rates, ("Accuracy", "Valid treatments recognised", "Errors caught")))
        row = {"Age": age, "Sex": sex, "n": f"{len(part):,}"}
        rows.append(row | {titles[name]: text for name, text in rates.items()})
    return pd.DataFrame(rows)


def demographic_flips(config: RunConfig, results: Results) -> pd.DataFrame:
    """Share of held-out verdicts that change with the patient's age and sex, where nothing depends on them."""
    names, rows = figure_names(config), []
    for name, frame in results.on("demographics").items():
        twins = frame.merge(results.of(name, "heldout")[["id", "predicted"]], on="id", suffixes=("", "_before"))
        flipped = stats.clustered_proportion(twins["predicted"] != twins["predicted_before"], twins["cell"])
        target = f"≤ {percent(FLIPS, 0)}"
        rows.append((names.get(name, name), target, rate_text(flipped), flipped["value"] <= FLIPS))
    return targets_table(rows, "System") if rows else pd.DataFrame()


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
    tables = {}
    if main:
        tables[f"At {percent(config.error_prevalence)} errors, in 1,000 cases"] = at_prevalence(config, results)
    if len(main) > 1:
        record["comparisons"] = every_pair(results).to_dict(orient="records")
    if ADAPTER in main:
        record["tests"] = adapter_tests(results)
        record["pairs"] = pairs_right(results.of(ADAPTER, "heldout"))
        tables["Targets on the held-out suite"] = targets(main[ADAPTER])
        tables["Targets on every suite"] = targets_by_suite(results)
        tables["What the benchmark set out to show"] = claims_table(results)
        tables["The adapter by prevalence of errors, in 1,000 cases"] = by_prevalence(config, results)
        tables[f"Net benefit at {percent(config.error_prevalence)} errors, in 1,000 cases"] = net_benefit(
            config, results
        )
        tables["The adapter by age and sex, held-out suite"] = by_age_and_sex(results)
        tables["Demographic twins: verdicts that another age or sex changes"] = demographic_flips(config, results)
        if results.has(ADAPTER, "contradiction"):
            tables["Harder suites"] = harder_suites(config, results)
        tables["Further axes: patient, renderer, unseen findings"] = further_axes(config, results)
    if best := compare_methods.recommended(results, config):
        record["recommendation"] = compare_methods.recommendation(results, config, names)
        choices = strict_choices(config, results)
        for name in dict.fromkeys([fewest_false_alarms(config, results), best]):
            if name not in choices:
                continue
            strict = risk.apply(results.of(name, "heldout"), choices[name].threshold)
            title = f"Last rung: {names[name]}, threshold without a critical miss on calibration cases"
            tables[title] = risk.targets(strict)
    if results.has(ADAPTER, "val"):
        record["calibration"] = calibration_table(results).to_dict(orient="records")
        tables["Calibration of the adapter on every suite"] = calibration_by_suite(results)
    record["tables"] = {title: table.to_dict(orient="records") for title, table in tables.items() if len(table)}
    return files.write_json(path(config.run_dir) / "metrics.json", record)


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
    before, after = main[BASE]["accuracy"], main[ADAPTER].get("accuracy_by_cell") or main[ADAPTER]["accuracy"]
    of = f" of {after['clusters']:,} kinds (image finding and care, or patient)" if "clusters" in after else ""
    kind, shared = "" if config.data_dir else "drawn, ", own_suites.shared(config)
    return (
        f"LoRA took {loading.model_label(config)} from {percent(before['value'])} to {percent(after['value'])} "
        f"accuracy [95% interval {percent(after['low'])} to {percent(after['high'])}] on {after['n']:,} "
        f"{kind}held-out scenarios{of}.{shared and f' {shared}'}"
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
        "biomedclip": f"{dual}, prompted",
        "biomedclip-probe": f"{dual}, linear probe",
        BASE: f"{model}, untouched",
        "two-questions": f"{model}, untouched, two questions",
        ADAPTER: f"{model} + LoRA",
        FUSED: f"{Path(config.model).name} + LoRA + {dual}",
        **{f"medgemma-{method}": f"{model} + LoRA + {name}" for method, name in METHODS.items()},
    }
