from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from medlib.data import core24, leakage
from medlib.data.leakage import COPIES, STRANGERS
from medlib.data.quality import Issue
from medlib.data.suite import Suite
from medlib.data.synthetic import draw, grammar
from medlib.reporting.notebooks import data_audit as data_audit_page

# an empty mean, an undefined rate or a forgotten f-string would show as one of these
BAD_WORDS = ("nan", "None", "inf ", "{", "}")
CASES = core24.load_facts()
SUITES = {name: Suite(name, grammar.generate(name, 48), Path()) for name in ("train", "val", "test")}
SUITES["core_val"] = Suite("core_val", core24.split(CASES)[1], Path())
SETS = {"core24": CASES, "the training suite": SUITES["train"].scenarios}
NO_LEAK = pd.DataFrame(columns=["one", "two", "image_one", "image_two", "kind", "turn", "distance"])


def leak(one, two, kind="exact"):
    row = [one, two, f"{one}.png", f"{two}.png", kind, "as it is", 0]
    return pd.DataFrame([row], columns=NO_LEAK.columns)


def sound(text):
    return text.endswith(".") and not [word for word in BAD_WORDS if word in text]


def distances(strangers=(40, 60), copies=(0, 4)):
    rows = [("mri", STRANGERS, d) for d in strangers]
    rows += [("mri", kind, d) for kind in COPIES for d in copies]
    return pd.DataFrame(rows, columns=["modality", "kind", "distance"])


def test_no_leak_is_said_only_if_there_is_none():
    text = data_audit_page.leak_sentence(SUITES, NO_LEAK)
    assert "No image of a test" in text and sound(text)
    # what two suites to fit on, or two tests, share does no harm
    harmless = pd.concat([leak("train", "val"), leak("test", "core_val")])
    assert data_audit_page.leak_sentence(SUITES, harmless) == text


@pytest.mark.parametrize("ends", [("train", "test"), ("test", "train")])
def test_leak_is_named_whichever_suite_comes_first(ends):
    text = data_audit_page.leak_sentence(SUITES, leak(*ends))
    assert "both sides: 1**, such as train.png and test.png" in text and "scores on test" in text
    table = data_audit_page.leak_table(SUITES, leak(*ends)).set_index(["Fitted on", "Tested on"])
    assert table["Same pixels"].sum() == 1 and table.loc[("train", "test"), "Same pixels"] == 1
    assert ("val", "core val") in table.index and len(table) == 4


def test_detection_says_what_is_missed():
    good = data_audit_page.detection_sentence(distances())
    assert "6 of 6 kinds" in good and "not reliably" not in good and sound(good)
    poor = data_audit_page.detection_sentence(distances(strangers=(10, 60), copies=(0, 40)))
    assert "0 of 6 kinds" in poor and "cropped" in poor and "50.0" in poor and sound(poor)
    assert "no false-alarm rate" in data_audit_page.detection_sentence(distances(strangers=()))
    table = data_audit_page.detection_table(distances())
    assert len(table) == 7 and table["most"].tolist()[0] == 60


def test_phrases():
    clean = leakage.phrase_leaks(SUITES)
    text = data_audit_page.phrase_sentence(clean)
    assert "No finding and no treatment" in text and "Complaints are shared" in text and sound(text)
    mixed = {"train": SUITES["test"], "test": SUITES["test"]}
    text = data_audit_page.phrase_sentence(leakage.phrase_leaks(mixed))
    assert "Words of a test were seen" in text and "findings of test in train" in text and sound(text)
    table = data_audit_page.phrase_table(clean)
    assert set(table["Tested on"]) == {"test", "core val"}
    assert table["Findings of the test that were seen"].str.startswith("0 of").all()
    n = len({s.finding for s in SUITES["test"].scenarios})
    assert table.set_index(["Fitted on", "Tested on"]).iloc[:, 0].loc[("train", "test")] == f"0 of {n}"


def test_findings():
    text = data_audit_page.finding_sentence(SUITES)
    assert "each of them occurs" in text and sound(text)
    few = SUITES | {"train": SUITES["train"].rows([0]), "val": SUITES["val"].rows([0])}
    assert "in no suite to fit on: histopathology" in data_audit_page.finding_sentence(few)
    assert {"Modality", "Finding", "Train", "Test"} <= set(data_audit_page.finding_table(SUITES))


def test_balance_sentence_blames_no_group_without_evidence():
    core = data_audit_page.balance_sentence(leakage.label_balance(CASES), "core24")
    assert "2 of" in core and "*normal or benign* (0 of 12 CORRECT)" in core and sound(core)
    balance = leakage.label_balance(SUITES["test"].scenarios)
    fair = data_audit_page.balance_sentence(balance, "the test")
    assert "no group predicts" in fair and sound(fair)  # the hidden verdict source is not blamed
    table = data_audit_page.balance_table(balance)
    assert table["Factor"].iloc[0] == "verdict source (never shown)" and len(table) == 10


def test_shortcut_tables_stand_side_by_side():
    table = data_audit_page.shortcut_table(SETS).set_index("Reading the finding alone")
    assert list(table.columns) == list(SETS)
    assert table.loc["Verdicts that this one rule gets", "core24"].startswith("24 of 24")
    text = data_audit_page.shortcut_sentence(SETS)
    assert "24 of 24 verdicts of core24 (all there is to know)" in text and sound(text)
    assert "training suite (chance)" in text
    words = data_audit_page.word_table(SETS, rows=3)
    assert words["Set"].tolist() == ["core24"] * 3 + ["the training suite"] * 3
    assert words["Word"].iloc[0] == "normal"
    assert sound(data_audit_page.word_sentence(SETS))


def test_image_faults_are_separated_from_the_rest():
    found = [Issue("mask", "error", "m", files=("a.png", "b.png")), Issue("balance", "warning", "b")]
    assert [i.check for i in data_audit_page.image_issues(found)] == ["mask"]
    text = data_audit_page.image_sentence(found)
    assert "faults: mask (1)**, in 2 files" in text and sound(text)
    assert "no fault" in data_audit_page.image_sentence(found[1:])


def test_figures_draw_every_group_and_modality():
    balances = {"a": leakage.label_balance(CASES), "b": leakage.label_balance(SUITES["test"].scenarios)}
    figure = data_audit_page.balance_figure(balances)
    labels = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    assert {"Wording", "abnormal", "female", "mri: normal"} <= set(labels)
    figure = data_audit_page.distance_figure(distances())
    assert isinstance(figure, Figure) and len(figure.axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        data_audit_page.distance_figure(distances().head(0))


def test_distance_figure_of_measured_distances(tmp_path):
    rows = []
    for number in range(3):
        file = f"mri_{number}.png"
        draw.draw("mri", "normal", number, size=64).save(tmp_path / file)
        rows.append(SUITES["test"].scenarios[0].model_copy(update={"image": file, "modality": "mri"}))
    measured = leakage.hash_distances(Suite("test", rows, tmp_path), sample=2)
    assert len(measured) == 3 + 2 * len(COPIES)
    assert isinstance(data_audit_page.distance_figure(measured), Figure)
    assert sound(data_audit_page.detection_sentence(measured))
