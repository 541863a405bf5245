"""The view in which one case is asked about: widgets for Jupyter and Voilà over `medlib.audit`."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from medlib.audit import cases
from medlib.audit.answer import MEANING, CaseAudit
from medlib.audit.auditor import Auditor
from medlib.audit.rationale import certainty, sentences
from medlib.config import ANSWERS, MODALITIES, NOT_A_DEVICE, DataError, ModelError, NotRun, RunConfig
from medlib.data import own, sources
from medlib.data.cases import Case
from medlib.data.suite import Suite, shown
from medlib.reporting import rating_view
from medlib.reporting.rating_view import SIDE

STYLE = """<style>
.audit .answer {border-left: 5px solid #0550ae; background: #eef4fb; color: #1f2328; padding: 8px 12px}
.audit .answer.query {border-color: #a40e26; background: #fdf0f1}
.audit .answer.abstain {border-color: #bf8700; background: #fff8e6}
.audit .notice {border-left: 5px solid #bf8700; padding: 4px 12px}
</style>"""
EXAMPLES = 4


def show(config: RunConfig) -> widgets.Widget:
    """The view over this run's adapter, with a few held-out cases to try; ConfigError without an adapter."""
    return AuditView(Auditor(config), examples(config)).page


def served() -> widgets.Widget:
    """The page that Voilà serves (``notebooks/voila/audit.ipynb``), over the run that ``MEDLIB_RUN_DIR`` names."""
    return rating_view.served(show, "audit")


def examples(config: RunConfig, count: int = EXAMPLES) -> Suite:
    """Held-out cases to try, as many of each modality as there are."""
    suite = sources.suite(config, "test")
    first: dict[str, list[int]] = {}
    for row, scenario in enumerate(suite.scenarios):
        first.setdefault(scenario.modality, []).append(row)
    return suite.rows([row for rows in zip(*first.values()) for row in rows][:count])


class AuditView:
    """Pick or upload an image, fill in the note, ask; then change the note and ask again, side by side.

    Parameters
    ----------
    auditor : Auditor
    examples : Suite
        Cases to start from.

    Attributes
    ----------
    page : widget to display
    answers : list of CaseAudit
        The answer shown, and the one to the changed case.
    """

    def __init__(self, auditor: Auditor, examples: Suite) -> None:
        self.auditor, self.examples = auditor, examples
        self.answers: list[CaseAudit] = []
        self.case: Case | None = None
        self.folder: Path | None = None
        self.uploads: Any = None  # a folder that vanishes with the view
        self._make_widgets()
        self.page = widgets.VBox(layout={"max_width": "1120px", "padding": "8px"})
        self.page.add_class("rating").add_class("audit")
        self.page.children = [widgets.HTML(rating_view.STYLE + STYLE), self.form, self.message, self.results]

    # --- widgets ---

    def _make_widgets(self) -> None:
        named = [(f"{s.modality}: {s.finding[:60]}", row) for row, s in enumerate(self.examples.scenarios)]
        self.example = widgets.Dropdown(options=[("an image of your own", None), *named], layout={"width": "auto"})
        accepted = ",".join(sorted(own.IMAGE_SUFFIXES))
        self.upload = widgets.FileUpload(accept=accepted, description="Upload an image", layout={"width": "auto"})
        self.fields = {
            "modality": widgets.Combobox(options=MODALITIES, placeholder="such as xray"),
            "age": widgets.Text(placeholder="years, such as 62"),
            "sex": widgets.Text(placeholder="female, male or other"),
            "complaint": widgets.Text(),
            "finding": widgets.Textarea(placeholder="What the note says of the image"),
            "treatment": widgets.Textarea(placeholder="What is prescribed"),
        }
        self.with_map = widgets.Checkbox(True, description="Map of what the verdict rests on", indent=False)
        self.ask = rating_view._button("Ask", "Ask the model about this case", primary=True)
        self.again = rating_view._button(
            "What if? Ask again", "Ask about the changed note, beside the first answer"
        )
        self.again.disabled = True
        self.message, self.status = widgets.HTML(), widgets.HTML()
        notice = f"<p class='notice'>{html.escape(NOT_A_DEVICE)}</p>"
        lines = [
            widgets.HBox([widgets.Label(name.capitalize(), layout={"width": "110px"}), field])
            for name, field in self.fields.items()
        ]
        for field in self.fields.values():
            field.layout.width = "min(560px, 70vw)"
        self.form = widgets.VBox(
            [
                widgets.HTML(
                    f"<h3>Ask about a case</h3>{notice}<p>The image stays on this machine; nothing is stored.</p>"
                ),
                widgets.HBox([self.example, self.upload], layout={"flex_flow": "row wrap"}),
                *lines,
                self.with_map,
                widgets.HBox([self.ask, self.again, self.status], layout={"flex_flow": "row wrap"}),
            ]
        )
        self.results = widgets.HBox(layout={"flex_flow": "row wrap"})
        self.example.observe(self._take_example, "value")
        self.ask.on_click(lambda _: self._guarded(first=True))
        self.again.on_click(lambda _: self._guarded(first=False))

    # --- actions ---

    def _take_example(self, _=None) -> None:
        if self.example.value is None:
            return
        case = self.examples.scenarios[self.example.value]
        patient = case.patient
        words = {"modality": case.modality, "finding": case.finding, "treatment": case.treatment}
        stated = {"age": patient.age, "sex": patient.sex, "complaint": patient.complaint}
        for name, value in (words | stated).items():
            self.fields[name].value = "" if value is None else str(value)

    def _guarded(self, first: bool) -> None:
        """Ask; errors appear on the page."""
        self.message.value = ""
        self.ask.disabled = self.again.disabled = True
        self.status.value = "<p role='status'>Asking the model…</p>"
        try:
            self._ask(first)
        except (DataError, ModelError, NotRun) as error:
            self.message.value = f"<p class='rating-error' role='alert'>{html.escape(str(error))}</p>"
        finally:
            self.status.value, self.ask.disabled, self.again.disabled = "", False, not self.answers

    def _ask(self, first: bool) -> None:
        case, folder = cases.one(self._image(), **{name: field.value for name, field in self.fields.items()})
        answer = self.auditor.case(case, folder, with_map=self.with_map.value)
        self.answers = [answer] if first or not self.answers else [self.answers[0], answer]
        image = shown(folder, case.image)
        panel = _panel(answer, image, "First answer" if first else "What if")
        self.results.children = [panel] if len(self.answers) == 1 else [self.results.children[0], panel]

    def _image(self) -> Path:
        if self.example.value is not None:
            return self.examples.images_dir / self.examples.scenarios[self.example.value].image
        if not self.upload.value:
            raise DataError("image: choose a case of the list, or upload an image")
        uploaded = self.upload.value[0]
        self.uploads = self.uploads or tempfile.TemporaryDirectory()
        suffix = Path(uploaded["name"]).suffix.lower()
        file = Path(self.uploads.name) / f"image{suffix if suffix in own.IMAGE_SUFFIXES else ''}"
        file.write_bytes(uploaded["content"])
        return file


def _panel(answer: CaseAudit, image, title: str) -> widgets.Widget:
    size = f"{SIDE}px"
    pictures = [widgets.Image(value=rating_view._png(image), format="png", width=SIDE, height=SIDE)]
    if answer.drop is not None:
        drawn = rating_view._png_of_map(image, answer.drop)
        pictures.append(widgets.Image(value=drawn, format="png", width=SIDE, height=SIDE))
    panel = widgets.VBox([widgets.HTML(answer_html(answer, title)), *pictures])
    panel.layout.width, panel.layout.margin = size, "0 24px 16px 0"
    return panel


def answer_html(answer: CaseAudit, title: str) -> str:
    """An answer as the view shows it."""
    sure = certainty(answer.verdict, answer.probability)
    case = answer.case
    parts = [
        f"<h4>{html.escape(title)}</h4><p><small>{html.escape(case['finding'])}<br>"
        f"<b>{html.escape(case['treatment'])}</b></small></p>"
        f"<p class='answer {answer.decision}'><b>{answer.decision.upper()}</b>: {MEANING[answer.decision]}<br>"
        f"{ANSWERS[answer.verdict]} (calibrated probability {sure})</p>",
        _list("", [f"Because {reason}." for reason in answer.reasons]),
        _list("What the verdict rests on", sentences(answer.verdict, answer.without or {})),
        _list(
            "Training cases with the most similar images",
            [f"{n['finding']}; {n['treatment']}; {n['verdict']} ({n['similarity']:.2f})" for n in answer.nearest],
        ),
        f"<p><small>Passes from a probability of CORRECT of {answer.threshold:.3g} on; "
        f"here {answer.p_correct:.3g}. {html.escape(answer.guarantee)} {html.escape(answer.notice)}</small></p>",
    ]
    if answer.drop is not None:
        parts.append(
            f"<p><small>Orange spots of the image speak for {answer.verdict}, purple ones against it.</small></p>"
        )
    return "".join(parts)


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    heading = f"<p><b>{title}</b></p>" if title else ""
    return f"{heading}<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"
