"""Figures render whole: nothing outside the frame, no empty panel, no unreadable tick."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from medlib import stats
from medlib.reporting import plots
from medlib.reporting.plots import GREY

LONG = "MedGemma 4B instruction-tuned, zero-shot, log-likelihood of both verdicts"


def predictions(n=200, accuracy=0.9, modalities=("xray", "histopathology", "mri", "ultrasound")):
    rng = np.random.default_rng(n)
    valid = rng.random(n) < 0.5
    called = np.where(rng.random(n) < accuracy, valid, ~valid)
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(n)],
            "modality": rng.choice(modalities, n),
            "verdict": np.where(valid, "CORRECT", "ERROR"),
            "predicted": np.where(called, "CORRECT", "ERROR"),
            "p_correct": np.where(called, 0.5 + rng.random(n) / 2, rng.random(n) / 2),
            "severity": np.where(valid, "none", "critical"),
            "cost_impact": np.where(valid, 0, 500),
        }
    )


def image(width=60, height=40, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def scores():
    return {
        LONG: stats.score(predictions(1500, 0.6)),
        "tuned": stats.score(predictions(1500, 0.95)),
        "two modalities": stats.score(predictions(40, 0.5, ("xray", "mri"))),
        "always right": stats.score(predictions(30, 1.0)),
    }


NAMES = (
    "constant",
    "heuristics",
    "keyword-probe",
    "biomedclip",
    "biomedclip-probe",
    "medgemma",
    "medgemma-lora",
    "medgemma-lora+biomedclip",
    "openai:gpt-4o-mini",
)
SHARES = dict(zip(NAMES, (0.5, 0.66, 0.53, 0.52, 0.75, 0.48, 0.97, 0.98, 0.7)))


def one_suite(name, n=400):
    """Answers of one system, on the same scenarios for all."""
    rng = np.random.default_rng(NAMES.index(name))
    valid = np.arange(n) % 2 == 0
    sure = np.where(right := rng.random(n) < SHARES[name], 0.5, 0.3) * rng.random(n)
    said = np.where(right, valid, ~valid)
    return predictions(n).assign(
        verdict=np.where(valid, "CORRECT", "ERROR"),
        predicted=np.where(said, "CORRECT", "ERROR"),
        p_correct=np.where(said, 0.5 + sure, 0.5 - sure),
        pair=[f"p{i // 2}" for i in range(n)],
    )


LADDER = {name: one_suite(name) for name in NAMES}
COMPARED = stats.compare_all(LADDER, cluster="pair")


def cost_rows(**columns):
    rates = [stats.score(frame)["accuracy"] for frame in LADDER.values()]
    return pd.DataFrame(
        {
            "system": NAMES,
            "accuracy": [rate["value"] for rate in rates],
            "low": [rate["low"] for rate in rates],
            "high": [rate["high"] for rate in rates],
            "seconds": [0, 2e-5, 1e-4, 0.02, 0.021, 0.11, 0.11, 0.13, 1.4],
            "usd_per_1000": [np.nan] * 8 + [0.42],
            **columns,
        }
    )


def corruptions(kinds):
    return pd.DataFrame(
        [
            {"kind": kind, "severity": severity, "n": 96, "accuracy": rate["value"], **rate}
            for i, kind in enumerate(kinds)
            for severity in range(1, 6)
            for rate in [stats.proportion(94 - 3 * severity * (i + 1), 96)]
        ]
    )


CLEAN = stats.proportion(970, 1000)
KINDS = ("noise", "blur", "jpeg", "rotation", "contrast")
FIGURES = {
    "sensitivity_of_nine": lambda s: plots.modality_heatmap(
        {name: stats.score(frame) for name, frame in LADDER.items()}
    ),
    "significance": lambda s: plots.significance_matrix(COMPARED),
    "significance_of_two_clustered": lambda s: plots.significance_matrix(
        COMPARED, ["medgemma", "medgemma-lora+biomedclip"], p="p_cluster_holm"
    ),
    "significance_of_twelve": lambda s: plots.significance_matrix(
        stats.compare_all(LADDER | {f"more-{i}": LADDER["constant"] for i in range(3)})
    ),
    "cost_latency": lambda s: plots.cost_latency(cost_rows(n=400)),
    "cost_latency_all_alike": lambda s: plots.cost_latency(
        cost_rows(accuracy=0.9, low=0.88, high=0.92, seconds=0.1)
    ),
    "cost_latency_no_price": lambda s: plots.cost_latency(
        cost_rows(seconds=[np.nan] + [1.0] * 8).drop(columns="usd_per_1000")
    ),
    "cost_latency_all_priced": lambda s: plots.cost_latency(
        cost_rows(system=[LONG] + list(NAMES[1:]), usd_per_1000=1200.0)
    ),
    "coverage_curve": lambda s: plots.coverage_curve(
        {name: stats.selective(frame) for name, frame in LADDER.items()}
    ),
    "coverage_curve_of_one": lambda s: plots.coverage_curve({LONG: stats.selective(LADDER["medgemma"])}),
    "corruption_lines": lambda s: plots.corruption_lines(corruptions(KINDS), CLEAN),
    "corruption_lines_of_four": lambda s: plots.corruption_lines(corruptions(KINDS[:4]).drop(columns="n"), CLEAN),
    "corruption_lines_of_one": lambda s: plots.corruption_lines(corruptions(["blur"]), 0.97),
    "certainty_histogram": lambda s: plots.certainty_histogram(
        {"held-out": LADDER["medgemma-lora"]["p_correct"], "out of distribution": [0.5, 0.55, 0.7]}, 0.06
    ),
    "certainty_histogram_always": lambda s: plots.certainty_histogram({LONG: [0.1, 0.9]}, float("inf")),
    "forest": lambda s: plots.forest(s, LONG * 2, bar=0.9),
    "forest_of_one": lambda s: plots.forest({"tuned": s["tuned"]}, "One"),
    "ablation_bars": lambda s: plots.ablation_bars(s),
    "sensitivity": lambda s: plots.modality_heatmap(s),
    "specificity": lambda s: plots.modality_heatmap(s, "specificity"),
    "confusion": lambda s: plots.confusion(predictions(), LONG),
    "confusion_one_class": lambda s: plots.confusion(predictions().query("verdict == 'ERROR'"), "Errors only"),
    "reliability": lambda s: plots.reliability(predictions(12_000), LONG),
    "reliability_one_value": lambda s: plots.reliability(predictions(9).assign(p_correct=1.0), "Constant"),
    "learning_curve": lambda s: plots.learning_curve(
        [{"step": i, "loss": 1 / i} for i in range(1, 90)] + [{"step": 50, "eval_loss": 0.3}]
    ),
    "learning_curve_of_one": lambda s: plots.learning_curve([{"step": 1, "eval_loss": 0.3}]),
    "contact_sheet": lambda s: plots.contact_sheet(
        [image(30 * i, 200, mode) for i, mode in enumerate(["RGB", "L", "1", "RGBA", "P"], 1)],
        ["short", "a caption of many words " * 5, "W" * 60, "$5 to $9", LONG],
    ),
    "contact_sheet_of_two_rows_long_banner": lambda s: plots.contact_sheet(
        [image()] * 3, ["a", "b " * 80, LONG], columns=2, banner=LONG
    ),
    "contact_sheet_of_one": lambda s: plots.contact_sheet([image()], [LONG], banner=""),
}


def shown_ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_visible()
    ]


def clipped(figure):
    """By how many inches the ink leaves the frame."""
    ink, frame = figure.get_tightbbox(), figure.bbox_inches
    return max(frame.x0 - ink.x0, ink.x1 - frame.x1, frame.y0 - ink.y0, ink.y1 - frame.y1)


@pytest.fixture(scope="module", params=FIGURES)
def figure(request, scores):
    return FIGURES[request.param](scores)


def test_figure_is_seven_inches_wide_and_unknown_to_pyplot(figure):
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == 7
    assert not plt.get_fignums()


def test_nothing_leaves_the_frame(figure):
    assert clipped(figure) <= 0.01
    for text in figure.texts:
        box = (text.get_bbox_patch() or text).get_window_extent()
        assert box.y1 <= figure.bbox.y1 and box.y0 >= figure.bbox.y0


def test_letters_are_readable(figure):
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
    assert min(sizes, default=11) >= 11


def test_ticks_are_named_and_apart(figure):
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            labels = shown_ticks(axis)
            assert all(label.get_text().strip() for label in labels)
            boxes = [label.get_window_extent() for label in labels]
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_no_panel_is_empty(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=60)
    image = np.asarray(Image.open(file).convert("RGB"))
    height = image.shape[0]
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1
    for axes in figure.axes:
        box = axes.get_position()
        panel = image[
            int((1 - box.y1) * height) : int((1 - box.y0) * height),
            int(box.x0 * image.shape[1]) : int(box.x1 * image.shape[1]),
        ]
        assert panel.std() > 1


def test_the_frame_check_can_fail():
    figure = Figure(figsize=(2, 2))
    figure.subplots().text(0.9, 0.5, "far outside")
    assert clipped(figure) > 0.1


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def test_figures_say_their_numbers(scores):
    drawn = words(plots.forest(scores, "Title"))
    for rate in (result["accuracy"] for result in scores.values()):
        assert f"{100 * rate['value']:.1f}% n = {rate['n']:,}" in drawn
    drawn = words(plots.modality_heatmap(scores))
    assert drawn.count("n/a") == 2  # the two modalities that one system never saw
    assert f"{100 * scores['tuned']['per_modality']['mri']['sensitivity']['value']:.0f}" in drawn
    frame = predictions(300)
    error = stats.expected_calibration_error(frame["p_correct"], frame["verdict"] == "CORRECT")
    assert f"ECE = {error:.3f} (15 bins), n = 300" in words(plots.reliability(frame, "Title"))


def test_significance_cells_are_row_minus_column():
    drawn = plots.significance_matrix(COMPARED, ["medgemma-lora", "medgemma", "constant"])
    axes = drawn.axes[0]
    cells = {(round(t.get_position()[1] - 0.5), round(t.get_position()[0] - 0.5)): t for t in axes.texts}
    row = COMPARED[(COMPARED["first"] == "medgemma") & (COMPARED["second"] == "medgemma-lora")].iloc[0]
    points = f"{-100 * row['difference']:.1f}"
    assert cells[0, 1].get_text() == f"+{points}\n***"
    assert cells[1, 0].get_text() == f"\N{MINUS SIGN}{points}\n***"
    assert cells[0, 0].get_text() == "–"
    # no significant difference: no star, grey letters
    assert COMPARED.query("first == 'constant' and second == 'medgemma'")["p_holm"].item() > 0.05
    assert "*" not in cells[1, 2].get_text() and cells[1, 2].get_color() == GREY
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "1  medgemma-lora",
        "2  medgemma",
        "3  constant",
    ]
    assert "McNemar" in words(drawn) and "over 36 pairs" in words(drawn) and "n = 400" in words(drawn)
    assert "sign test by cluster" in words(plots.significance_matrix(COMPARED, p="p_cluster_holm"))


def test_no_difference_has_no_minus_sign():
    same = stats.compare_all({"x": LADDER["medgemma"], "y": LADDER["medgemma"]})
    cells = [text.get_text() for text in plots.significance_matrix(same).axes[0].texts]
    assert cells == ["–", "+0.0", "+0.0", "–"]


@pytest.mark.parametrize(
    "rows",
    [
        cost_rows(),
        cost_rows(accuracy=0.9, low=0.88, high=0.92, seconds=0.1),
        cost_rows(system=[f"medgemma-nano (stand-in) + LoRA, number {i}" for i in range(9)]),
    ],
)
def test_every_point_has_a_name_that_covers_nothing(rows):
    axes = plots.cost_latency(rows).axes[0]
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert sorted(t.get_text().replace("\n", " ").replace("+ bio", "+bio") for t in labels) == sorted(
        rows["system"]
    )
    boxes = [Text.get_window_extent(label) for label in labels]
    seconds = rows["seconds"].clip(lower=1e-6)
    points = axes.transData.transform(np.column_stack([seconds, rows["accuracy"]]))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*point) for point in points)
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


def test_cost_latency_says_what_is_not_known():
    drawn = words(plots.cost_latency(cost_rows()))
    assert "$0.42" in drawn and "no price: constant" in drawn
    drawn = words(plots.cost_latency(cost_rows(seconds=[np.nan] + [1.0] * 8).drop(columns="usd_per_1000")))
    assert "not timed: constant" in drawn and "no price for any system" in drawn


def test_histogram_reliability_and_lines_say_their_numbers():
    drawn = words(plots.certainty_histogram({"held-out": [0.9] * 19 + [0.52]}, 0.1))
    rate = stats.proportion(1, 20)
    interval = f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
    assert f"held-out: abstains on 5.0% {interval}, n = 20" in drawn
    frame = LADDER["medgemma-lora"]
    error = stats.expected_calibration_error(frame["p_correct"], frame["verdict"] == "CORRECT")
    assert f"ECE = {error:.3f} (15 bins), n = 400" in words(plots.reliability(frame, ""))
    drawn = words(plots.corruption_lines(corruptions(["blur"]), CLEAN))
    assert "untouched images: 97.0% (n = 1,000)" in drawn and "blur, n = 96" in drawn


def test_letters_on_a_heatmap_stand_out():
    scores = {name: stats.score(LADDER[name]) for name in ("biomedclip", "biomedclip-probe")}
    for text in plots.modality_heatmap(scores).axes[0].texts:
        assert text.get_color() == ("white" if float(text.get_text()) < 45 else "black")


def test_names_break_after_a_plus():
    assert plots._wrap("medgemma-lora+biomedclip", 1.5) == "medgemma-lora+\nbiomedclip"
    assert plots._wrap("C++ and a + b", 5) == "C++ and a + b"


def test_confusion_rows_are_gold():
    frame = pd.DataFrame({"verdict": ["CORRECT"] * 4 + ["ERROR"], "predicted": ["CORRECT"] * 3 + ["ERROR"] * 2})
    cells = [text.get_text() for text in plots.confusion(frame, "").axes[0].texts]
    assert cells == ["3\n75.0%", "1\n25.0%", "0\n0.0%", "1\n100.0%"]


def test_captions_are_kept_whole():
    sheet = plots.contact_sheet([image()] * 4, [LONG, "W" * 50, "costs $5, then $7", "d"])
    assert [axes.get_xlabel().replace("\n", " ") for axes in sheet.axes][::2] == [LONG, "costs $5, then $7"]
    assert sheet.axes[1].get_xlabel().replace("\n", "") == "W" * 50
    boxes = [axes.xaxis.label.get_window_extent() for axes in sheet.axes]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))
    assert "SYNTHETIC" in words(sheet)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.forest({}, ""), "forest: nothing to draw"),
        (lambda: plots.learning_curve([{"step": 1}]), "learning_curve: nothing"),
        (lambda: plots.contact_sheet([], []), "contact_sheet: nothing"),
        (lambda: plots.contact_sheet([image()], []), "1 images but 0 captions"),
        (lambda: plots.modality_heatmap({"a": {}}, "recall"), "'recall' is none of"),
        (lambda: plots.significance_matrix(COMPARED, p="p"), "'p' is none of p_holm"),
        (lambda: plots.significance_matrix(COMPARED, ["medgemma", "gpt"]), "not compared: gpt"),
        (lambda: plots.significance_matrix(COMPARED[:0]), "significance_matrix: nothing"),
        (lambda: plots.cost_latency(cost_rows().drop(columns="low")), "cost_latency: no column 'low'"),
        (lambda: plots.cost_latency(cost_rows(seconds=np.nan)), "no system has seconds"),
        (lambda: plots.coverage_curve({}), "coverage_curve: nothing"),
        (lambda: plots.coverage_curve({"x": pd.DataFrame({"n": [1]})}), "x: no column 'coverage'"),
        (lambda: plots.corruption_lines(corruptions(KINDS).drop(columns="kind"), CLEAN), "column 'kind'"),
        (lambda: plots.certainty_histogram({"ood": []}, 0.1), "certainty_histogram, ood: nothing"),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
