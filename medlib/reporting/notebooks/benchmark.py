"""What 08_benchmark shows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ADAPTER, RunConfig, files, run_dir
from medlib.data.synthetic.grammar import PAIR_KINDS
from medlib.evaluation import summary
from medlib.evaluation.results import Results
from medlib.reporting import plots
from medlib.reporting.show import ALPHA, TARGET
from medlib.stats.text import SPACE, difference_text, number, p_text, percent, points, rate_text, spread_text

API = "openai:gpt-4o"
API_HINT = f"costs money and sends the cases to another company: ask for it with `--model {API}`"


def ladder_sentence(scores: Mapping[str, dict], top: str | None = None, target: float = TARGET) -> str:
    """Whether a system (the last one by default) is above the target, and how good the best other one is."""
    top = top or list(scores)[-1]
    rate = scores[top]["accuracy"]
    if len(scores) < 2:
        return f"{top} gets {rate_text(rate)}; no other system was run."
    best = max((name for name in scores if name != top), key=lambda name: scores[name]["accuracy"]["value"])
    reading = f"not shown to be above the target of {percent(target)}"
    if rate["low"] > target:
        reading = f"above the target of {percent(target)}, and so is its whole interval"
    elif rate["high"] < target:
        reading = f"below the target of {percent(target)}, and so is its whole interval"
    elif rate["value"] >= target:
        reading = f"at the target of {percent(target)} or above, but its interval reaches below it"
    return (
        f"{top} gets {rate_text(rate)}: {reading}. The best other system is {best} with "
        f"{rate_text(scores[best]['accuracy'])}."
    )


def modality_sentence(scores: Mapping[str, dict], top: str | None = None) -> str:
    """Best and worst kind of image of a system, the last one by default."""
    name = top or list(scores)[-1]
    score = scores[name]
    rates = {m: r["accuracy"]["value"] for m, r in score["per_modality"].items()}
    worst, best = min(rates, key=lambda name: rates[name]), max(rates, key=lambda name: rates[name])
    if rates[worst] == rates[best]:
        return f"{name} does equally well on every kind of image ({percent(rates[best])})."
    fewest = min(r["accuracy"]["n"] for r in score["per_modality"].values())
    apart = f"{spread_text(score)}, points apart"
    if pd.isna(score["spread"]):
        apart = f"{points(100 * (rates[best] - rates[worst]))} points apart, which so few cases may give by chance"
    return (
        f"{name} does best on {best} ({percent(rates[best])}) and worst on {worst} "
        f"({percent(rates[worst])}): {apart}, in groups of {fewest:,} or more."
    )


def paired_tests(results: Results, config: RunConfig) -> pd.DataFrame:
    """The adapter against every other system on the held-out suite."""
    names = summary.figure_names(config)
    return pd.DataFrame(
        [
            {
                "Adapter against": names.get(name, name),
                "Difference (points)": difference_text(t),
                "Only adapter right": t["b"],
                "Only the other right": t["c"],
                "p, exact McNemar": p_text(t["p"]),
                "p, Holm": p_text(t["p_holm"]),
                "p, whole pairs, Holm": p_text(t["p_cluster_holm"]),
                "p, cells, Holm": p_text(t["p_cell_holm"]) if "p_cell_holm" in t else "n/a",
                "Better": "not shown"
                if t["p_cluster_holm"] >= ALPHA
                else ("adapter" if t["difference"] > 0 else "the other"),
            }
            for name, t in summary.adapter_tests(results).items()
        ]
    )


def tests_sentence(results: Results) -> str:
    """Whether the adapter is above every other system beyond chance."""
    tests = summary.adapter_tests(results)
    below = [name for name, t in tests.items() if summary.worst_p(t) < 0.01]
    rest = [
        f"{name} ({points(100 * t['difference'], sign=True)} points, {p_text(t['p_holm'])})"
        for name, t in tests.items()
        if name not in below
    ]
    start = (
        f"The adapter is above {len(below)} of {len(tests)} other systems at a Holm-corrected p < 0.01, by "
        "scenario, by whole pair and by cell"
    )
    return f"{start}." if not rest else f"{start}. Adapter minus the rest: {', '.join(rest)}."


def pair_table(results: Results, config: RunConfig) -> pd.DataFrame:
    """Counterfactual pairs with both members right, by kind of pair."""
    names, rows = summary.figure_names(config), []
    for system, frame in results.on("heldout").items():
        kinds = {"all pairs": frame} | {f"{kind} pairs": frame[frame["pair_kind"] == kind] for kind in PAIR_KINDS}
        rates = {label: summary.pairs_right(part) for label, part in kinds.items()}
        row = {label: f"{rate_text(rate)} of {rate['n']:,}" for label, rate in rates.items()}
        rows.append({"System": names.get(system, system)} | row)
    return pd.DataFrame(rows)


def pair_sentence(results: Results) -> str:
    """Pairs of the adapter that are right as a whole, beside its accuracy."""
    single = results.score(ADAPTER, "heldout")["accuracy"]["value"]
    if set(results.of(ADAPTER, "heldout")["pair_kind"]) == {"given"}:
        return "These cases have no twins: what counts as a pair here is a group, such as one patient's cases."
    return (
        f"The adapter gets {percent(single)} of the scenarios right, but "
        f"{rate_text(summary.pairs_right(results.of(ADAPTER, 'heldout')))} of the pairs as a whole."
    )


def power_sentence(score: Mapping, target: float = TARGET) -> str:
    """Cases needed to show an accuracy above the target."""
    needed = {value: stats.cases_needed(value, target) for value in (target + 0.02, target + 0.05)}
    cases = " and ".join(f"{n:,} if the true accuracy is {percent(v)}" for v, n in needed.items())
    value = score["accuracy"]["value"]
    own = (
        f"At the measured {percent(value)} it would take {stats.cases_needed(value, target):,}."
        if value > target
        else f"The measured {percent(value)} is not above the target, so no number of cases would do."
    )
    return (
        f"To show an accuracy above {percent(target)} (one-sided test at 5%, power 80%) takes "
        f"{cases}. {own} This suite has {score['n']:,}. {_worth(score)}"
    ).strip()


def _worth(score: Mapping) -> str:
    """How many independent cases the suite is worth, by the measured agreement within pairs and within cells."""
    worth = [
        f"about {score[key]['effective_n']:,.0f} independent ones by {name} ({score[key]['clusters']:,} of them)"
        for key, name in {"accuracy_clustered": "pair", "accuracy_by_cell": "cell"}.items()
        if key in score
    ]
    return (
        f"By how alike the verdicts are within them, its cases are worth {' and '.join(worth)}." if worth else ""
    )


def not_run(config: RunConfig) -> pd.DataFrame:
    """Systems that could not run, and why; no number is borrowed for them."""
    reasons = files.read_json(run_dir(config) / "metrics.json")["not_run"]
    if not any(name.startswith("openai:") for name in config.systems):
        reasons |= {API: API_HINT}
    return pd.DataFrame([{"System": name, "Result": "not run", "Why": why} for name, why in reasons.items()])


def significance(results: Results, config: RunConfig) -> Figure | None:
    """Every pair of systems on the held-out suite: difference and Holm-corrected McNemar test."""
    systems, names = results.systems("heldout"), summary.figure_names(config)
    if len(systems) < 2:
        return None
    tests = summary.every_pair(results).replace({"first": names, "second": names})
    return plots.significance_matrix(tests, [names.get(name, name) for name in systems])


def claims_sentence(results: Results) -> str:
    """How many of the claims hold, and which do not."""
    table = summary.claims_table(results)
    missed = table.loc[table["Met"] == "no", "Claim"].tolist()
    if not missed:
        return f"All {len(table)} claims hold on this run."
    return f"{len(table) - len(missed)} of {len(table)} claims hold on this run. **Missed:** {'; '.join(missed)}."


def stress_table(results: Results, config: RunConfig) -> pd.DataFrame:
    """Every system on the harder suites beside the plain one, and how often other words change its verdict."""
    same = [
        rate_text(stats.consistency(heldout, results.of(name, "paraphrase")))
        if results.has(name, "paraphrase")
        else "n/a"
        for name, heldout in results.on("heldout").items()
    ]
    return summary.harder_suites(config, results).assign(**{"Same verdict in other words": same})


def contradiction_sentence(results: Results, config: RunConfig) -> str:
    """Whose side the adapter takes when note and image disagree."""
    training = (
        f"Training had {config.note_pairs:,} pairs of this kind."
        if config.note_pairs
        else "In training a note that contradicts the image was always an error."
    )
    if not results.has(ADAPTER, "contradiction"):
        return "This data set has no cases whose note contradicts the image, and none can be made of it."
    score = results.score(ADAPTER, "contradiction")
    return (
        "Where the note contradicts the image, the adapter recognises "
        f"{rate_text(score['sensitivity'])} of the treatments that fit the image, and catches "
        f"{rate_text(score['specificity'])} of those that fit the note only. A system that believes the note "
        f"gets 0% of both; one that calls every contradiction an error gets 0% and 100%. {training}"
    )


def corruption(results: Results) -> Figure:
    """Accuracy of the adapter as the image gets worse, a panel for each kind of damage."""
    return plots.corruption_lines(summary.corruption_table(results), clean_on_same_cases(results))


def clean_on_same_cases(results: Results) -> dict:
    """The adapter's accuracy on the undamaged images of the very cases that were damaged."""
    view = summary.corruption_views(results, ADAPTER)[0]
    heldout = results.of(ADAPTER, "heldout")
    return stats.score(heldout[heldout["id"].isin(results.of(ADAPTER, view)["id"])])["accuracy"]


def corruption_sentence(results: Results) -> str:
    """The damage that costs most, and where the adapter is still as good as on clean images."""
    table, clean = summary.corruption_table(results), clean_on_same_cases(results)
    worst = table.loc[table["accuracy"].idxmin()]
    mild = table.loc[table["severity"] == 1, "accuracy"].min()
    return (
        f"On the same {clean['n']:,} cases with clean images the adapter gets {rate_text(clean)}. The mildest "
        f"step of any damage leaves at least {percent(mild)}; the worst is {worst['kind']} at step "
        f"{worst['severity']} with {percent(worst['accuracy'])}."
    )


def calibration_table(results: Results, config: RunConfig) -> pd.DataFrame:
    """Calibration before and after one temperature, which the validation suite chose."""
    names, table = summary.figure_names(config), summary.calibration_table(results)
    return pd.DataFrame(
        {
            "System": [names.get(name, name) for name in table["system"]],
            "Temperature": table["temperature"].map("{:.2f}".format),
            "ECE before": table["ece_before"].map(number),
            "ECE after": table["ece_after"].map(number),
            "Brier before": table["brier_before"].map(number),
            "Brier after": table["brier_after"].map(number),
            "Log loss before": table["loss_before"].map("{:.4f}".format),
            "Log loss after": table["loss_after"].map("{:.4f}".format),
        }
    )


def coverage(results: Results, config: RunConfig) -> Figure:
    """Accuracy on the cases of which a system is most certain, against how many those are."""
    names = summary.figure_names(config)
    graded = {names.get(s, s): frame for s, frame in results.on("heldout").items() if summary.is_graded(frame)}
    return plots.coverage_curve({name: stats.selective(frame) for name, frame in graded.items()})


def cost(results: Results, config: RunConfig) -> Figure:
    """Accuracy against seconds per case (and US dollars, where a price is known)."""
    names, table = summary.figure_names(config), summary.latency(results)
    return plots.cost_latency(table.assign(system=[names.get(name, name) for name in table["system"]]))


def cost_sentence(results: Results) -> str:
    """What the adapter costs in time, and what the comparison leaves out."""
    seconds = results.of(ADAPTER, "heldout")["seconds"].mean()
    return (
        f"The adapter takes {number(1000 * seconds, ',.1f')}{SPACE}ms per case here, batched. Local systems have "
        "no per-case price, APIs do. Systems that share a vision tower share its cache, so the second looks "
        "faster than it is; the first cases of a system include its loading and fitting."
    )


# --- images from elsewhere ------------------------------------------------------------------------


def foreign_table(results: Results) -> pd.DataFrame:
    """How many foreign and how many held-out images each rule refuses to judge."""
    return pd.DataFrame(
        [
            {
                "Rule": rule["rule"],
                "Foreign images refused": rate_text(rule["foreign"]),
                "Held-out images refused": rate_text(rule["heldout"]),
                "AUROC": number(rule["auroc"]),
            }
            for rule in summary.abstention_rules(results)
        ]
    )


def foreign_figure(results: Results) -> Figure:
    """Certainty on held-out and on foreign images, with the validation suite's threshold."""
    val, heldout, foreign = (results.of(ADAPTER, suite) for suite in ("val", "heldout", "ood"))
    limit = stats.abstention_threshold(val["p_correct"], val["verdict"] == "CORRECT", coverage=0.95)
    return plots.certainty_histogram(
        {"held-out images": heldout["p_correct"], "foreign images": foreign["p_correct"]}, limit
    )


def foreign_sentence(results: Results) -> str:
    """Which rule refuses more of the foreign images."""
    rules = summary.abstention_rules(results)
    shares = " and ".join(f"{rule['rule']} refuses {percent(rule['foreign']['value'])}" for rule in rules)
    return (
        f"Of {rules[0]['foreign']['n']} foreign images, {shares}. Both thresholds are those that answer 95% "
        "of the validation suite. No verdict on a foreign image can be right, so none is scored."
    )
