"""The view in which a clinician rates verdicts: widgets for Jupyter and Voilà over the rating store."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from medlib.audit.rationale import certainty, rationale, sentences
from medlib.config import SEVERITIES, ConfigError, DataError, ModelError, NotRun, RunConfig, runs
from medlib.data.suite import Suite
from medlib.feedback import queue, rating_store
from medlib.feedback.preferences import rating_file
from medlib.reporting import maps
from medlib.systems import Session

SIDE = 400  # pixels, of an image
STYLE = f"""<style>
.rating .widget-html-content, .rating textarea, .rating input[type] {{font-size: 16px !important}}
.rating .widget-html-content {{line-height: 1.5}}
.rating .widget-text input[type] {{height: 40px}} .rating button.mod-active {{background: #0550ae; color: #fff}}
.rating h3, .rating h4 {{margin: 12px 0 4px; font-size: 17px}} .rating h3 {{font-size: 22px}}
.rating p {{margin: 0 0 6px}} .rating ul {{margin: 4px 0; padding-left: 22px}}
.rating small, .rating .private {{color: #59636e; font-size: 14px; font-weight: normal}}
.rating button {{font-size: 16px; min-height: 40px; line-height: 1.2}}
.rating button:focus-visible, .rating textarea:focus-visible {{outline: 3px solid #bf8700; outline-offset: 2px}}
.rating img {{width: {SIDE}px; height: {SIDE}px}}
.rating .rating-verdict {{border-left: 5px solid #0550ae; background: #eef4fb; color: #1f2328; padding: 8px 12px}}
.rating .rating-error {{color: #a40e26}}
</style>"""
MODALITIES = {"xray": "X-ray", "histopathology": "Histopathology", "mri": "MRI", "ultrasound": "Ultrasound"}
PRIVATE = (
    "Comments are stored in this file and nowhere else. Still, do not write a patient's name, dates or numbers."
)


def served(make: Callable[[RunConfig], widgets.Widget] | None = None, command: str = "preferences"):
    """The page that Voilà serves (``notebooks/voila/rate.ipynb``): the view and nothing of the ratings so far.

    The environment says of which run and where ratings go: ``MEDLIB_RUN_DIR`` and ``MEDLIB_RATINGS``. ``make``
    makes the widget of another page with the settings of its ``command``.
    """
    given = {"run_dir": os.environ.get("MEDLIB_RUN_DIR"), "ratings": os.environ.get("MEDLIB_RATINGS")}
    try:
        return (make or show)(runs.settings_for(command, given))
    except (ConfigError, DataError, ModelError, NotRun) as error:
        return widgets.HTML(f"<p role='alert'>{html.escape(str(error))}</p>")


def show(config: RunConfig) -> widgets.Widget:
    """The view over this run's pool of cases and answers; ratings go to `preferences.rating_file`."""
    suite, answers = queue.pool(config)
    return RatingView(suite, answers, rating_file(config), config.seed, Session(config, {})).page


class RatingView:
    """Sign in, then one case after another; the screen depends on the store alone.

    Parameters
    ----------
    suite, answers
        Of `queue.pool`.
    file : Path
        The store; several raters may write to it at once.
    seed : int
        With the pseudonym it determines the order of cases.
    session : systems.Session, optional
        Its model answers what a verdict rests on; without it there is no button for that.

    Attributes
    ----------
    page : widget to display
    """

    def __init__(
        self, suite: Suite, answers: pd.DataFrame, file: Path, seed: int = 0, session: Session | None = None
    ) -> None:
        self.suite, self.answers, self.file, self.seed, self.session = suite, answers, file, seed, session
        self.keys = suite.keys()
        # all three are None while nobody is signed in
        self.rater: Any = None
        self.case: Any = None
        self.row: Any = None
        self._make_widgets()
        self.page = widgets.VBox(layout={"max_width": "1120px", "padding": "8px"})
        self.page.add_class("rating")
        self._leave()

    # --- widgets ---

    def _make_widgets(self) -> None:
        self.message = widgets.HTML()
        self.name = widgets.Text(placeholder="such as reader-7", layout={"width": "260px", "height": "40px"})
        self.secret = widgets.Password(placeholder="your secret", layout={"width": "260px", "height": "40px"})
        self.start = _button("Start", "Show the first case that you have not rated", primary=True)
        self.sign_in = widgets.VBox(
            [
                widgets.HTML(
                    "<h3>Rate the model's verdicts</h3><p>You see cases one by one, in your own random order, "
                    "each with the model's verdict. Say whether you agree, and how severe an error is. "
                    "Stop at any time; use the same pseudonym and its secret to continue where you left off.</p>"
                ),
                widgets.HTML(
                    "<p><b>Your pseudonym</b>: 2 to 20 letters, digits and hyphens, at least one digit, not your "
                    "name</p>"
                ),
                self.name,
                widgets.HTML("<p><b>Its secret</b>: leave this empty the first time, you will be given one</p>"),
                widgets.HBox([self.secret, self.start], layout={"flex_flow": "row wrap"}),
                self.message,
            ]
        )
        self.start.on_click(self._guarded(self._sign_in))

        self.progress = widgets.IntProgress(layout={"width": "auto", "height": "12px"}, bar_style="info")
        self.counted = widgets.HTML()
        self.image = widgets.Image(format="png", width=SIDE, height=SIDE)
        self.note, self.verdict = widgets.HTML(), widgets.HTML()
        self.explain = _button("What does the verdict rest on?", "Ask the model again without parts of the case")
        self.explain.layout.width = f"{SIDE}px"
        self.reason = widgets.HTML()
        self.map = widgets.Image(format="png", width=SIDE, height=SIDE)
        self.agree = _choice({"Agree": True, "Disagree": False})
        self.severity = _choice({name.capitalize(): name for name in SEVERITIES})
        self.severity_title = widgets.HTML()
        self.comment = widgets.Textarea(placeholder="Optional", layout={"width": "auto", "height": "64px"})
        self.save = _button("Save & next", "Save this rating and show the next case", primary=True)
        self.undo = _button("Undo", "Withdraw your last rating and show that case again")
        self.leave = _button("Stop here", "Leave; your ratings are saved")
        self.agree.observe(self._update, "value")
        self.severity.observe(self._update, "value")
        for button, action in (
            (self.save, self._save),
            (self.undo, self._undo),
            (self.explain, self._explain),
            (self.leave, self._leave),
        ):
            button.on_click(self._guarded(action))

        self.seen = widgets.VBox([self.image], layout={"width": f"{SIDE + 16}px", "flex": "0 0 auto"})
        self.asked = widgets.VBox(
            [
                self.note,
                self.verdict,
                _heading("Do you agree with the model?"),
                self.agree,
                self.severity_title,
                self.severity,
                _heading("Comment"),
                self.comment,
                widgets.HTML(f"<p class='private'>{PRIVATE}</p>"),
                widgets.HBox([self.save, self.undo, self.leave], layout={"flex_flow": "row wrap"}),
            ],
            layout={"flex": "1 1 420px", "min_width": "0"},
        )
        self.columns = widgets.HBox([self.seen, self.asked], layout={"flex_flow": "row wrap"})
        self.rating = widgets.VBox([self.counted, self.progress, self.message, self.columns])

    # --- actions ---

    def _guarded(self, action):
        """Run a button's action; errors appear on the page."""

        def run(_):
            self.message.value = ""
            try:
                action()
            except (DataError, ModelError, NotRun) as error:
                self.message.value = f"<p class='rating-error' role='alert'>{html.escape(str(error))}</p>"

        return run

    def _sign_in(self) -> None:
        rater, secret = rating_store.pseudonym(self.name.value), self.secret.value.strip()
        if secret:
            rating_store.check_secret(self.file, rater, secret)
        elif new := rating_store.enrol(self.file, rater):
            self.message.value = (
                f"<p role='status'>Your secret is <b>{new}</b>. Write it down now: you need it to continue later, "
                "and nobody can look it up.</p>"
            )
        else:
            raise DataError(f"{rater}: this pseudonym is taken; enter its secret, or choose another")
        self._next(rater)
        self.rater, self.secret.value = rater, ""
        self.page.children = [widgets.HTML(STYLE), self.rating]

    def _leave(self) -> None:
        self.rater, self.name.value, self.secret.value = None, "", ""
        self.page.children = [widgets.HTML(STYLE), self.sign_in]

    def _save(self) -> None:
        if self.save.disabled:
            return
        rating_store.add(
            self.file,
            [
                {
                    "rater": self.rater,
                    "key": self.case["key"],
                    "shown": self.case["shown"],
                    "p_correct": self.case["p_correct"],
                    "agree": self.agree.value,
                    "severity": self.severity.value or "none",
                    "comment": self.comment.value.strip(),
                }
            ],
        )
        self._next(self.rater)

    def _undo(self) -> None:
        key = rating_store.undo(self.file, self.rater)
        self._next(self.rater, first=None if key not in self.keys else self.keys.index(key))
        self.message.value = "<p role='status'>Your last rating is withdrawn: rate this case again.</p>"

    def _explain(self) -> None:
        assert self.session is not None  # without one there is no such button
        self.explain.disabled, self.explain.description = True, "Asking the model…"
        try:
            rests_on = rationale(self.session.adapted, self.suite, self.row, self.session.config.eval_batch_size)
        finally:
            self.explain.description = "What does the verdict rest on?"
        self.map.value = _png_of_map(self.case["image"], rests_on["drop"])
        self.reason.value = reason_text(self.case, rests_on)
        self.seen.children = [self.image, self.map, self.reason]

    def _next(self, rater: str, first: int | None = None) -> None:
        """Show ``first``, else the next case that this rater has not rated."""
        rows = queue.still_open(self.file, self.keys, rater, self.seed)
        done, total = len(self.keys) - len(rows), len(self.keys)
        self.progress.max, self.progress.value = total, done
        self.counted.value = f"<p><b>{done:,} of {total:,}</b> rated by <b>{html.escape(rater)}</b></p>"
        self.undo.disabled = done == 0
        problems = []
        for self.row in rows if first is None else [first]:
            try:
                self._show_case()
                break
            except DataError as error:  # one broken image keeps nobody from the other cases
                problems.append(str(error))
        else:
            self.row = self.case = None
            self.save.disabled = True
            self.columns.children = [widgets.HTML("<p>You have rated every case. Thank you.</p>")]
        if problems:
            left_out = f"{len(problems):,} cases cannot be shown and are left out: {problems[0]}"
            self.message.value = f"<p class='rating-error' role='alert'>{html.escape(left_out)}</p>"

    def _show_case(self) -> None:
        self.case = queue.case(self.suite, self.answers, self.row)
        self.image.value = _png(self.case["image"])
        lines = (line.partition(": ") for line in self.case["text"].split("\n"))
        self.note.value = (
            f"<h4>{html.escape(MODALITIES.get(self.case['modality'], self.case['modality']))}</h4>"
            + "".join(f"<p><b>{html.escape(name)}</b>: {html.escape(text)}</p>" for name, _, text in lines)
        )
        sure = certainty(self.case["shown"], self.case["p_correct"])
        self.verdict.value = (
            f"<p class='rating-verdict'>The model says <b>{self.case['answer']}</b>"
            f"<br>and gives it a probability of {sure}.</p>"
        )
        self.agree.value = self.severity.value = None
        self.comment.value = ""
        self.explain.disabled = False
        self.seen.children = [self.image, *([self.explain] if self.session else [])]
        self.columns.children = [self.seen, self.asked]
        self._update()

    def _update(self, _=None) -> None:
        """Enable the buttons that fit the choices made so far."""
        agree = self.agree.value
        verdict = None if agree is None else rating_store.verdict_of(self.case["shown"], agree)
        is_error = verdict == "ERROR"
        if not is_error and self.severity.value is not None:
            self.severity.value = None
        self.severity.disabled = not is_error
        self.severity_title.value = {
            None: "<h4>How severe is the error? <small>(if you think it is one)</small></h4>",
            "ERROR": "<h4>Your verdict: ERROR. How severe is it?</h4>",
            "CORRECT": "<h4>Your verdict: CORRECT. <small>There is no error to grade.</small></h4>",
        }[verdict]
        self.save.disabled = verdict is None or (is_error and self.severity.value is None)


def reason_text(case: dict, rests_on: dict) -> str:
    """The result of `medlib.audit.rationale.rationale` in words."""
    shown = case["shown"]
    parts = [
        f"<li>{line.replace('changes.', '<b>changes</b>.')}</li>" for line in sentences(shown, rests_on["without"])
    ]
    return (
        "<p>The model gives no reasons, so it was asked again without parts of the case:</p>"
        f"<ul>{''.join(parts)}</ul><p>Orange spots of the image speak for {shown}, purple ones against it. "
        "This shows what the verdict rests on, not whether it is right.</p>"
    )


def _png(image: Image.Image) -> bytes:
    """Pixels only, on a square: the metadata of a synthetic image reveal what it shows."""
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.asarray(image.convert("RGB")))
    ImageOps.pad(pixels, (2 * SIDE, 2 * SIDE), color="black").save(buffer, "PNG")
    return buffer.getvalue()


def _png_of_map(image: Image.Image, drop: np.ndarray) -> bytes:
    figure = Figure(figsize=(4, 4), dpi=SIDE / 2, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    maps.overlay(axes, image, drop, max(float(np.quantile(np.abs(drop), 0.98)), 1e-6))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def _button(description: str, tooltip: str, primary: bool = False) -> widgets.Button:
    return widgets.Button(
        description=description,
        tooltip=tooltip,
        button_style="primary" if primary else "",
        layout={"width": "auto", "min_width": "130px", "height": "40px"},
    )


def _choice(options: dict) -> widgets.ToggleButtons:
    """Buttons of which one can be chosen, none at first; the Tab key reaches each."""
    return widgets.ToggleButtons(options=list(options.items()), value=None, style={"button_width": "130px"})


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f"<h4>{text}</h4>")
