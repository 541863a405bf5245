"""The rating view: its widgets, and the whole of it in a real browser."""

import io
import re
from types import SimpleNamespace

import ipywidgets as widgets
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlib import stats
from medlib.config import ROOT, NotRun
from medlib.data.suite import Suite
from medlib.feedback import rating_store
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import rating_view
from medlib.reporting.rating_view import RatingView
from medlib.systems import Session


@pytest.fixture
def pool(suite):
    """Eight cases; the model calls the first half CORRECT."""
    some = Suite("small", suite[0][:8], suite[1])
    p = [0.8] * 4 + [0.3] * 4
    return some, stats.predictions_table(some.scenarios, pd.DataFrame({"p_correct": p}))


@pytest.fixture
def view(pool, tmp_path):
    return RatingView(*pool, tmp_path / "ratings.sqlite")


def sign_in(view, name="reader-1", secret=""):
    view.name.value, view.secret.value = name, secret
    view.start.click()


def told(view):
    """The secret that the page has just told a new rater."""
    return re.search("secret is <b>([0-9a-f]{8})</b>", view.message.value).group(1)


def all_widgets(widget):
    """A widget and all below it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


def rate(view, agree, severity=None, comment=""):
    view.agree.value = agree
    if severity:
        view.severity.value = severity
    view.comment.value = comment
    view.save.click()


def until(view, verdict):
    """Continue to a case with this verdict of the model."""
    while view.case["shown"] != verdict:
        rate(view, agree=view.case["shown"] == "CORRECT")


def test_a_name_is_refused_with_a_message(view):
    sign_in(view, "Jane Doe")
    assert "no pseudonym" in view.message.value and view.rating not in view.page.children
    sign_in(view, "reader-1")
    assert view.rating in view.page.children and "Your secret is" in view.message.value


def test_a_pseudonym_is_of_no_use_without_its_secret(view, pool):
    sign_in(view)
    secret = told(view)
    rate(view, view.case["shown"] == "CORRECT")
    assert secret not in view.message.value
    view.leave.click()
    assert view.secret.value == ""
    other = RatingView(*pool, view.file)
    for wrong, answer in (("", "taken"), ("0" * 8, "not the secret")):
        sign_in(other, "reader-1", wrong)
        assert answer in other.message.value and other.rating not in other.page.children and other.rater is None
    sign_in(other, "reader-2", secret)
    assert "not the secret" in other.message.value
    sign_in(other, "reader-1", f" {secret.upper()} ")
    assert other.rater == "reader-1" and other.progress.value == 1


def test_severity_is_asked_only_of_raters_who_say_error(view):
    sign_in(view)
    until(view, "ERROR")
    assert view.severity.disabled and view.save.disabled
    view.agree.value = True
    assert not view.severity.disabled and view.save.disabled
    view.severity.value = "critical"
    assert not view.save.disabled
    view.agree.value = False  # the rater's verdict is CORRECT now
    assert view.severity.disabled and view.severity.value is None and not view.save.disabled


def test_what_is_rated_is_what_is_stored(view, pool):
    sign_in(view)
    for agree in (True, False):
        until(view, "ERROR")
        key = view.case["key"]
        rate(view, agree, "high" if agree else None, comment=" second look needed ")
        row = rating_store.current(view.file).set_index("key").loc[key]
        assert row["agree"] == agree and row["shown"] == "ERROR" and row["p_correct"] == pytest.approx(0.3)
        assert row["severity"] == ("high" if agree else "none") and row["comment"] == "second look needed"
        assert not row["simulated"] and row["rater"] == "reader-1"


def test_a_case_is_new_after_saving(view):
    sign_in(view)
    first = view.case["key"]
    rate(view, True, "moderate" if view.case["shown"] == "ERROR" else None, "a comment")
    assert view.case["key"] != first
    assert view.agree.value is None and view.severity.value is None and not view.comment.value
    view.save.click()  # a second click on the same button
    assert len(rating_store.current(view.file)) == 1


def test_undo_shows_the_case_again(view):
    sign_in(view)
    assert view.undo.disabled
    keys = []
    for _ in range(2):
        keys.append(view.case["key"])
        rate(view, view.case["shown"] == "CORRECT")
    view.undo.click()
    assert view.case["key"] == keys[1] and "1 of 8" in view.counted.value and "withdrawn" in view.message.value
    view.undo.click()
    assert view.case["key"] == keys[0] and view.undo.disabled
    assert len(rating_store.rows(view.file)) == 4 and rating_store.current(view.file).empty


def test_a_rater_continues_where_they_stopped_and_another_starts_afresh(view, pool):
    sign_in(view)
    secret = told(view)
    for _ in range(3):
        rate(view, view.case["shown"] == "CORRECT")
    waiting = view.case["key"]
    view.leave.click()
    assert view.sign_in in view.page.children and view.name.value == ""
    again = RatingView(*pool, view.file)
    sign_in(again, " Reader-1", secret)
    assert again.case["key"] == waiting and again.progress.value == 3
    sign_in(view, "reader-2")
    assert "<b>0 of 8</b> rated by <b>reader-2</b>" in view.counted.value


def test_the_view_says_when_every_case_is_rated(view):
    sign_in(view)
    for _ in range(8):
        rate(view, view.case["shown"] == "CORRECT")
    assert "every case" in view.columns.children[0].value and view.progress.value == 8
    view.save.click()
    assert len(rating_store.rows(view.file)) == 8


def test_nothing_on_the_page_reveals_gold_or_origin(view, pool):
    sign_in(view)
    for _ in range(8):
        scenario = pool[0].scenarios[view.row]
        words = " ".join(
            str(w.get_state(("value",)).get("value"))
            for w in all_widgets(view.page)
            if hasattr(w, "value") and not isinstance(w, widgets.Image)
        )
        secret = [scenario.id, scenario.image, "contradiction", *map(str, scenario.factors.values())]
        assert not [s for s in secret if "_" in s and s in words]
        with Image.open(io.BytesIO(view.image.value)) as image:
            assert not image.info  # the metadata of a synthetic image reveal what it shows
        rate(view, view.case["shown"] == "CORRECT")


def test_text_of_a_case_is_text_and_no_markup(pool, tmp_path):
    some, answers = pool
    nasty = [s.model_copy(update={"finding": "<script>alert(1)</script>"}) for s in some.scenarios]
    view = RatingView(Suite("small", nasty, some.images_dir), answers, tmp_path / "r.sqlite")
    sign_in(view)
    assert "<script" not in view.note.value and "&lt;script&gt;" in view.note.value


def test_a_broken_store_is_reported_on_the_page(view):
    view.file.write_text("not a database, but longer than the header of one: " * 20)
    sign_in(view)
    assert "ratings.sqlite" in view.message.value and view.rating not in view.page.children


def test_the_verdict_can_be_taken_apart(pool, tmp_path, nano, small_config):
    session = Session(small_config, {})
    both = VerdictModel(nano[0], nano[1])
    session.__dict__ |= {"base": both, "adapted": both}
    view = RatingView(*pool, tmp_path / "r.sqlite", session=session)
    sign_in(view)
    assert view.explain in view.seen.children and view.map not in view.seen.children
    view.explain.click()
    with Image.open(io.BytesIO(view.map.value)) as image:
        assert image.size == (800, 800)
    assert view.reason.value.count("<li>") == 3 and "gives no reasons" in view.reason.value
    rate(view, view.case["shown"] == "CORRECT")
    assert view.map not in view.seen.children and not view.explain.disabled


def test_reasons_in_words():
    case = {"shown": "ERROR", "p_correct": 0.2}
    rationale = {"drop": np.zeros((2, 2)), "without": {"image": 0.9, "finding": 0.004}}
    text = rating_view.reason_text(case, rationale)
    assert "Without the image the verdict <b>changes</b>" in text
    assert "Without the finding the verdict stays, at more than 99%" in text


def test_the_page_of_the_raters_shows_the_view_and_nothing_else():
    (cell,) = nbformat.read(ROOT / "notebooks" / "voila" / "rate.ipynb", 4).cells
    assert cell.source.split() == "from medlib.reporting import rating_view rating_view.served()".split()
    analysis = nbformat.read(ROOT / "notebooks" / "05_collect_feedback.ipynb", 4).cells
    assert not any("rating_view" in c.source for c in analysis if c.cell_type == "code")
    parameters = next(c.source for c in analysis if "parameters" in c.metadata.get("tags", []))
    for name in ("ratings", "rater_noise", "feedback_pairs", "feedback_note_pairs"):
        assert re.search(rf"^{name} = None", parameters, re.MULTILINE)


def test_the_page_serves_the_run_and_the_store_of_the_environment(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLIB_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("MEDLIB_RATINGS", str(tmp_path / "ratings.sqlite"))
    monkeypatch.setattr(rating_view.queue, "pool", lambda config: pool)
    served = []
    monkeypatch.setattr(rating_view, "RatingView", lambda *a: served.append(a) or SimpleNamespace(page=a))
    rating_view.served()
    assert served[0][2] == tmp_path / "ratings.sqlite"
    assert served[0][4].config.run_dir == str(tmp_path / "run")

    def unasked(config):
        raise NotRun("no <adapter>")

    monkeypatch.setattr(rating_view.queue, "pool", unasked)
    assert rating_view.served().value == "<p role='alert'>no &lt;adapter&gt;</p>"


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("notebooks/05_collect_feedback.ipynb", "notebooks/voila/rate.ipynb"),
        ("docs/feedback.md", "notebooks/voila/rate.ipynb"),
        ("docs/audit.md", "notebooks/voila/audit.ipynb"),
    ],
)
def test_the_command_has_a_token_and_ends_idle_kernels(file, page):
    _, *commands = (ROOT / file).read_text(encoding="utf-8").split(f"voila {page}")
    assert commands
    for command in commands:
        assert all(flag in command[:300] for flag in ("--token", "cull_idle_timeout", "cull_interval"))


def test_the_notebook_of_one_case_sends_to_the_command_with_a_token():
    text = (ROOT / "notebooks" / "11_audit_a_case.ipynb").read_text(encoding="utf-8")
    assert "docs/audit.md" in text and "voila " not in text


# --- in a browser ---

CELL = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import pandas as pd
from medlib import stats
from medlib.data.cases import read_scenarios
from medlib.data.suite import Suite
from medlib.reporting import rating_view

folder = Path({folder!r})
suite = Suite("small", read_scenarios(folder / "scenarios.jsonl")[:8], folder / "images")
answers = stats.predictions_table(suite.scenarios, pd.DataFrame({{"p_correct": [0.8] * 4 + [0.3] * 4}}))
rating_view.RatingView(suite, answers, Path({file!r})).page
"""


@pytest.fixture
def voila(suite, tmp_path, serve):
    """Address of the view, served by Voilà, and its store."""
    file = tmp_path / "ratings.sqlite"
    return serve(CELL.format(root=str(ROOT), folder=str(suite[1].parent), file=str(file))), file


@pytest.mark.slow
@pytest.mark.browser
def test_two_raters_in_a_browser(voila, page):
    address, file = voila

    def start(name, done, secret=""):
        page.get_by_placeholder("such as reader-7").fill(name)
        page.get_by_placeholder("your secret").fill(secret)
        page.keyboard.press("Tab")  # the keyboard is enough
        page.keyboard.press("Enter")
        page.get_by_text(f"{done} of 8").wait_for()

    def save(done, agree, severity=None):
        page.get_by_role("button", name="Agree" if agree else "Disagree", exact=True).click()
        verdict = page.get_by_text("Your verdict:")
        verdict.wait_for()
        if "ERROR" in verdict.inner_text():
            page.get_by_role("button", name=severity or "High", exact=True).click()
        page.locator("button:enabled", has_text="Save & next").click()
        page.get_by_text(f"{done} of 8").wait_for()

    page.goto(address, timeout=120_000)
    start("reader-1", done=0)
    secret = re.search("secret is ([0-9a-f]{8})", page.get_by_text("Your secret is").inner_text()).group(1)
    assert page.get_by_role("button", name="Critical").is_disabled()
    inside = page.evaluate("""() => [...document.querySelectorAll('.rating *')].filter(
        e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != 'visible'
        && e.innerText).map(e => e.className)""")
    assert inside == []  # no text is cut off at 1200 points
    save(1, agree=True, severity="Critical")
    page.locator("textarea").fill("not sure")
    save(2, agree=False)
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Your last rating is withdrawn").wait_for()

    page.reload(timeout=120_000)
    start("reader-1", done=1, secret=secret)
    page.get_by_role("button", name="Stop here").click()
    start("reader-2", done=0)
    save(1, agree=True)

    rows = rating_store.rows(file)
    assert list(rows["rater"]) == ["reader-1"] * 3 + ["reader-2"]
    assert list(rows["withdraws"]) == [None, None, 2, None]
    assert rows["comment"][1] == "not sure" and list(rows["agree"]) == [1, 0, None, 1]
    ratings = rating_store.current(file)
    assert list(ratings["rater"]) == ["reader-1", "reader-2"] and not ratings["simulated"].any()
