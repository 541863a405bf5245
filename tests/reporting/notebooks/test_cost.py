"""Costs: the formula, what is measured and what is assumed, and the tables made of both."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from medlib.config import hardware, resolve
from medlib.evaluation.results import Results
from medlib.reporting.notebooks import cost as cost_page
from medlib.reporting.notebooks.cost import ASSUMED, FORMULA
from medlib.stats.text import two_digits
from medlib.systems import openai_api
from medlib.training import adapters, forecast
from medlib.training.forecast import ANSWER_TOKENS, PRICES, TEXT_TOKENS


@pytest.fixture(scope="module")
def real():
    return resolve("medgemma-4b")


@pytest.fixture(autouse=True, scope="module")
def built_once():
    """The model without numbers is built once a name: here it has one adapter only."""
    build, kept = forecast.on_meta, {}

    def look_up(config):
        if config.model not in kept:
            kept[config.model] = build(config)
        return kept[config.model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "on_meta", look_up)
        yield


def test_hours_follow_from_operations_peak_and_utilisation(real):
    """Operations by hand: 2 a weight and token, and attention; Gemma 3 4B's and SigLIP's shapes."""
    hidden, inner, layers, heads, keys, size, vocabulary = 2560, 10240, 34, 8, 4, 256, 262208
    layer = hidden * size * (2 * heads + 2 * keys) + 3 * hidden * inner
    tokens = 256 + TEXT_TOKENS
    decoder = tokens * (2 * layers * layer + 4 * tokens * heads * size * layers)
    answer = ANSWER_TOKENS * 2 * vocabulary * hidden
    width, depth, patches = 1152, 27, 4096
    tower = patches * (2 * depth * (4 * width**2 + 2 * width * 4304) + 4 * patches * width * depth)
    table, row = cost_page.plan(1_000, real).set_index("where"), forecast.prices()["a100"]
    speed = row["utilisation"] * row["peak_tflops"]["bfloat16"] * 1e12
    seconds = 1_000 * (decoder + answer + tower) / speed
    assert table.loc["a100", "hours"] == pytest.approx(seconds / 3600, rel=0.02)
    assert table.loc["a100", "usd"] == pytest.approx(table.loc["a100", "hours"] * row["usd_per_hour"])
    assert table.loc["a100", "scenarios_per_second"] == pytest.approx(1_000 / seconds, rel=0.02)


def test_training_is_what_the_forecast_says(real):
    table = cost_page.training(resolve("standin", epochs=2), real.model).set_index("where")
    own = resolve("standin+t4", epochs=2, model=real.model)
    expected = forecast.forecast(own, "t4")
    assert table.loc["t4", "hours"] == pytest.approx(expected["hours"])
    assert table.loc["t4", "usd"] == pytest.approx(expected["usd"])
    assert table.loc["t4", "scenarios_per_second"] == pytest.approx(expected["samples_per_second"])


def test_a_plan_scales_with_the_number_and_prices_apis(real):
    small, large = cost_page.plan(10, real), cost_page.plan(1_000_000, real)
    np.testing.assert_allclose(large["usd"], 1e5 * small["usd"])
    np.testing.assert_allclose(large["usd_per_1000"], small["usd_per_1000"])
    assert (large["basis"] == ASSUMED).all()
    api = large[large["where"].str.startswith("gpt-4o at")].iloc[0]
    price = yaml.safe_load(openai_api.PRICES.read_text())["api.openai.com"]["gpt-4o"]
    tokens = 256 + TEXT_TOKENS, ANSWER_TOKENS
    assert api["usd"] == pytest.approx(tokens[0] * price["input"] + tokens[1] * price["output"])
    assert math.isnan(api["hours"]) and api["price_of"] == str(price["as_of"])
    measured = cost_page.plan(1_000_000, real, tokens=(1000, 20))
    assert measured.loc[api.name, "usd"] == pytest.approx(1000 * price["input"] + 20 * price["output"])


def test_what_is_not_rented_has_no_price(real):
    table = cost_page.plan(10, real).set_index("where")
    assert math.isnan(table.loc["cpu", "usd"]) and table.loc["cpu", "price_of"] == ""
    assert table.loc["cpu", "hours"] > table.loc["h100", "hours"]


def test_an_edited_price_table_is_used(real, tmp_path, monkeypatch):
    edited = yaml.safe_load(PRICES.read_text())
    edited["profiles"]["a100"]["usd_per_hour"] *= 2
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(edited))
    before = cost_page.plan(10, real).set_index("where")["usd"]
    monkeypatch.setattr(forecast, "PRICES", tmp_path / "prices.yaml")
    after = cost_page.plan(10, real).set_index("where")["usd"]
    assert after["a100"] == pytest.approx(2 * before["a100"]) and after["h100"] == before["h100"]


def test_every_price_has_a_date_and_a_source():
    assert "CHECK BEFORE USE" in PRICES.read_text()
    table = cost_page.assumptions()
    assert pd.to_datetime(table["Price of"]).notna().all() and table["Source"].str.len().min() > 5


def test_measured_rates_are_those_of_the_run(monkeypatch):
    config = resolve("tiny")
    monkeypatch.setattr(adapters, "training_metadata", lambda _: {"samples_per_second": 8.0})
    monkeypatch.setattr(hardware, "detect", lambda: "cpu")
    table = cost_page.measured(
        config, Results.join({("medgemma-lora", "heldout"): pd.DataFrame({"seconds": [0.1, 0.3]})})
    )
    assert table["scenarios_per_second"].tolist() == [8.0, pytest.approx(5.0)]
    formula = forecast.forecast(config, "cpu")["samples_per_second"]
    assert table["ratio"].tolist() == [
        pytest.approx(8.0 / formula),
        pytest.approx(5.0 * 3600 * cost_page.evaluation_hours(config, "cpu")),
    ]
    said = cost_page.formula_sentence(table)
    assert "8.0 scenarios a second" in said and FORMULA in said


def test_api_tokens_are_those_that_an_api_counted():
    counted = pd.DataFrame({"prompt_tokens": [100.0, 300.0], "completion_tokens": [8.0, 10.0]})
    local = {("a", "heldout"): pd.DataFrame({"seconds": [1.0]})}
    assert cost_page.api_tokens(Results.join(local)) is None
    assert cost_page.api_tokens(Results.join(local | {("openai:m", "heldout"): counted})) == (200, 9)


def test_sentence_names_the_cheapest_and_the_fastest():
    table = pd.DataFrame(
        {
            "where": ["slow", "fast", "own", "m at api.example"],
            "hours": [10, 1, 0.1, math.nan],
            "usd": [5, 50, math.nan, 7],
        }
    )
    said = cost_page.plan_sentence(table, 1000)
    assert "least on slow (10 h, 5.0 USD)" in said and "on fast (1.0 h, 50 USD)" in said
    assert "m at api.example, would charge 7.0 USD" in said and "Nothing of this was run" in said


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.00123, "0.0012"), (0.25, "0.25"), (1.04, "1.0"), (56_123, "56,000"),
    (math.nan, "n/a"),
])  # fmt: skip
def test_two_digits(value, text):
    assert two_digits(value) == text


def test_figure_shows_every_place_and_marks_what_is_unknown(real):
    table = cost_page.plan(1_000_000, real)
    figure = cost_page.figure(table, "A title")
    hours, money = figure.axes
    names = [label.get_text() for label in hours.get_yticklabels()]
    assert len(names) == len(table) and "gpt-4o (API)" in names and "a100" in names
    unknown = [text.get_text() for axes in (hours, money) for text in axes.texts].count("n/a")
    assert unknown == table[["hours", "usd"]].isna().to_numpy().sum()
