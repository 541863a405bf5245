"""What 04_evaluate shows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit

from medlib import stats
from medlib.config import ADAPTER, ANSWERS, BASE, RunConfig, adapter_dir
from medlib.data.suite import Suite
from medlib.evaluation import summary
from medlib.models import loading, prompts, scoring
from medlib.reporting import plots
from medlib.reporting.show import ALPHA, BAR
from medlib.stats.text import p_text, percent, rate_text, results_table

# ---- evaluation ----------------------------------------------------------------------------------


def results(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Base and adapter on every suite."""
    names = summary.figure_names(config)
    parts = []
    for suite, label in SUITES.items():
        scores = {
            names[s]: stats.score(frames[f"{s}/{suite}"]) for s in (BASE, ADAPTER) if f"{s}/{suite}" in frames
        }
        if scores:
            part = results_table(scores).drop(columns="n")
            parts.append(part.assign(Suite=label))
    columns = ["Suite", *parts[0].columns.drop("Suite")]
    return pd.concat(parts, ignore_index=True)[columns]


SUITES = {
    "heldout": "Held-out suite",
    "core24_val": "core24, 8 validation cases",
    "core24_folds": "core24, all 24 (adapter: leave one image out)",
}


def paired_sentence(a: pd.DataFrame, b: pd.DataFrame, name_a: str, name_b: str) -> str:
    """Exact McNemar test of two systems in words."""
    test = stats.compare(a, b)
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
    best = stats.proportion(n, n)["low"]
    limit = "enough to show" if best > bar else "too few to show"
    return (
        f"{round(rate['value'] * n)} of {n} cases are right; the true accuracy may lie anywhere "
        f"from {percent(rate['low'])} to {percent(rate['high'])}. Even {n} of {n} would only prove "
        f"more than {percent(best)}: {n} cases are **{limit}** an accuracy above {percent(bar)}."
    )


def verdict_sentence(score: Mapping) -> str:
    """Valid treatments recognised and errors caught, and a warning about a constant answer."""
    share = score["constant_answer_share"]
    text = (
        f"The adapter recognises {rate_text(score['sensitivity'])} of the valid treatments and "
        f"catches {rate_text(score['specificity'])} of the errors."
    )
    if share > 0.9:
        text += (
            f" {percent(share)} of its answers are the same word: **it hardly "
            "discriminates**, whatever its accuracy."
        )
    return text


def generation(frames: Mapping[str, pd.DataFrame], config: RunConfig) -> pd.DataFrame:
    """Free answers beside the likelihood verdicts, on the held-out suite."""
    rows = []
    for system in (BASE, ADAPTER):
        frame = frames[f"{system}/heldout"]
        if "generated" in frame:
            frame = frame if "parsed" in frame else frame.assign(parsed=None)
            score = stats.score(frame)
            rows.append(
                {
                    "System": summary.figure_names(config)[system],
                    "Answers that are a verdict": rate_text(score["generation"]["parse_rate"]),
                    "Right, free answer": rate_text(score["generation"]["accuracy"]),
                    "Right, by likelihood": rate_text(score["accuracy"]),
                    "Both agree": percent((frame["parsed"] == frame["predicted"]).mean()),
                }
            )
    return pd.DataFrame(rows)


def generation_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Whether the adapter says what it thinks."""
    frame = frames[f"{ADAPTER}/heldout"]
    if "generated" not in frame:
        return "Free answers were switched off for this run (`generate`)."
    agree = (frame.get("parsed", pd.Series(index=frame.index)) == frame["predicted"]).mean()
    return (
        f"In {percent(agree)} of the scenarios the adapter writes the verdict that it also "
        "finds more likely. "
        + (
            "The two readings can be used for one another."
            if agree > 0.98
            else "**What it writes is not what it finds likelier**: the tables that follow use the likelihood."
        )
    )


ABLATION_NAMES = {
    None: "image and words",
    "text_only": "words only, grey image",
    "image_only": "image only, words withheld",
    "swapped": "words and a wrong image",
    "masked_words": "labelling words blanked",
}


def ablation_frames(frames: Mapping[str, pd.DataFrame], pair_kind: str | None = None) -> dict[str, pd.DataFrame]:
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
    title = (
        "What each part of the input brings"
        if not pair_kind
        else (
            "The same, on the pairs that only the image decides"
            if pair_kind == "image"
            else f"The same, on the {pair_kind} pairs"
        )
    )
    scores = {name: stats.score(f) for name, f in ablation_frames(frames, pair_kind).items()}
    return plots.ablation_bars(scores, title=title)


def image_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    """Whether the adapter uses the image, read from the pairs that only the image decides."""
    chosen = ablation_frames(frames, "image")
    full, words = (chosen.get(f"adapter: {ABLATION_NAMES[a]}") for a in (None, "text_only"))
    if full is None:
        return "The held-out suite has no pair that only the image decides."
    rate = rate_text(stats.score(full)["accuracy"])
    start = f"On the {len(full):,} scenarios that only the image decides, the adapter gets {rate}"
    if words is None:
        return f"{start}; chance is 50%. The ablations were switched off for this run."
    test = stats.compare(full, words)
    seen = test["p"] < ALPHA and test["difference"] > 0
    reading = (
        "So **the image decides some of its verdicts**"
        if seen
        else ("So **nothing here shows that it uses the image**")
    )
    return (
        f"{start}, and {percent(test['accuracy_b'])} with the image greyed out (chance is "
        f"50%; exact McNemar test, {p_text(test['p'])}). {reading}."
    )


def targets_sentence(bars: pd.DataFrame) -> str:
    """How many targets are met."""
    missed = bars.loc[bars["Met"] != "yes", "Figure"].str.lower().tolist()
    if not missed:
        return f"All {len(bars)} targets are met on this suite."
    met = len(bars) - len(missed)
    return f"{met} of {len(bars)} targets are met; not met: {', '.join(missed)}."


# ---- one case --------------------------------------------------------------------------------------


def likelihoods_of_one_case(config: RunConfig, case: Suite) -> pd.DataFrame:
    """Log-likelihood that the adapter gives to each token of the two answers, for a suite of one scenario.

    Returns
    -------
    DataFrame with one row per token: ``verdict``, ``token`` and ``logp`` (natural logarithm)
    """
    model = loading.load_for(config).with_adapter(adapter_dir(config))
    batch = scoring.prompt_batch(model, case.scenarios, [case.image(s) for s in case.scenarios])
    logps = scoring.token_scores(model, batch)[0].tolist()
    return pd.DataFrame(
        [
            {"verdict": verdict, "token": model.processor.tokenizer.decode([token]).strip(), "logp": logp}
            for verdict, tokens, row in zip(ANSWERS, prompts.answer_tokens(model.processor), logps)
            for token, logp in zip(tokens, row)
        ]
    )


def likelihood_table(likelihoods: pd.DataFrame) -> pd.DataFrame:
    """The two answers token by token, next to each other, with their sums."""
    columns = {}
    for verdict, part in likelihoods.groupby("verdict", sort=False):
        columns[f"Answer {verdict}"] = pd.Series([*part["token"], "sum"])
        columns[f"log-likelihood, {verdict}"] = (
            pd.Series([*part["logp"], part["logp"].sum()]).round(3) + 0.0
        )  # no -0
    return pd.DataFrame(columns)


def likelihood_sentence(likelihoods: pd.DataFrame, case: Suite) -> str:
    """How the two sums become a probability, and whether the verdict is right."""
    answers = likelihoods.groupby("verdict")["logp"]
    sums, first = answers.sum(), answers.first()
    p_correct = expit(sums["CORRECT"] - sums["ERROR"])
    verdict, gold = "CORRECT" if p_correct >= 0.5 else "ERROR", case.scenarios[0].verdict
    return (
        f"The probability of CORRECT is 1 / (1 + exp({sums['ERROR']:.3f} − ({sums['CORRECT']:.3f}))) = "
        f"{percent(p_correct)}, so the verdict is **{verdict}**; the gold verdict is {gold}. The first tokens "
        f"alone differ by {first['CORRECT'] - first['ERROR']:+.2f}, the whole answers by "
        f"{sums['CORRECT'] - sums['ERROR']:+.2f}."
    )
