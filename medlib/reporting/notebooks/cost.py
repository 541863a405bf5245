"""From what this run measured to hours and money on other hardware, with every assumption shown.

Two kinds of numbers stand side by side and are never mixed up. *Measured*: scenarios a second of this
run on this machine. *Assumed*: hours = operations / (utilisation x peak), where the operations follow
from the model's shape (`medlib.training.forecast`), and peak, utilisation and price are rows of
``data/hardware_prices.yaml``, dated and yours to edit. No GPU was at hand: nothing here was measured
on one.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from medlib.config import ADAPTER, RunConfig, hardware, load_profile, resolve
from medlib.evaluation.results import Results
from medlib.reporting import plots
from medlib.reporting.plots import BLUE, GREY, ORANGE, WIDTH
from medlib.stats.text import percent, two_digits
from medlib.systems.openai_api import PRICES
from medlib.training import adapters, forecast
from medlib.training.forecast import ANSWER_TOKENS, TEXT_TOKENS

FORMULA = "hours = operations / (utilisation × peak × 3600)"
ASSUMED = "calculated"  # by the formula; nothing in this project writes it of a measurement


def measured(config: RunConfig, results: Results) -> pd.DataFrame:
    """What this run measured, beside what the formula says for this machine.

    Parameters
    ----------
    results : Results
        Predictions with ``seconds`` per case.

    Returns
    -------
    DataFrame, a row for training and one for evaluation: task, scenarios_per_second, formula (the same
    rate by :data:`FORMULA`), ratio (measured / formula).
    """
    here = hardware.detect()
    table = pd.DataFrame(
        {
            "task": ["training", "evaluation"],
            "scenarios_per_second": [
                adapters.training_metadata(config)["samples_per_second"],
                1 / results.of(ADAPTER, "heldout")["seconds"].mean(),
            ],
            "formula": [
                forecast.forecast(config, here)["samples_per_second"],
                1 / (3600 * evaluation_hours(config, here)),
            ],
        }
    )
    return table.assign(ratio=table["scenarios_per_second"] / table["formula"])


def training(config: RunConfig, model: str | None = None) -> pd.DataFrame:
    """Hours and money of this run's recipe on every profile, for ``model`` or the run's own.

    Returns
    -------
    DataFrame with columns where, basis, scenarios_per_second, hours, usd (nan where nothing is rented)
    and price_of (date).
    """
    config = config.model_copy(update={"model": model or config.model})
    forecasts = [forecast.forecast(on(config, profile), profile) for profile in forecast.prices()]
    return pd.DataFrame([_row(f["profile"], f["samples_per_second"], f["hours"]) for f in forecasts])


def plan(
    n: int = 1_000_000, config: RunConfig | None = None, tokens: tuple[float, float] | None = None
) -> pd.DataFrame:
    """Hours and money of asking about ``n`` scenarios, on every profile and at every listed API.

    A simulation: nothing was run. A GPU is taken to read prompts at the utilisation of its row, and we
    assume an API counts the same number of tokens as the model here; its hours depend on unknown limits (nan).

    Parameters
    ----------
    config : RunConfig, optional
        Names the model; default the profile medgemma-4b.
    tokens : (prompt, completion), optional
        What an API counted a scenario, if a row of the benchmark measured it.

    Returns
    -------
    DataFrame as of :func:`training`, with usd_per_1000.
    """
    config = config or resolve("medgemma-4b")
    each = {profile: evaluation_hours(on(config, profile), profile) for profile in forecast.prices()}
    rows = [_row(profile, 1 / (3600 * hours), n * hours) for profile, hours in each.items()]
    image = forecast.shape(config.model).mm_tokens_per_image
    prompt, completion = tokens or (image + TEXT_TOKENS, ANSWER_TOKENS)
    for host, models in (yaml.safe_load(PRICES.read_text()) or {}).items():
        for name, price in models.items():
            usd = n * (prompt * price["input"] + completion * price["output"]) / 1e6
            rows.append(
                {
                    "where": f"{name} at {host}",
                    "basis": ASSUMED,
                    "hours": math.nan,
                    "usd": usd,
                    "scenarios_per_second": math.nan,
                    "price_of": str(price["as_of"]),
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(usd_per_1000=1000 * table["usd"] / n)


def api_tokens(results: Results) -> tuple[float, float] | None:
    """Mean (prompt, completion) tokens per scenario that an API counted; None without an API."""
    if "prompt_tokens" not in results.table:
        return None
    for part in results.parts.values():
        if part["prompt_tokens"].notna().any():
            return part["prompt_tokens"].mean(), part["completion_tokens"].mean()
    return None


# --- the formula ------------------------------------------------------------------------------------


def on(config: RunConfig, profile: str) -> RunConfig:
    """The recipe with the number format and batches of a hardware profile."""
    return config.model_copy(update=load_profile(profile))


def evaluation_hours(config: RunConfig, profile: str) -> float:
    """Hours of one evaluation on a profile's hardware: of a validation scenario, its image read anew.

    It is what two more validation scenarios add to the forecast of a training, halved.
    """
    once = config.model_copy(
        update={"train_pairs": 0, "epochs": 1, "evaluations_per_epoch": 1, "cache_image_features": False}
    )
    more, fewer = (
        forecast.forecast(once.model_copy(update={"val_pairs": pairs}), profile)["hours"] for pairs in (1, 0)
    )
    return (more - fewer) / 2


def _row(profile: str, rate: float, hours: float) -> dict:
    price = forecast.prices()[profile]
    usd = math.nan if price["usd_per_hour"] is None else hours * price["usd_per_hour"]
    return {
        "where": profile,
        "basis": ASSUMED,
        "scenarios_per_second": rate,
        "hours": hours,
        "usd": usd,
        "price_of": "" if math.isnan(usd) else str(price["as_of"]),
    }


# --- for the notebook -------------------------------------------------------------------------------


def assumptions() -> pd.DataFrame:
    """The rows of the price table that the formula used: what to check before use."""
    return pd.DataFrame(
        [
            {
                "Profile": profile,
                "Cards": row["count"],
                "USD an hour": row["usd_per_hour"],
                "Price of": str(row["as_of"]),
                "Peak, TFLOPS": max(row["peak_tflops"].values()),
                "Utilisation (assumed)": f"{percent(row['utilisation'], 0)}",
                "Source": row["source"],
            }
            for profile, row in forecast.prices().items()
        ]
    )


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table of this module in words, with two significant digits: what is assumed is not exact."""
    renamed = table.rename(
        columns={
            "task": "Task",
            "formula": "By the formula",
            "ratio": "Ratio",
            "where": "Where",
            "basis": "Basis",
            "scenarios_per_second": "Scenarios / s",
            "hours": "Hours",
            "usd": "USD",
            "usd_per_1000": "USD / 1,000",
            "price_of": "Price of",
        }
    )
    numbers = renamed.select_dtypes("number").columns
    return renamed.assign(**{name: renamed[name].map(two_digits) for name in numbers})


def formula_sentence(table: pd.DataFrame) -> str:
    """How far the formula is off on the one machine where it could be held against a measurement."""
    parts = [
        f"{row.task} {two_digits(row.scenarios_per_second)} scenarios a second, "
        f"{two_digits(row.ratio)} times what the formula says"
        for row in table.itertuples()
    ]
    return (
        f"Measured on this machine: {'; '.join(parts)}. For other hardware there is only the "
        f"formula, {FORMULA}: take its hours as an order of magnitude."
    )


def plan_sentence(table: pd.DataFrame, n: int) -> str:
    """The cheapest and the fastest of what could be rented."""
    rented = table.dropna(subset=["hours", "usd"])
    cheap, fast = rented.loc[rented["usd"].idxmin()], rented.loc[rented["hours"].idxmin()]
    api = table[table["hours"].isna()]
    sentence = (
        f"By the formula, {n:,} scenarios cost least on {cheap['where']} "
        f"({two_digits(cheap['hours'])} h, {two_digits(cheap['usd'])} USD) and take least time on "
        f"{fast['where']} ({two_digits(fast['hours'])} h, {two_digits(fast['usd'])} USD)."
    )
    if len(api):
        best = api.loc[api["usd"].idxmin()]
        sentence += (
            f" The cheapest API listed, {best['where']}, would charge {two_digits(best['usd'])} "
            "USD. Its answers are another model's."
        )
    return sentence + " Nothing of this was run."


@plots.styled
def figure(table: pd.DataFrame, title: str) -> Figure:
    """Hours and US dollars of every place, on logarithmic axes side by side; the cheapest on top.

    Parameters
    ----------
    table : DataFrame
        Of :func:`training` or :func:`plan`: where, hours and usd, nan where unknown.
    """
    table = table.sort_values(["usd", "hours"], na_position="last")
    rows = np.arange(len(table))
    drawn = Figure(figsize=(WIDTH, 1.3 + 0.34 * len(table)), layout="constrained")
    drawn.suptitle(title)
    left, right = drawn.subplots(1, 2, sharey=True)
    for axes, column, label, colour, marker in (
        (left, "hours", "Hours", BLUE, "o"),
        (right, "usd", "US dollars", ORANGE, "s"),
    ):
        values = table[column].to_numpy(dtype=float)
        axes.hlines(rows, np.nanmin(values) / 3, values, color="0.85")
        axes.plot(values, rows, marker, color=colour)
        for row, value in zip(rows, values):
            known = not math.isnan(value)
            text = f" {two_digits(value)}" if known else "n/a"
            axes.annotate(
                text,
                (value if known else np.nanmin(values) / 3, row),
                (5, 0),
                va="center",
                textcoords="offset points",
                color="black" if known else GREY,
            )
        axes.set(xscale="log", xlabel=label, xlim=(np.nanmin(values) / 3, 20 * np.nanmax(values)))
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter("{x:,.9g}")
        axes.minorticks_off()
    left.set_yticks(rows, [re.sub(" at .*", " (API)", name) for name in table["where"]])
    left.set_ylim(len(table) - 0.5, -0.5)
    drawn.draw_without_rendering()
    return drawn
