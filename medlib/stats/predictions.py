"""The predictions table: one row per scenario, whichever system answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medlib.config import VERDICTS, jsonl


def prediction_row(scenario, p_correct: float) -> dict:
    """One row of a predictions table from a `medlib.data.cases.LabelledCase` and a probability of CORRECT."""
    return {
        "id": scenario.id,
        "modality": scenario.modality,
        "verdict": scenario.verdict,
        "error_type": scenario.error_type,
        "severity": scenario.severity,
        "cost_impact": scenario.cost_impact,
        "source": scenario.factors.get("source"),
        "pair": scenario.factors.get("pair"),
        "pair_kind": scenario.factors.get("pair_kind"),
        "cell": _cell(scenario),
        "sex": scenario.patient.sex,
        "age_band": _age_band(scenario.patient.age),
        "p_correct": p_correct,
        "predicted": "CORRECT" if p_correct >= 0.5 else "ERROR",
    }


def _age_band(age: int | None) -> str | None:
    """``40-59`` of an age in years."""
    bands = {18: "0-17", 40: "18-39", 60: "40-59", 121: "60+"}
    return None if age is None else next(name for end, name in bands.items() if age < end)


def _cell(scenario) -> str | None:
    """What a case shares with others beyond its pair: the patient's group, or what is shown and what is done.

    Drawn images of one finding look alike, and there are few findings and kinds of care: thousands of drawn cases
    are far from as many independent ones.
    """
    factors = scenario.factors
    if group := factors.get("group") or factors.get("image_group"):
        return f"group {group}"
    if "image_finding" in factors and "care" in factors:
        return f"{scenario.modality}: {factors['image_finding']}, {factors['care']}"
    return factors.get("pair")


def predictions_table(scenarios: list, answered: pd.DataFrame) -> pd.DataFrame:
    """Predictions table with one row per scenario: `prediction_row` and whatever else was answered."""
    rows = [prediction_row(s, float(p)) for s, p in zip(scenarios, answered["p_correct"])]
    extra = answered.drop(columns="p_correct").reset_index(drop=True)
    frame = pd.concat([pd.DataFrame(rows), extra], axis=1)
    unread = _unread(frame)  # what is no verdict is never right
    frame.loc[unread, "predicted"] = frame.loc[unread, "verdict"].map({"CORRECT": "ERROR", "ERROR": "CORRECT"})
    return frame


def _unread(frame: pd.DataFrame) -> pd.Series:
    """Rows without a verdict, bool: those that say so and, of an API, those whose text is none."""
    missing = pd.Series(True, frame.index)
    unread = frame["read"].eq(False) if "read" in frame else ~missing
    if "completion_tokens" in frame:
        unread |= frame["completion_tokens"].notna() & (frame["parsed"].isna() if "parsed" in frame else missing)
    return unread


def pair_accuracy(predictions: pd.DataFrame) -> tuple[int, int]:
    """(pairs with both members right, pairs): a counterfactual pair counts only as a whole."""
    right = (predictions.verdict == predictions.predicted).groupby(predictions.pair).all()
    return int(right.sum()), len(right)


def write_predictions(path: str | Path, table: pd.DataFrame) -> Path:
    """A table of predictions as JSONL, with whatever columns it has; missing values are left out."""
    return jsonl.write(path, map(without_missing, table.to_dict(orient="records")))


def without_missing(record: dict) -> dict:
    """The record without values that are None or nan, which JSON does not have."""
    return {k: v for k, v in record.items() if not (v is None or (isinstance(v, float) and np.isnan(v)))}


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The inverse of :func:`write_predictions`; also reads the Parquet file of ``reports/``."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    # not pd.read_json: it rounds floats and turns the text "12" into a number
    return pd.DataFrame([record for _, record in jsonl.read(path)])


def checked(predictions: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The table itself if it has the columns and good values, else a ValueError (row, field)."""
    absent = [column for column in columns if column not in predictions]
    if absent:
        raise ValueError(f"predictions: no column {', '.join(map(repr, absent))}")
    if predictions.empty:
        raise ValueError("predictions: no rows")
    good = {
        "verdict": lambda values: values.isin(VERDICTS),
        "predicted": lambda values: values.isin(VERDICTS),
        "parsed": lambda values: values.isin(VERDICTS) | values.isna(),
        "p_correct": lambda values: values.between(0, 1),
        "cost_impact": lambda values: (pd.to_numeric(values) >= 0) | values.isna(),
        "modality": lambda values: values.notna(),
    }
    for column, is_good in good.items():
        if column in predictions:
            bad = np.flatnonzero(~is_good(predictions[column]).to_numpy(dtype=bool))
            if len(bad):
                first = predictions.iloc[bad[0]]
                raise ValueError(
                    f"predictions, row {bad[0] + 1} ({first.get('id', 'no id')}), field "
                    f"'{column}': bad value {first[column]!r} ({len(bad)} such row(s))"
                )
    return predictions
