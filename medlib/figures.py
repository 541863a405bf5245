"""What the notebooks show: tables, sentences and pictures made from the results of a run.

Between `medlib.workflow`, which computes, and `medlib.plots`, which draws. Every sentence is
written from the numbers it states, so that it reads right whatever they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from medlib import (
    audit,
    benchmark,
    draw,
    evaluation,
    grammar,
    lexicon,
    metrics,
    models,
    plots,
    workflow,
)
from medlib.config import RunConfig
from medlib.data import Suite
from medlib.schema import MODALITIES, Scenario, load_image
from medlib.systems import text
from medlib.workflow import ADAPTER, BASE

BAR = benchmark.BARS["accuracy"]
ALPHA = 0.05  # below this a p-value is called evidence
SPACE = "\N{NO-BREAK SPACE}"
UNBROKEN = re.compile(r" (?=%)|(?<=,) (?=[-+.\d]+\])")  # the spaces inside "1.2 % [0.1, 2.3]"

API_ROW = "openai:gpt-4o"
NOT_ASKED = {
    API_ROW: f"costs money and sends the cases away: ask for it with `--model {API_ROW}`",
    "reward model + PPO": "no such training in this project yet",
}


# ---- words and numbers ---------------------------------------------------------------------------


def percent(value: float) -> str:
    """``91.2 %`` of a fraction; ``n/a`` if it is undefined."""
    return "n/a" if pd.isna(value) else f"{100 * value:.1f}{SPACE}%"


def rate_text(rate: Mapping) -> str:
    """A rate of `medlib.metrics.proportion` with its interval."""
    if not rate["n"]:
        return "n/a (no case)"
    low, high = (f"{100 * rate[end]:.1f}" for end in ("low", "high"))
    return f"{percent(rate['value'])} [{low},{SPACE}{high}]"


def p_text(p: float) -> str:
    """A p-value to two digits, never as zero."""
    return f"p{SPACE}<{SPACE}0.0001" if p < 0.0001 else f"p{SPACE}={SPACE}{p:.2g}"


def disclaimer(config: RunConfig) -> str:
    """What the numbers of this run may be used for."""
    if models.is_standin(config.model):
        return (
            "> **Stand-in model, synthetic pictures.** This run used a small stand-in that knows "
            "no medicine. Its numbers show that the method works from data to report; they say "
            "nothing about MedGemma or about patients. Not a medical device."
        )
    return (
        f"> **Research only.** This run used {workflow.model_label(config)}. The held-out suite "
        "has synthetic pictures, so its numbers say nothing about patients. Not a medical device."
    )


def table(frame: pd.DataFrame, name: str = "table") -> HTML:
    """A table with wrapped text, words to the left and numbers to the right.

    Parameters
    ----------
    frame : DataFrame
    name : str
        Prefix of its styles, so that two tables of one page do not share them.
    """
    columns = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]
    numbers = [f".col{i}" for i, column in enumerate(frame.columns) if column in columns]
    styles = [
        {"selector": "th, td", "props": "text-align: left; vertical-align: top; "
                                        "white-space: normal; max-width: 34em"},
        *({"selector": f"td{n}, th{n}", "props": "text-align: right"} for n in numbers),
    ]
    frame = frame.map(lambda cell: UNBROKEN.sub(SPACE, cell) if isinstance(cell, str) else cell)
    styler = frame.style.hide(axis="index").set_table_styles(styles).format(
        na_rep="n/a", thousands=",", precision=3, escape="html")
    styler.cell_ids = False
    return HTML(styler.to_html(table_uuid=name))


# ---- scenarios and pictures ----------------------------------------------------------------------


def one_per_modality(scenarios: list[Scenario]) -> list[Scenario]:
    """The first scenario of each modality, verdicts in turn, so that both are seen."""
    chosen = []
    for number, modality in enumerate(MODALITIES):
        here = [s for s in scenarios if s.modality == modality]
        wanted = ("CORRECT", "ERROR")[number % 2]
        chosen += [s for s in here if s.verdict == wanted][:1] or here[:1]
    return chosen


def counterfactual_pair(scenarios: list[Scenario], kind: str = "image") -> list[Scenario]:
    """The two members of the first pair of a kind; an empty list if there is none."""
    members = [s for s in scenarios if s.factors.get("pair_kind") == kind]
    return [s for s in members if s.factors["pair"] == members[0].factors["pair"]]


def banner(config: RunConfig, is_core: bool) -> str:
    """What the pictures of a suite are; only core24 can have real ones."""
    if is_core and config.images_dir:
        return f"pictures from {Path(config.images_dir).name}"
    return "synthetic"


def scenario_sheet(suite: Suite, scenarios: list[Scenario], label: str = "synthetic") -> Figure:
    """Pictures of scenarios, each with note, treatment and gold verdict below."""
    pictures = [load_image(suite.images_dir / s.image) for s in scenarios]
    captions = [f"{s.modality}. Note: {s.finding}. Treatment: {s.treatment}. Gold verdict: "
                f"{s.verdict}" for s in scenarios]
    return plots.contact_sheet(pictures, captions, columns=2, banner=label)


def finding_sheet(modality: str, each: int = 2) -> Figure:
    """Examples of all that the generator can draw in one modality."""
    labels = {f.name: f.label for f in lexicon.findings_of(modality)}
    drawn = [(finding, number) for finding in draw.FINDINGS[modality] for number in range(each)]
    seeds = [grammar.SEED_BASE["train"] + number for _, number in drawn]
    pictures = [draw.draw(modality, f, seed) for (f, _), seed in zip(drawn, seeds)]
    captions = [labels.get(finding, finding) for finding, _ in drawn]
    return plots.contact_sheet(pictures, captions, columns=4, banner=f"synthetic {modality}")


def base_answers(config: RunConfig, suite: Suite, scenarios: list[Scenario]) -> pd.DataFrame:
    """What the untouched model says to a few scenarios, beside the gold verdict."""
    processor, base = models.load_for(config)
    asked = replace(suite, scenarios=scenarios)
    answered = evaluation.free_answers(base, processor, asked)
    answered["p_correct"] = evaluation.p_correct(base, processor, asked)
    frame = evaluation.predictions(scenarios, answered)
    return pd.DataFrame({
        "Scenario": frame["id"], "Gold verdict": frame["verdict"],
        "The model's own words": [text.strip() or "(nothing)" for text in frame["generated"]],
        "Verdict read from them": frame["parsed"].fillna("none"),
        "P(CORRECT) by likelihood": frame["p_correct"].round(3),
    })


def answers_sentence(answers: pd.DataFrame) -> str:
    """How many of the free answers are a verdict at all, and how many are the right one."""
    read, gold = answers["Verdict read from them"], answers["Gold verdict"]
    return (
        f"Of {len(answers)} free answers {(read != 'none').sum()} can be read as a verdict and "
        f"{(read == gold).sum()} agree with the gold verdict. So few cases show what an answer "
        "looks like, not how good the model is; `03_evaluate` measures that."
    )


# ---- data ----------------------------------------------------------------------------------------


def core_counts(scenarios: list[Scenario]) -> pd.DataFrame:
    """Cases by modality: verdicts, error types and severities that occur, cost of the errors."""
    def row(rows: list[Scenario]) -> dict:
        counted = {"Cases": len(rows), "CORRECT": sum(s.verdict == "CORRECT" for s in rows)}
        counted |= {name.replace("_", " "): sum(s.error_type == name for s in rows)
                    for name in get_args(Scenario.model_fields["error_type"].annotation)[1:]}
        counted |= {name: sum(s.severity == name for s in rows)
                    for name in ("moderate", "high", "critical")}
        return counted | {"At stake, US dollars": sum(s.cost_impact for s in rows)}

    rows = [{"Modality": m} | row([s for s in scenarios if s.modality == m]) for m in MODALITIES]
    counts = pd.DataFrame([*rows, {"Modality": "all"} | row(scenarios)])
    return counts.loc[:, (counts != 0).any()]  # no column for a kind of error that does not occur


def core_list(scenarios: list[Scenario]) -> pd.DataFrame:
    """Every case in words."""
    return pd.DataFrame([
        {"Modality": s.modality, "Finding": s.finding, "Treatment": s.treatment,
         "Verdict": s.verdict, "Error": "" if s.verdict == "CORRECT" else
         f"{s.error_type.replace('_', ' ')}, {s.severity}", "US dollars": s.cost_impact}
        for s in scenarios
    ])


def issues(found: list[audit.Issue]) -> pd.DataFrame:
    """The audit's findings without their evidence, worst first."""
    frame = audit.audit_table(found)
    return pd.DataFrame({"Issue": frame["severity"] + ": " + frame["check"],
                         "What was found": frame["message"], "Files": frame["files"]})


def audit_sentence(found: list[audit.Issue]) -> str:
    """Count of errors and warnings, and what they mean for a score."""
    counts = {level: sum(i.severity == level for i in found) for level in ("error", "warning")}
    meaning = "Nothing of this speaks against a score on these cases."
    if counts["error"]:
        meaning = "After an error, a high score on these cases proves little."
    elif counts["warning"]:
        meaning = "No score on these cases should be quoted without the warnings."
    return (f"The audit finds **{counts['error']} errors and {counts['warning']} warnings**. "
            f"{meaning}")


def shortcut_table(scenarios: list[Scenario]) -> pd.DataFrame:
    """Verdicts by wording of the finding: normal or benign, or abnormal."""
    wording = ["normal or benign" if audit.is_normal_or_benign(s.finding) else "abnormal"
               for s in scenarios]
    verdicts = [s.verdict for s in scenarios]
    counts = pd.crosstab(pd.Series(wording, name="Wording of the finding"), pd.Series(verdicts))
    return counts.rename_axis(columns=None).reset_index()


def shortcut_sentence(scenarios: list[Scenario]) -> str:
    """How often the wording of the finding alone gives the verdict."""
    counts = shortcut_table(scenarios).iloc[:, 1:]
    right = int(counts.max(axis=1).sum())
    end = ("**Nobody needs the picture here**: this set can check an auditor, it cannot prove that "
           "one looks." if right == len(scenarios) else
           "The rest needs more than this one word.")
    return (f"Whoever reads only whether the finding sounds normal gets {right} of "
            f"{len(scenarios)} verdicts right ({percent(right / len(scenarios))}). {end}")


def composition(scenarios: list[Scenario]) -> pd.DataFrame:
    """Scenarios by source of the verdict and by verdict."""
    source = pd.Series([s.factors["source"].replace("_", " ") for s in scenarios], name="Source")
    counts = pd.crosstab(source, pd.Series([s.verdict for s in scenarios]))
    return counts.rename_axis(columns=None).reset_index()


def overlap_table(shared: Mapping[str, int]) -> pd.DataFrame:
    """Of `medlib.data.overlap`."""
    return pd.DataFrame({"Compared": [f"{name}s" for name in shared],
                         "In training and in test": list(shared.values())})


def overlap_sentence(shared: Mapping[str, int]) -> str:
    """Whether the test suite is new to a model trained on the training suite."""
    if not any(shared.values()):
        return "Nothing of the test suite occurs in training: no phrase, no picture, no scenario."
    leaks = ", ".join(f"{count} {name}s" for name, count in shared.items() if count)
    return f"**The test suite is not new**: {leaks} occur in training, so its scores are too good."


def read_words_only(train: list[Scenario], test: list[Scenario], seed: int = 0) -> pd.DataFrame:
    """Predictions of the bag of words (`medlib.systems.text`) on ``test`` after reading ``train``."""
    probe = text.fit_keywords(train, seed)
    p_correct = probe.predict_proba(text.words(test))[:, 1]
    return evaluation.predictions(test, pd.DataFrame({"p_correct": p_correct}))


def words_sentence(blind: pd.DataFrame) -> str:
    """What a reader of the words alone scores, and where only the picture helps."""
    everything = metrics.score(blind)["accuracy"]
    only_picture = blind[blind["pair_kind"] == "image"]
    start = f"Words alone give {rate_text(everything)} of the verdicts of the held-out suite"
    if only_picture.empty:
        return f"{start}."
    share = metrics.score(only_picture)["accuracy"]["value"]
    return (f"{start}, and {percent(share)} where only the picture changes (chance is 50 %). An "
            "auditor that wants more than the words give has to look.")


# ---- training ------------------------------------------------------------------------------------


def facts(values: Mapping, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A mapping as a table of two columns; ``names`` chooses, orders and words the rows."""
    names = names or {name: name.replace("_", " ") for name in values}
    return pd.DataFrame({"Fact": list(names.values()),
                         "Value": [_fact(values.get(name)) for name in names]})


def _fact(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else (
        f"{value:,}" if isinstance(value, int) else str(value))


TRAINING_FACTS = {
    "trainable_parameters": "Trainable parameters", "total_parameters": "All parameters",
    "trainable_percent": "Trainable, per cent", "epochs_run": "Epochs run",
    "steps": "Optimizer steps", "train_loss": "Mean training loss",
    "best_eval_loss": "Best validation loss", "samples_per_second": "Scenarios per second",
    "wall_seconds": "Seconds in all", "peak_memory_mib": "Peak memory, MiB", "device": "Device",
    "resumed": "Resumed after an interruption",
}


def loss_sentence(metadata: Mapping) -> str:
    """Whether validation loss fell, and where it was best."""
    losses = [(e["step"], e["eval_loss"]) for e in metadata["history"] if e.get("eval_loss")]
    if not losses:
        return "There was no validation suite, so nothing says when the model began to overfit."
    (_, first), (step, best) = losses[0], min(losses, key=lambda entry: entry[1])
    last_step, last = losses[-1]
    if step == last_step:
        end = "It was still at its best at the end: more epochs may help."
    else:
        end = f"It ended at {last:.3f}; the adapter kept is the one of step {step:,}."
    return (f"Loss on the validation suite went from {first:.3f} at its first measurement to "
            f"{best:.3f} at step {step:,}. {end}")


# ---- evaluation ----------------------------------------------------------------------------------


def results(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Base and adapter on every suite."""
    names = benchmark.figure_names(config)
    parts = []
    for suite, label in SUITES.items():
        scores = {names[s]: metrics.score(frames[f"{s}/{suite}"])
                  for s in (BASE, ADAPTER) if f"{s}/{suite}" in frames}
        if scores:
            part = metrics.results_table(scores).drop(columns="n")
            parts.append(part.assign(Suite=label))
    columns = ["Suite", *parts[0].columns.drop("Suite")]
    return pd.concat(parts, ignore_index=True)[columns]


SUITES = {
    "heldout": "Held-out suite", "core24_val": "core24, 8 validation cases",
    "core24_folds": "core24, all 24 (adapter: leave one picture out)",
}


def paired_sentence(a: pd.DataFrame, b: pd.DataFrame, name_a: str, name_b: str) -> str:
    """Exact McNemar test of two systems in words."""
    test = metrics.compare(a, b)
    reading = "**chance explains a difference of this size**; the data do not tell them apart"
    if test["p"] < ALPHA:
        better = name_a if test["difference"] > 0 else name_b
        reading = f"chance does not explain this: **{better} is better** on these scenarios"
    return (
        f"On {test['n']:,} scenarios, {name_a} is right in {percent(test['accuracy_a'])} and "
        f"{name_b} in {percent(test['accuracy_b'])}: a difference of "
        f"{100 * test['difference']:+.1f} points [{100 * test['low']:+.1f}, "
        f"{100 * test['high']:+.1f}]. {test['b']:,} scenarios only {name_a} gets right, "
        f"{test['c']:,} only {name_b} (exact McNemar test, {p_text(test['p'])}): {reading}."
    )


def small_sample_sentence(score: Mapping, bar: float = BAR) -> str:
    """What so few cases can prove, and what they could prove at best."""
    rate, n = score["accuracy"], score["n"]
    best = metrics.proportion(n, n)["low"]
    limit = "enough to show" if best > bar else "too few to show"
    return (
        f"{round(rate['value'] * n)} of {n} cases are right; the true accuracy may lie anywhere "
        f"from {percent(rate['low'])} to {percent(rate['high'])}. Even {n} of {n} would only prove "
        f"more than {percent(best)}: {n} cases are **{limit}** an accuracy above {percent(bar)}."
    )


def verdict_sentence(score: Mapping) -> str:
    """Valid treatments recognised and errors caught, and a warning about a constant answer."""
    share = score["constant_answer_share"]
    text = (f"The adapter recognises {rate_text(score['sensitivity'])} of the valid treatments and "
            f"catches {rate_text(score['specificity'])} of the errors.")
    if share > 0.9:
        text += (f" {percent(share)} of its answers are the same word: **it hardly "
                 "discriminates**, whatever its accuracy.")
    return text


def generation(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Free answers beside the likelihood verdicts, on the held-out suite."""
    rows = []
    for system in (BASE, ADAPTER):
        frame = frames[f"{system}/heldout"]
        if "generated" in frame:
            frame = frame if "parsed" in frame else frame.assign(parsed=None)
            score = metrics.score(frame)
            rows.append({
                "System": benchmark.figure_names(config)[system],
                "Answers that are a verdict": rate_text(score["generation"]["parse_rate"]),
                "Right, free answer": rate_text(score["generation"]["accuracy"]),
                "Right, by likelihood": rate_text(score["accuracy"]),
                "Both agree": percent((frame["parsed"] == frame["predicted"]).mean()),
            })
    return pd.DataFrame(rows)


def generation_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Whether the adapter says what it thinks."""
    frame = frames[f"{ADAPTER}/heldout"]
    if "generated" not in frame:
        return "Free answers were switched off for this run (`generate`)."
    agree = (frame.get("parsed", pd.Series(index=frame.index)) == frame["predicted"]).mean()
    return (f"In {percent(agree)} of the scenarios the adapter writes the verdict that it also "
            "finds more likely. " + ("The two readings can be used for one another."
            if agree > 0.98 else "**What it writes is not what it finds likelier**: "
            "the tables that follow use the likelihood."))


ABLATION_NAMES = {
    None: "picture and words", "text_only": "words only, grey picture",
    "image_only": "picture only, words withheld", "swapped": "words and a wrong picture",
    "masked_words": "labelling words blanked",
}


def ablation_frames(
    frames: Mapping[str, pd.DataFrame], pair_kind: str | None = None
) -> dict[str, pd.DataFrame]:
    """Predictions of base and adapter, with parts of the input withheld, by name of the variant.

    ``pair_kind`` limits them to one kind of pair, such as ``image``.
    """
    keys = {"untouched base": f"{BASE}/heldout"}
    for ablation, name in ABLATION_NAMES.items():
        system = f"{ADAPTER} {ablation}" if ablation else ADAPTER
        keys[f"adapter: {name}"] = f"{system}/heldout"
    chosen = {name: frames[key] for name, key in keys.items() if key in frames}
    if pair_kind:
        chosen = {name: f[f["pair_kind"] == pair_kind] for name, f in chosen.items()}
    return {name: frame for name, frame in chosen.items() if len(frame)}


def ablation_figure(frames: Mapping[str, pd.DataFrame], pair_kind: str | None = None) -> Figure:
    """Accuracy bars of `ablation_frames`."""
    title = "What each part of the input brings" if not pair_kind else (
        "The same, on the pairs that only the picture decides" if pair_kind == "image" else
        f"The same, on the {pair_kind} pairs")
    scores = {name: metrics.score(f) for name, f in ablation_frames(frames, pair_kind).items()}
    return plots.ablation_bars(scores, title=title)


def picture_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Whether the adapter uses the picture, read from the pairs that only the picture decides."""
    chosen = ablation_frames(frames, "image")
    full, words = (chosen.get(f"adapter: {ABLATION_NAMES[a]}") for a in (None, "text_only"))
    if full is None:
        return "The held-out suite has no pair that only the picture decides."
    rate = rate_text(metrics.score(full)["accuracy"])
    start = f"On the {len(full):,} scenarios that only the picture decides, the adapter gets {rate}"
    if words is None:
        return f"{start}; chance is 50 %. The ablations were switched off for this run."
    test = metrics.compare(full, words)
    seen = test["p"] < ALPHA and test["difference"] > 0
    reading = "So **the picture decides some of its verdicts**" if seen else (
        "So **nothing here shows that it uses the picture**")
    return (f"{start}, and {percent(test['accuracy_b'])} with the picture greyed out (chance is "
            f"50 %; exact McNemar test, {p_text(test['p'])}). {reading}.")


def targets_sentence(bars: pd.DataFrame) -> str:
    """How many targets are met."""
    missed = bars.loc[bars["Met"] != "yes", "Figure"].str.lower().tolist()
    if not missed:
        return f"All {len(bars)} targets are met on this suite."
    met = len(bars) - len(missed)
    return f"{met} of {len(bars)} targets are met; not met: {', '.join(missed)}."


# ---- benchmark -----------------------------------------------------------------------------------


def ladder(frames: Mapping[str, pd.DataFrame], config: RunConfig, suite: str = "heldout") -> dict:
    """Scores of the ladder under names that a reader knows, lowest rung first."""
    names = benchmark.figure_names(config)
    return {names.get(name, name): s for name, s in benchmark.scores_on(frames, suite).items()}


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
    return (f"{top} gets {rate_text(rate)}: {reading}. The best other row is {best} with "
            f"{rate_text(scores[best]['accuracy'])}.")


def modality_sentence(scores: Mapping[str, dict], top: str | None = None) -> str:
    """Best and worst kind of picture of a row, the last one by default."""
    name = top or list(scores)[-1]
    score = scores[name]
    rates = {m: r["accuracy"]["value"] for m, r in score["per_modality"].items()}
    worst, best = min(rates, key=rates.get), max(rates, key=rates.get)
    if rates[worst] == rates[best]:
        return f"{name} does equally well on every kind of picture ({percent(rates[best])})."
    return (f"{name} does best on {best} ({percent(rates[best])}) and worst on {worst} "
            f"({percent(rates[worst])}): {score['spread']:.1f} points apart, in groups of "
            f"{min(r['accuracy']['n'] for r in score['per_modality'].values()):,} or more.")


def paired_tests(config: RunConfig) -> pd.DataFrame:
    """The adapter against every rung below, as `medlib.benchmark` wrote it to metrics.json."""
    tests = json.loads((workflow.run_dir(config) / "metrics.json").read_text())["tests"]
    names = benchmark.figure_names(config)
    return pd.DataFrame([
        {"Adapter against": names.get(name, name),
         "Difference (points)": f"{100 * t['difference']:+.1f} [{100 * t['low']:+.1f}, "
                                f"{100 * t['high']:+.1f}]",
         "Only adapter right": t["b"], "Only the other right": t["c"],
         "p, exact McNemar": p_text(t["p"]), "p, Holm": p_text(t["p_holm"]),
         "p, whole pairs, Holm": p_text(t["p_cluster_holm"]),
         "Better": "not shown" if t["p_holm"] >= ALPHA else
         ("adapter" if t["difference"] > 0 else "the other")}
        for name, t in tests.items()
    ])


def pair_table(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Counterfactual pairs with both members right, by kind of pair."""
    names, rows = benchmark.figure_names(config), []
    for system, frame in benchmark.systems_on(frames, "heldout").items():
        counts = {"all pairs": evaluation.pair_accuracy(frame)}
        counts |= {f"{kind} pairs": evaluation.pair_accuracy(frame[frame["pair_kind"] == kind])
                   for kind in grammar.PAIR_KINDS}
        rows.append({"System": names.get(system, system)} | {
            label: rate_text(metrics.proportion(right, pairs)) + f" of {pairs:,}"
            for label, (right, pairs) in counts.items()
        })
    return pd.DataFrame(rows)


def pair_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Pairs of the adapter that are right as a whole, beside its accuracy."""
    frame = frames[f"{ADAPTER}/heldout"]
    rate = metrics.proportion(*evaluation.pair_accuracy(frame))
    single = metrics.score(frame)["accuracy"]["value"]
    return (f"The adapter gets {percent(single)} of the scenarios right, but "
            f"{rate_text(rate)} of the pairs as a whole.")


def power_sentence(score: Mapping, bar: float = BAR) -> str:
    """Cases that it takes to show an accuracy above the bar."""
    needed = {value: metrics.cases_needed(value, bar) for value in (bar + 0.02, bar + 0.05)}
    shown = " and ".join(f"{n:,} if the true accuracy is {percent(v)}" for v, n in needed.items())
    value = score["accuracy"]["value"]
    own = (f"At the measured {percent(value)} it would take {metrics.cases_needed(value, bar):,}."
           if value > bar else
           f"The measured {percent(value)} is not above the bar, so no number of cases would do.")
    return (f"To show an accuracy above {percent(bar)} (one-sided test at 5 %, power 80 %) takes "
            f"{shown}. {own} This suite has {score['n']:,}; the two members of a pair share words "
            "or picture, so they count for somewhat less than as many independent cases.")


def not_run(config: RunConfig) -> pd.DataFrame:
    """Rows that were left out, and why; no number is borrowed for them."""
    reasons = json.loads((workflow.run_dir(config) / "metrics.json").read_text())["not_run"]
    asked = {name.partition(":")[0] for name in config.systems}
    reasons |= {name: why for name, why in NOT_ASKED.items() if name.partition(":")[0] not in asked}
    return pd.DataFrame([{"System": name, "Result": "not run", "Why": why} for name, why in reasons.items()])


# ---- errors --------------------------------------------------------------------------------------


def with_factors(frame: pd.DataFrame, scenarios: list[Scenario]) -> pd.DataFrame:
    """Predictions with what the picture shows and what the scenario says, by id."""
    known = pd.DataFrame([
        {"id": s.id, "image_finding": f"{s.modality}: {s.factors.get('image_finding', 'unknown')}",
         "finding": s.finding, "treatment": s.treatment, "image": s.image}
        for s in scenarios
    ])
    return frame.merge(known, on="id", how="left", validate="one_to_one")


GROUPS = {"source": "Source of the verdict", "pair_kind": "Kind of pair", "modality": "Modality",
          "image_finding": "What the picture shows"}


def group_figure(frame: pd.DataFrame, column: str) -> Figure:
    """Accuracy bars of every group of a column, worst first."""
    groups = metrics.by_group(frame, column).sort_values("accuracy")
    scores = {
        str(row[column]).replace("_", " "): {"accuracy": {
            "value": row["accuracy"], "n": row["n"], "low": row["low"], "high": row["high"]}}
        for _, row in groups.iterrows()
    }
    return plots.ablation_bars(scores, title=GROUPS.get(column, column))


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What solving each group would buy: its share of all misses, in points of accuracy."""
    parts = []
    for column, label in GROUPS.items():
        part = metrics.by_group(frame, column).rename(columns={column: "Group"})
        parts.append(part.assign(Grouped=label, Group=part["Group"].str.replace("_", " ")))
    groups = pd.concat(parts, ignore_index=True)
    misses = (groups["n"] * (1 - groups["accuracy"])).round().astype(int)
    right = int((frame["verdict"] == frame["predicted"]).sum())
    found = pd.DataFrame({
        "Grouped by": groups["Grouped"], "Group": groups["Group"], "n": groups["n"],
        "Misses": misses, "Accuracy there": groups["accuracy"].map(percent),
        "Accuracy of all, were it solved": ((right + misses) / len(frame)).map(percent),
        "Points gained": (100 * misses / len(frame)).map("{:.1f}".format),
    })
    return found.sort_values("Misses", ascending=False, kind="stable").reset_index(drop=True)


def gain_sentence(gained: pd.DataFrame) -> str:
    """Which group to work on first, counting error sources only."""
    sources = gained[gained["Grouped by"] == GROUPS["source"]]
    if not sources["Misses"].sum():
        return "There are no misses on this suite: it is too easy to show what to work on next."
    first = sources.iloc[0]
    return (f"The source with most misses is **{first['Group']}**: {first['Misses']:,} of "
            f"{first['n']:,} scenarios there are wrong. Solving that group alone would add "
            f"{first['Points gained']} points.")


def harm(scores: Mapping[str, dict]) -> pd.DataFrame:
    """Critical errors let through, and dollars lost, by system."""
    return pd.DataFrame([
        {"System": name,
         "Critical errors missed": f"{s['critical_misses']['count']:,} of "
                                   f"{s['critical_misses']['n']:,}",
         "True share at most (95 %)": percent(s["critical_misses"]["upper"]),
         "US dollars lost per 1,000 decisions": round(s["expected_cost"]["per_1000"]),
         "Valid treatments flagged": percent(1 - s["sensitivity"]["value"])}
        for name, s in scores.items()
    ])


def harm_sentence(score: Mapping) -> str:
    """The critical errors that got through, with the limit that none of them would leave."""
    missed = score["critical_misses"]
    if not missed["n"]:
        return "The suite has no critical error, so nothing is known about those."
    return (f"The adapter lets {missed['count']:,} of {missed['n']:,} critical errors through; the "
            f"true share may be as high as {percent(missed['upper'])}. Missed errors would cost "
            f"${score['expected_cost']['per_1000']:,.0f} per 1,000 decisions at the costs that the "
            "scenarios state.")


def calibration_sentence(frame: pd.DataFrame, sure: float = 0.9) -> str:
    """How often the model is right where it is sure."""
    p = frame["p_correct"]
    certain = frame[(p >= sure) | (p <= 1 - sure)]
    error = metrics.score(frame)["ece"]
    if certain.empty:
        return (f"Calibration error {error:.3f}. The model is never {percent(sure)} sure of "
                "anything, so no threshold sorts out the safe verdicts.")
    hits = int((certain["verdict"] == certain["predicted"]).sum())
    right = metrics.proportion(hits, len(certain))
    verb = "is **overconfident**" if right["high"] < sure else "keeps what it promises"
    return (f"Calibration error {error:.3f} (0 is perfect). Where the model is at least "
            f"{percent(sure)} sure ({len(certain):,} of {len(frame):,} scenarios) it is right in "
            f"{rate_text(right)}: there it {verb}.")


def reliance_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """What can be scored without the picture, or without the words."""
    chosen = ablation_frames(frames)
    rates = {name: metrics.score(f)["accuracy"] for name, f in chosen.items()}
    words, picture, swapped = (
        rates.get(f"adapter: {ABLATION_NAMES[a]}") for a in ("text_only", "image_only", "swapped"))
    full = rates[f"adapter: {ABLATION_NAMES[None]}"]
    if not (words and picture and swapped):
        return "The ablations were switched off for this run, so nothing is known about shortcuts."
    return (f"With everything the adapter gets {rate_text(full)}; with the words alone "
            f"{rate_text(words)}, with the picture alone {rate_text(picture)}, and with a wrong "
            f"picture {rate_text(swapped)}. What the words alone reach is no evidence of looking; "
            f"the picture adds {100 * (full['value'] - words['value']):+.1f} points.")
