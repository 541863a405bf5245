"""What 04 and 05 show beyond the ladder: tables, sentences and figures of `medlib.benchmark`."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medlib import benchmark, calibration, explain, metrics, models, plots, workflow
from medlib.benchmark import ADAPTER
from medlib.config import ConfigError, RunConfig
from medlib.data import Suite
from medlib.figures import SPACE, p_text, percent, rate_text

Frames = Mapping[str, pd.DataFrame]


def named(frames: Frames, config: RunConfig, suite: str = "heldout") -> dict[str, pd.DataFrame]:
    """Frames of one suite under the names that a reader knows, lowest rung first."""
    names = benchmark.figure_names(config)
    return {names.get(name, name): frame for name, frame in benchmark.systems_on(frames, suite).items()}


def significance(frames: Frames, config: RunConfig) -> Figure | None:
    """Every pair of systems on the held-out suite: difference and Holm-corrected McNemar test."""
    systems = named(frames, config)
    if len(systems) < 2:
        return None
    return plots.significance_matrix(metrics.compare_all(systems, cluster="pair"), list(systems))


def claims_sentence(frames: Frames) -> str:
    """How many of the claims hold, and which do not."""
    table = benchmark.claims_table(frames)
    missed = table.loc[table["Met"] == "no", "Claim"].tolist()
    if not missed:
        return f"All {len(table)} claims hold on this run."
    return f"{len(table) - len(missed)} of {len(table)} claims hold on this run. **Missed:** {'; '.join(missed)}."


def stress_table(frames: Frames, config: RunConfig) -> pd.DataFrame:
    """Every system on the harder suites beside the plain one, and how often other words change its verdict."""
    table = pd.DataFrame(benchmark.harder_suites(config, frames))
    same = [
        rate_text(metrics.consistency(heldout, frames[f"{name}/paraphrase"]))
        if f"{name}/paraphrase" in frames else "n/a"
        for name, heldout in benchmark.systems_on(frames, "heldout").items()
    ]
    return table.assign(**{"Same verdict in other words": same})


def contradiction_sentence(frames: Frames, config: RunConfig) -> str:
    """Whose side the adapter takes when note and picture disagree."""
    seen = (f"Training had {config.note_pairs:,} pairs of this kind." if config.note_pairs else
            "In training a note that contradicts the picture was always an error.")
    frame = frames[f"{ADAPTER}/contradiction"]
    score = metrics.score(frame)
    right, flagged = score["sensitivity"], score["specificity"]
    return (
        f"Where the note contradicts the picture, the adapter recognises {rate_text(right)} of the treatments "
        f"that fit the picture, and catches {rate_text(flagged)} of those that fit the note only. Whoever "
        "believes the note gets 0 % of both; whoever calls every contradiction an error gets 0 % and "
        f"100 %. {seen}"
    )


def corruption(frames: Frames) -> Figure:
    """Accuracy of the adapter as the picture gets worse, a panel for each kind of damage."""
    return plots.corruption_lines(benchmark.corruption_table(frames), clean_on_same_cases(frames))


def clean_on_same_cases(frames: Frames) -> dict:
    """The adapter's accuracy on the undamaged pictures of the very cases that were damaged."""
    views = benchmark.corruption_keys(frames, ADAPTER)
    ids = frames[views[0][2]]["id"]
    heldout = frames[f"{ADAPTER}/heldout"]
    return metrics.score(heldout[heldout["id"].isin(ids)])["accuracy"]


def corruption_sentence(frames: Frames) -> str:
    """The damage that costs most, and where the adapter is still as good as on clean pictures."""
    table, clean = benchmark.corruption_table(frames), clean_on_same_cases(frames)
    worst = table.loc[table["accuracy"].idxmin()]
    mild = table.loc[table["severity"] == 1, "accuracy"].min()
    return (
        f"On the same {clean['n']:,} cases with clean pictures the adapter gets {rate_text(clean)}. The mildest "
        f"step of any damage leaves at least {percent(mild)}; the worst is {worst['kind']} at step "
        f"{worst['severity']} with {percent(worst['accuracy'])}."
    )


def calibration_table(frames: Frames, config: RunConfig) -> pd.DataFrame:
    """Calibration before and after one temperature, which the validation suite chose."""
    names = benchmark.figure_names(config)
    return pd.DataFrame([
        {"System": names.get(row["system"], row["system"]), "Temperature": f"{row['temperature']:.2f}",
         "ECE before": f"{row['ece_before']:.3f}", "ECE after": f"{row['ece_after']:.3f}",
         "Brier before": f"{row['brier_before']:.3f}", "Brier after": f"{row['brier_after']:.3f}"}
        for row in benchmark.calibration_table(frames).to_dict(orient="records")
    ])


def coverage(frames: Frames, config: RunConfig) -> Figure:
    """Accuracy on the cases of which a system is most certain, against how many those are."""
    graded = {name: f for name, f in named(frames, config).items() if benchmark.is_graded(f)}
    return plots.coverage_curve({name: calibration.selective(f) for name, f in graded.items()})


def cost(frames: Frames, config: RunConfig) -> Figure:
    """Accuracy against seconds a case (and US dollars, where a price is known)."""
    names = benchmark.figure_names(config)
    table = benchmark.latency(frames)
    return plots.cost_latency(table.assign(system=[names.get(name, name) for name in table["system"]]))


def cost_sentence(frames: Frames, config: RunConfig) -> str:
    """What the slowest row costs in time, measured where."""
    table = benchmark.latency(frames).set_index("system")
    adapter = table.loc[ADAPTER, "seconds"]
    return (
        f"The adapter takes {1000 * adapter:,.1f}{SPACE}ms a case here, batched; local systems have no price a "
        "case, an API has. Rows share what was computed of a picture, so the later of two rows with one tower is "
        "flattered; a row's first cases bear its loading and fitting."
    )


# --- pictures from elsewhere ------------------------------------------------------------------------


def foreign_table(frames: Frames) -> pd.DataFrame:
    """How many foreign and how many held-out pictures each rule refuses to judge."""
    return pd.DataFrame([
        {"Rule": rule["rule"], "Foreign pictures refused": rate_text(rule["foreign"]),
         "Held-out pictures refused": rate_text(rule["heldout"]), "AUROC": f"{rule['auroc']:.3f}"}
        for rule in benchmark.abstention_rules(frames)
    ])


def foreign_figure(frames: Frames) -> Figure:
    """Certainty on held-out and on foreign pictures, with the validation suite's threshold."""
    val, heldout, foreign = (frames[f"{ADAPTER}/{suite}"] for suite in ("val", "heldout", "ood"))
    limit = calibration.abstention_threshold(val["p_correct"], val["verdict"] == "CORRECT", coverage=0.95)
    return plots.certainty_histogram(
        {"held-out pictures": heldout["p_correct"], "foreign pictures": foreign["p_correct"]}, limit)


def foreign_sentence(frames: Frames) -> str:
    """Which rule refuses more of the foreign pictures."""
    rules = benchmark.abstention_rules(frames)
    best = max(rules, key=lambda rule: rule["foreign"]["value"])
    shown = " and ".join(f"{r['rule']} refuses {percent(r['foreign']['value'])}" for r in rules)
    return (
        f"Of {best['foreign']['n']} foreign pictures, {shown}. Both thresholds are those that answer 95{SPACE}% "
        "of the validation suite. No verdict on a foreign picture can be right, so none is scored."
    )


def tests_sentence(frames: Frames) -> str:
    """Whether the adapter is above every other row beyond chance."""
    tests = benchmark.adapter_tests(frames)
    below = [name for name, t in tests.items() if t["difference"] > 0 and t["p_holm"] < 0.01]
    rest = [f"{name} ({100 * t['difference']:+.1f} points, {p_text(t['p_holm'])})"
            for name, t in tests.items() if name not in below]
    start = f"The adapter is above {len(below)} of {len(tests)} other rows at a Holm-corrected p < 0.01"
    return f"{start}." if not rest else f"{start}. Adapter minus the rest: {', '.join(rest)}."


# --- where it looked --------------------------------------------------------------------------------


def looked(frames: Frames, config: RunConfig, suite: Suite, limit: int = 6) -> Figure:
    """The surest misses with what the adapter was shown, asked and said, and an occlusion map."""
    processor, model = adapted(config)
    return explain.looked_at(explain.surest_misses(frames[f"{ADAPTER}/heldout"]), suite, model, processor, limit)


def looked_sentence(config: RunConfig, suite: Suite, cases: int = 12) -> str:
    """Whether such maps mean something: hiding what they point at against hiding anything."""
    processor, model = adapted(config)
    return explain.checks_sentence(explain.check_maps(suite, model, processor, cases, seed=config.seed))


@functools.lru_cache(maxsize=1)
def adapted(config: RunConfig):
    """(processor, base model with the adapter on it)."""
    processor, base = models.load_for(config)
    return processor, models.attach_adapter(base, workflow.adapter_dir(config))


def misses_sentence(frame: pd.DataFrame, limit: int = 100) -> str:
    """How many misses there are, and how many of them the table shows."""
    count = int((frame["verdict"] != frame["predicted"]).sum())
    return f"The {min(limit, count):,} surest of {count:,} misses among {len(frame):,} scenarios."


def with_adapter(config: RunConfig) -> RunConfig:
    """The configuration, if the adapter is among its rows: 04 and 05 are about it.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if ADAPTER not in config.systems:
        raise ConfigError(f"systems: this notebook is about {ADAPTER}; add it, or run "
                          "`python -m medlib benchmark`")
    return config


def every_miss(frame: pd.DataFrame, limit: int = 100) -> pd.DataFrame:
    """Every wrong verdict in words, the surest first."""
    rows = explain.surest_misses(frame).head(limit)
    return pd.DataFrame({
        "Scenario": rows["id"], "Picture shows": rows["image_finding"].str.replace("_", " "),
        "Note says": rows["finding"], "Treatment": rows["treatment"], "Gold verdict": rows["verdict"],
        "Given": rows["predicted"], "p(CORRECT)": rows["p_correct"].round(3), "Severity": rows["severity"],
    })
