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
from medlib.evaluation.results import Results
from medlib.models import loading, prompts, scoring
from medlib.reporting import plots
from medlib.reporting.show import ALPHA, TARGET
from medlib.stats.text import difference_text, p_text, percent, rate_text, results_table


def results_by_suite(results: Results, config: RunConfig) -> pd.DataFrame:
    """Base and adapter on every suite."""
    names, parts = summary.figure_names(config), []
    for suite, label in SUITES.items():
        scores = {names[s]: results.score(s, suite) for s in (BASE, ADAPTER) if results.has(s, suite)}
        if scores:
            parts.append(results_table(scores).drop(columns="n").assign(Suite=label))
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
        f"{difference_text(test)} points. {test['b']:,} scenarios only {name_a} gets right, "
        f"{test['c']:,} only {name_b} (exact McNemar test, {p_text(test['p'])}): {reading}."
    )


def smallest_score(results: Results) -> dict:
    """The adapter's score on the core validation cases, or on the held-out suite if there are none."""
    return results.score(ADAPTER, "core24_val" if results.has(ADAPTER, "core24_val") else "heldout")


def small_sample_sentence(score: Mapping, target: float = TARGET) -> str:
    """What so few cases can prove, and what they could prove at best."""
    rate, n = score["accuracy"], score["n"]
    best = stats.proportion(n, n)["low"]
    limit = "enough to show" if best > target else "too few to show"
    return (
        f"{round(rate['value'] * n)} of {n} cases are right; the true accuracy may lie anywhere "
        f"from {percent(rate['low'])} to {percent(rate['high'])}. Even {n} of {n} would only prove "
        f"more than {percent(best)}: {n} cases are **{limit}** an accuracy above {percent(target)}."
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


def generation(results: Results, config: RunConfig) -> pd.DataFrame:
    """Free answers beside the likelihood verdicts, on the held-out suite."""
    names, rows = summary.figure_names(config), []
    for system in (BASE, ADAPTER):
        frame, score = results.of(system, "heldout"), results.score(system, "heldout")
        if "generation" in score:
            rows.append(
                {
                    "System": names[system],
                    "Answers that are a verdict": rate_text(score["generation"]["parse_rate"]),
                    "Right, free answer": rate_text(score["generation"]["accuracy"]),
                    "Right, by likelihood": rate_text(score["accuracy"]),
                    "Both agree": percent(_agreement(frame)),
                }
            )
    return pd.DataFrame(rows)


def generation_sentence(results: Results) -> str:
    """Whether the adapter says what it thinks."""
    if "generation" not in results.score(ADAPTER, "heldout"):
        return "Free answers were switched off for this run (`generate`)."
    agree = _agreement(results.of(ADAPTER, "heldout"))
    return (
        f"In {percent(agree)} of the scenarios the adapter writes the verdict that it also "
        "finds more likely. "
        + (
            "The two readings can be used for one another."
            if agree > 0.98
            else "**What it writes is not what it finds likelier**: the tables that follow use the likelihood."
        )
    )


def _agreement(frame: pd.DataFrame) -> float:
    """Share of scenarios whose free answer is the likelihood verdict."""
    return (frame.get("parsed", pd.Series(index=frame.index)) == frame["predicted"]).mean()


ABLATION_NAMES = {
    "": "image and words",
    "text_only": "words only, grey image",
    "image_only": "image only, words withheld",
    "swapped": "words and a wrong image",
    "masked_words": "labelling words blanked",
}


def ablation_parts(results: Results) -> dict[str, tuple[str, str, str]]:
    """(system, suite, ablation) by name: the base, and the adapter with parts of the input withheld."""
    parts = {"untouched base": (BASE, "heldout", "")}
    parts |= {f"adapter: {name}": (ADAPTER, "heldout", ablation) for ablation, name in ABLATION_NAMES.items()}
    return {name: part for name, part in parts.items() if results.has(*part)}


def ablation_scores(results: Results, pair_kind: str | None = None) -> dict[str, dict]:
    """Scores of `ablation_parts`; ``pair_kind`` limits them to one kind of pair, such as ``image``."""
    parts = ablation_parts(results)
    if not pair_kind:
        return {name: results.score(*part) for name, part in parts.items()}
    frames = {name: of_kind(results.of(*part), pair_kind) for name, part in parts.items()}
    return {name: stats.score(frame) for name, frame in frames.items() if len(frame)}


def of_kind(frame: pd.DataFrame, pair_kind: str) -> pd.DataFrame:
    """The predictions on one kind of pair."""
    return frame[frame["pair_kind"] == pair_kind]


def ablation_figure(results: Results, pair_kind: str | None = None) -> Figure | None:
    """Accuracy bars of `ablation_scores`; None where no pair is of this kind."""
    title = "What each part of the input brings"
    if pair_kind:
        title = f"The same, on the {pair_kind} pairs"
    if pair_kind == "image":
        title = "The same, on the pairs that only the image decides"
    scores = ablation_scores(results, pair_kind)
    return plots.ablation_bars(scores, title=title) if scores else None


def image_sentence(results: Results) -> str:
    """Whether the adapter uses the image, read from the pairs that only the image decides."""
    full = of_kind(results.of(ADAPTER, "heldout"), "image")
    if full.empty:
        return "The held-out suite has no pair that only the image decides."
    right = stats.proportion(int((full["verdict"] == full["predicted"]).sum()), len(full))
    start = f"On the {len(full):,} scenarios that only the image decides, the adapter gets {rate_text(right)}"
    if not results.has(ADAPTER, "heldout", "text_only"):
        return f"{start}; chance is 50%. The ablations were switched off for this run."
    words = of_kind(results.of(ADAPTER, "heldout", "text_only"), "image")
    test = stats.compare(full, words)
    reading = "So **nothing here shows that it uses the image**"
    if test["p"] < ALPHA and test["difference"] > 0:
        reading = "So **the image decides some of its verdicts**"
    return (
        f"{start}, and {percent(test['accuracy_b'])} with the image greyed out (chance is "
        f"50%; exact McNemar test, {p_text(test['p'])}). {reading}."
    )


def targets_sentence(targets: pd.DataFrame) -> str:
    """How many targets are met."""
    missed = targets.loc[targets["Met"] != "yes", "Figure"].str.lower().tolist()
    if not missed:
        return f"All {len(targets)} targets are met on this suite."
    met = len(targets) - len(missed)
    return f"{met} of {len(targets)} targets are met; not met: {', '.join(missed)}."


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
