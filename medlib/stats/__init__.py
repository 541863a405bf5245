"""Pure functions over arrays and tables: rates with intervals, scores, paired tests, calibration."""

from medlib.stats.calibration import (
    SMALLEST,
    TEMPERATURES,
    abstention_threshold,
    apply_temperature,
    calibrated,
    certainty,
    checked_probabilities,
    expected_calibration_error,
    fit_temperature,
    selective,
)
from medlib.stats.paired import cases_needed, compare, compare_all, consistency, holm
from medlib.stats.predictions import (
    checked,
    pair_accuracy,
    prediction_row,
    predictions_table,
    read_predictions,
    without_missing,
    write_predictions,
)
from medlib.stats.proportions import NAN, RESAMPLES, bootstrap_interval, cluster_numbers, proportion
from medlib.stats.scores import by_group, score

__all__ = [
    "NAN",
    "RESAMPLES",
    "SMALLEST",
    "TEMPERATURES",
    "abstention_threshold",
    "apply_temperature",
    "bootstrap_interval",
    "by_group",
    "calibrated",
    "cases_needed",
    "certainty",
    "checked",
    "checked_probabilities",
    "cluster_numbers",
    "compare",
    "compare_all",
    "consistency",
    "expected_calibration_error",
    "fit_temperature",
    "holm",
    "pair_accuracy",
    "prediction_row",
    "predictions_table",
    "proportion",
    "read_predictions",
    "score",
    "selective",
    "without_missing",
    "write_predictions",
]
