"""The view that asks about one case: its widgets over a stub, and all of it in a real browser."""

import io
import re
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from medlib.audit.answer import CaseAudit
from medlib.config import ROOT, runs
from medlib.data.suite import Suite
from medlib.reporting.audit_view import AuditView, answer_html


class Stub:
    """An auditor that objects to whatever begins with "no", and says how often it was asked."""

    def __init__(self):
        self.asked = []

    def case(self, case, images_dir, with_map=False):
        assert (images_dir / case.image).is_file()
        self.asked.append(case)
        objects = case.treatment.lower().startswith("no")
        return CaseAudit(
            case=case.model_dump(),
            verdict="ERROR" if objects else "CORRECT",
            p_correct=0.02 if objects else 0.97,
            probability=0.05 if objects else 0.9,
            decision="query" if objects else "pass",
            threshold=0.6,
            guarantee="A guarantee.",
            reasons=[],
            system="stub",
            standin=True,
            hashes={},
            without={"image": 0.5, "finding": 0.2, "treatment": 0.9},
            nearest=[
                {"id": "t", "finding": "a <b>mass</b>", "treatment": "x", "verdict": "ERROR", "similarity": 0.9}
            ],
            drop=np.eye(2) if with_map else None,
        )


@pytest.fixture
def view(suite):
    return AuditView(Stub(), Suite("small", suite[0][:4], suite[1]))


def shown_html(view):
    return [panel.children[0].value for panel in view.results.children]


def test_an_example_fills_the_note_and_is_answered(view, suite):
    view.example.value = 0
    first = suite[0][0]
    assert view.fields["finding"].value == first.finding and view.fields["age"].value == str(first.patient.age)
    view.ask.click()
    [text] = shown_html(view)
    assert not view.message.value and ("PASS" in text or "QUERY" in text)
    assert "A guarantee." in text and "medical device" in text and "knows no medicine" in text
    assert len(view.results.children[0].children) == 3  # words, image, map
    asked = view.auditor.asked[0]
    assert (asked.finding, asked.patient) == (first.finding, first.patient)


def test_what_if_stands_beside_the_first_answer(view):
    assert view.again.disabled
    view.example.value, view.fields["treatment"].value = 0, "Surgery"
    view.fields["treatment"].value = "Surgery"
    view.ask.click()
    view.fields["treatment"].value = "No treatment"
    view.again.click()
    first, second = shown_html(view)
    assert "PASS" in first and "QUERY" in second and "No treatment" in second
    view.again.click()
    assert len(view.results.children) == 2  # the first answer and the newest
    view.ask.click()
    assert len(view.results.children) == 1


def test_an_uploaded_image_is_asked_about(view):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype="uint8").reshape(8, 8)).save(buffer, "PNG")
    uploaded = {"name": "../../x.PNG", "type": "", "size": 0, "content": buffer.getvalue()}
    view.upload.value = (uploaded | {"last_modified": datetime.now()},)
    view.fields["finding"].value, view.fields["treatment"].value = "a mass", "biopsy"
    view.with_map.value = False
    view.ask.click()
    assert not view.message.value and view.auditor.asked[0].image == "image.png"
    assert len(view.results.children[0].children) == 2


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [("age", "old", "age: "), ("finding", "", "finding: "), (None, None, "upload an image")],
)
def test_what_is_wrong_is_said_on_the_page(view, field, text, said):
    if field:
        view.example.value = 0
        view.fields[field].value = text
    view.ask.click()
    assert said in view.message.value and not view.auditor.asked and not view.ask.disabled


def test_words_of_a_case_are_text_and_no_markup(view):
    view.example.value = 0
    view.fields["treatment"].value = "<script>alert(1)</script>"
    view.ask.click()
    [text] = shown_html(view)
    assert "<script" not in text and "a &lt;b&gt;mass" in text


def test_reasons_to_abstain_are_listed(view):
    view.example.value = 0
    view.ask.click()
    unlike = replace(view.answers[0], decision="abstain", reasons=["the image is unlike the rest"])
    assert "Because the image is unlike the rest." in answer_html(unlike, "First answer")


def test_the_notebook_shows_the_view():
    cells = nbformat.read(ROOT / "notebooks" / "11_audit_a_case.ipynb", 4).cells
    assert any("audit_view.AuditView(" in cell.source for cell in cells)


# --- in a browser

CELL = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_audit_view import Stub
from medlib.data.cases import read_scenarios
from medlib.data.suite import Suite
from medlib.reporting.audit_view import AuditView

folder = Path({folder!r})
AuditView(Stub(), Suite("small", read_scenarios(folder / "scenarios.jsonl")[:4], folder / "images")).page
"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_case_in_a_browser(page, serve, suite, tmp_path):
    folder = suite[1].parent
    address = serve(CELL.format(root=str(ROOT), tests=str(ROOT / "tests" / "reporting"), folder=str(folder)))
    page.goto(address, timeout=120_000)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("choose a case of the list, or upload an image").wait_for()
    assert page.get_by_role("button", name="What if? Ask again").is_disabled()

    image = suite[1] / suite[0][0].image
    with page.expect_file_chooser() as chooser:  # the widget's own input is not in the page
        page.get_by_role("button", name="Upload an image").click()
    chooser.value.set_files(str(image))
    finding, treatment = page.locator("textarea").all()
    finding.fill("A round opacity")
    treatment.fill("Surgery")
    page.get_by_placeholder("such as xray").fill("xray")
    page.get_by_placeholder("years, such as 62").fill("62")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("PASS", exact=True).wait_for()
    assert page.locator(".audit img").count() == 2  # image and map
    treatment.fill("No treatment")
    page.get_by_role("button", name="What if? Ask again").click()
    page.get_by_text("QUERY", exact=True).wait_for()
    boxes = [page.get_by_text(word, exact=True).bounding_box() for word in ("PASS", "QUERY")]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 5 and boxes[1]["x"] > boxes[0]["x"] + 300  # side by side
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.screenshot(path=tmp_path / "audit.png", full_page=True)


@pytest.mark.slow
@pytest.mark.browser
def test_the_served_page_asks_a_run(page, serve, small_config, random_adapter, tmp_path, monkeypatch):
    config = small_config.model_copy(update={"calibration_pairs": 12, "contradiction_pairs": 12})
    runs.record(config)
    shutil.copytree(random_adapter, Path(config.run_dir) / "adapter")
    monkeypatch.setenv("MEDLIB_RUN_DIR", config.run_dir)
    monkeypatch.setenv("MEDLIB_HOME", str(tmp_path / "home"))
    (cell,) = nbformat.read(ROOT / "notebooks" / "voila" / "audit.ipynb", 4).cells
    page.goto(serve(cell.source), timeout=120_000)
    page.locator("select").select_option(index=1, timeout=120_000)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text(re.compile("^(PASS|QUERY|ABSTAIN)$")).wait_for(timeout=240_000)
    assert page.locator(".audit img").count() == 2 and "medical device" in page.content()
