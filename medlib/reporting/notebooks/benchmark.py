"""What 08_benchmark shows."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ADAPTER, RunConfig, run_dir
from medlib.data.synthetic.grammar import PAIR_KINDS
from medlib.evaluation import summary
from medlib.reporting import plots
from medlib.reporting.show import ALPHA, BAR
from medlib.stats.text import SPACE, p_text, percent, rate_text

API_ROW = "openai:gpt-4o"
NOT_ASKED = {
    API_ROW: f"costs money and sends the cases away: ask for it with `--model {API_ROW}`",
    "reward model + PPO": "no such training in this project yet",
}


def ladder_sentence(scores: Mapping[str, dict], top: str | None = None, bar: float = BAR) -> str:
    """Whether a row (the last one by default) is above the bar, and how good the best other row is."""
    top = top or list(scores)[-1]
    rate = scores[top]["accuracy"]
    if len(scores) < 2:
        return f"{top} gets {rate_text(rate)}; no other row was asked for."
    best = max((name for name in scores if name != top), key=lambda name: scores[name]["accuracy"]["value"])
    reading = f"not shown to be above the target of {percent(bar)}"
    if rate["low"] > bar:
        reading = f"above the target of {percent(bar)}, and so is its whole interval"
    elif rate["high"] < bar:
        reading = f"below the target of {percent(bar)}, and so is its whole interval"
    elif rate["value"] >= bar:
        reading = f"at the target of {percent(bar)} or above, but its interval reaches below it"
    return (
        f"{top} gets {rate_text(rate)}: {reading}. The best other row is {best} with "
        f"{rate_text(scores[best]['accuracy'])}."
    )


def modality_sentence(scores: Mapping[str, dict], top: str | None = None) -> str:
    """Best and worst kind of image of a row, the last one by default."""
    name = top or list(scores)[-1]
    score = scores[name]
    rates = {m: r["accuracy"]["value"] for m, r in score["per_modality"].items()}
    worst, best = min(rates, key=rates.get), max(rates, key=rates.get)
    if rates[worst] == rates[best]:
        return f"{name} does equally well on every kind of image ({percent(rates[best])})."
    return (
        f"{name} does best on {best} ({percent(rates[best])}) and worst on {worst} "
        f"({percent(rates[worst])}): {score['spread']:.1f} points apart, in groups of "
        f"{min(r['accuracy']['n'] for r in score['per_modality'].values()):,} or more."
    )


def paired_tests(config: RunConfig) -> pd.DataFrame:
    """The adapter against every rung below, as `medlib.evaluation.summary` wrote it to metrics.json."""
    tests = json.loads((run_dir(config) / "metrics.json").read_text())["tests"]
    names = summary.figure_names(config)
    return pd.DataFrame(
        [
            {
                "Adapter against": names.get(name, name),
                "Difference (points)": f"{100 * t['difference']:+.1f} [{100 * t['low']:+.1f}, "
                f"{100 * t['high']:+.1f}]",
                "Only adapter right": t["b"],
                "Only the other right": t["c"],
                "p, exact McNemar": p_text(t["p"]),
                "p, Holm": p_text(t["p_holm"]),
                "p, whole pairs, Holm": p_text(t["p_cluster_holm"]),
                "Better": "not shown"
                if t["p_holm"] >= ALPHA
                else ("adapter" if t["difference"] > 0 else "the other"),
            }
            for name, t in tests.items()
        ]
    )


def pair_table(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Counterfactual pairs with both members right, by kind of pair."""
    names, rows = summary.figure_names(config), []
    for system, frame in summary.systems_on(frames, "heldout").items():
        counts = {"all pairs": stats.pair_accuracy(frame)}
        counts |= {f"{kind} pairs": stats.pair_accuracy(frame[frame["pair_kind"] == kind]) for kind in PAIR_KINDS}
        rows.append(
            {"System": names.get(system, system)}
            | {
                label: rate_text(stats.proportion(right, pairs)) + f" of {pairs:,}"
                for label, (right, pairs) in counts.items()
            }
        )
    return pd.DataFrame(rows)


def pair_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Pairs of the adapter that are right as a whole, beside its accuracy."""
    frame = frames[f"{ADAPTER}/heldout"]
    rate = stats.proportion(*stats.pair_accuracy(frame))
    single = stats.score(frame)["accuracy"]["value"]
    return (
        f"The adapter gets {percent(single)} of the scenarios right, but "
        f"{rate_text(rate)} of the pairs as a whole."
    )


def power_sentence(score: Mapping, bar: float = BAR) -> str:
    """Cases that it takes to show an accuracy above the bar."""
    needed = {value: stats.cases_needed(value, bar) for value in (bar + 0.02, bar + 0.05)}
    shown = " and ".join(f"{n:,} if the true accuracy is {percent(v)}" for v, n in needed.items())
    value = score["accuracy"]["value"]
    own = (
        f"At the measured {percent(value)} it would take {stats.cases_needed(value, bar):,}."
        if value > bar
        else f"The measured {percent(value)} is not above the bar, so no number of cases would do."
    )
    return (
        f"To show an accuracy above {percent(bar)} (one-sided test at 5%, power 80%) takes "
        f"{shown}. {own} This suite has {score['n']:,}; the two members of a pair share words "
        "or image, so they count for somewhat less than as many independent cases."
    )


def not_run(config: RunConfig) -> pd.DataFrame:
    """Rows that were left out, and why; no number is borrowed for them."""
    reasons = json.loads((run_dir(config) / "metrics.json").read_text())["not_run"]
    asked = {name.partition(":")[0] for name in config.systems}
    reasons |= {name: why for name, why in NOT_ASKED.items() if name.partition(":")[0] not in asked}
    return pd.DataFrame([{"System": name, "Result": "not run", "Why": why} for name, why in reasons.items()])


Frames = Mapping[str, pd.DataFrame]


def named(frames: Frames, config: RunConfig, suite: str = "heldout") -> dict[str, pd.DataFrame]:
    """Frames of one suite under the names that a reader knows, lowest rung first."""
    names = summary.figure_names(config)
    return {names.get(name, name): frame for name, frame in summary.systems_on(frames, suite).items()}


def significance(frames: Frames, config: RunConfig) -> Figure | None:
    """Every pair of systems on the held-out suite: difference and Holm-corrected McNemar test."""
    systems = named(frames, config)
    if len(systems) < 2:
        return None
    return plots.significance_matrix(stats.compare_all(systems, cluster="pair"), list(systems))


def claims_sentence(frames: Frames) -> str:
    """How many of the claims hold, and which do not."""
    table = summary.claims_table(frames)
    missed = table.loc[table["Met"] == "no", "Claim"].tolist()
    if not missed:
        return f"All {len(table)} claims hold on this run."
    return f"{len(table) - len(missed)} of {len(table)} claims hold on this run. **Missed:** {'; '.join(missed)}."


def stress_table(frames: Frames, config: RunConfig) -> pd.DataFrame:
    """Every system on the harder suites beside the plain one, and how often other words change its verdict."""
    table = pd.DataFrame(summary.harder_suites(config, frames))
    same = [
        rate_text(stats.consistency(heldout, frames[f"{name}/paraphrase"]))
        if f"{name}/paraphrase" in frames
        else "n/a"
        for name, heldout in summary.systems_on(frames, "heldout").items()
    ]
    return table.assign(**{"Same verdict in other words": same})


def contradiction_sentence(frames: Frames, config: RunConfig) -> str:
    """Whose side the adapter takes when note and image disagree."""
    seen = (
        f"Training had {config.note_pairs:,} pairs of this kind."
        if config.note_pairs
        else "In training a note that contradicts the image was always an error."
    )
    frame = frames[f"{ADAPTER}/contradiction"]
    score = stats.score(frame)
    right, flagged = score["sensitivity"], score["specificity"]
    return (
        f"Where the note contradicts the image, the adapter recognises {rate_text(right)} of the treatments "
        f"that fit the image, and catches {rate_text(flagged)} of those that fit the note only. Whoever "
        "believes the note gets 0% of both; whoever calls every contradiction an error gets 0% and "
        f"100%. {seen}"
    )


def corruption(frames: Frames) -> Figure:
    """Accuracy of the adapter as the image gets worse, a panel for each kind of damage."""
    return plots.corruption_lines(summary.corruption_table(frames), clean_on_same_cases(frames))


def clean_on_same_cases(frames: Frames) -> dict:
    """The adapter's accuracy on the undamaged images of the very cases that were damaged."""
    views = summary.corruption_keys(frames, ADAPTER)
    ids = frames[views[0][2]]["id"]
    heldout = frames[f"{ADAPTER}/heldout"]
    return stats.score(heldout[heldout["id"].isin(ids)])["accuracy"]


def corruption_sentence(frames: Frames) -> str:
    """The damage that costs most, and where the adapter is still as good as on clean images."""
    table, clean = summary.corruption_table(frames), clean_on_same_cases(frames)
    worst = table.loc[table["accuracy"].idxmin()]
    mild = table.loc[table["severity"] == 1, "accuracy"].min()
    return (
        f"On the same {clean['n']:,} cases with clean images the adapter gets {rate_text(clean)}. The mildest "
        f"step of any damage leaves at least {percent(mild)}; the worst is {worst['kind']} at step "
        f"{worst['severity']} with {percent(worst['accuracy'])}."
    )


def calibration_table(frames: Frames, config: RunConfig) -> pd.DataFrame:
    """Calibration before and after one temperature, which the validation suite chose."""
    names = summary.figure_names(config)
    return pd.DataFrame(
        [
            {
                "System": names.get(row["system"], row["system"]),
                "Temperature": f"{row['temperature']:.2f}",
                "ECE before": f"{row['ece_before']:.3f}",
                "ECE after": f"{row['ece_after']:.3f}",
                "Brier before": f"{row['brier_before']:.3f}",
                "Brier after": f"{row['brier_after']:.3f}",
            }
            for row in summary.calibration_table(frames).to_dict(orient="records")
        ]
    )


def coverage(frames: Frames, config: RunConfig) -> Figure:
    """Accuracy on the cases of which a system is most certain, against how many those are."""
    graded = {name: f for name, f in named(frames, config).items() if summary.is_graded(f)}
    return plots.coverage_curve({name: stats.selective(f) for name, f in graded.items()})


def cost(frames: Frames, config: RunConfig) -> Figure:
    """Accuracy against seconds a case (and US dollars, where a price is known)."""
    names = summary.figure_names(config)
    table = summary.latency(frames)
    return plots.cost_latency(table.assign(system=[names.get(name, name) for name in table["system"]]))


def cost_sentence(frames: Frames, config: RunConfig) -> str:
    """What the slowest row costs in time, measured where."""
    table = summary.latency(frames).set_index("system")
    adapter = table.loc[ADAPTER, "seconds"]
    return (
        f"The adapter takes {1000 * adapter:,.1f}{SPACE}ms a case here, batched; local systems have no price a "
        "case, an API has. Rows share what was computed of an image, so the later of two rows with one tower is "
        "flattered; a row's first cases bear its loading and fitting."
    )


# --- images from elsewhere ------------------------------------------------------------------------


def foreign_table(frames: Frames) -> pd.DataFrame:
    """How many foreign and how many held-out images each rule refuses to judge."""
    return pd.DataFrame(
        [
            {
                "Rule": rule["rule"],
                "Foreign images refused": rate_text(rule["foreign"]),
                "Held-out images refused": rate_text(rule["heldout"]),
                "AUROC": f"{rule['auroc']:.3f}",
            }
            for rule in summary.abstention_rules(frames)
        ]
    )


def foreign_figure(frames: Frames) -> Figure:
    """Certainty on held-out and on foreign images, with the validation suite's threshold."""
    val, heldout, foreign = (frames[f"{ADAPTER}/{suite}"] for suite in ("val", "heldout", "ood"))
    limit = stats.abstention_threshold(val["p_correct"], val["verdict"] == "CORRECT", coverage=0.95)
    return plots.certainty_histogram(
        {"held-out images": heldout["p_correct"], "foreign images": foreign["p_correct"]}, limit
    )


def foreign_sentence(frames: Frames) -> str:
    """Which rule refuses more of the foreign images."""
    rules = summary.abstention_rules(frames)
    best = max(rules, key=lambda rule: rule["foreign"]["value"])
    shown = " and ".join(f"{r['rule']} refuses {percent(r['foreign']['value'])}" for r in rules)
    return (
        f"Of {best['foreign']['n']} foreign images, {shown}. Both thresholds are those that answer 95% "
        "of the validation suite. No verdict on a foreign image can be right, so none is scored."
    )


def tests_sentence(frames: Frames) -> str:
    """Whether the adapter is above every other row beyond chance."""
    tests = summary.adapter_tests(frames)
    below = [name for name, t in tests.items() if t["difference"] > 0 and t["p_holm"] < 0.01]
    rest = [
        f"{name} ({100 * t['difference']:+.1f} points, {p_text(t['p_holm'])})"
        for name, t in tests.items()
        if name not in below
    ]
    start = f"The adapter is above {len(below)} of {len(tests)} other rows at a Holm-corrected p < 0.01"
    return f"{start}." if not rest else f"{start}. Adapter minus the rest: {', '.join(rest)}."
