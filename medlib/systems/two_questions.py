"""What the stand-in's pretraining knew already: two of its questions in place of the audit question.

The stand-in was pretrained on statements about images and treatments, in the phrases of all splits. Asked whether
the image shows the finding and whether the treatment is used for it, the untouched base gets most verdicts right:
what training adds on drawn cases is to compose relations that were known. Another model was not asked such
questions, so for it this system does not run.
"""

from __future__ import annotations

import numpy as np
import torch

from medlib.config import NotRun, provenance
from medlib.data.suite import Suite
from medlib.models import features, loading
from medlib.models.standin.medgemma import SHOWS, USED, collate, encode
from medlib.models.verdict_model import VerdictModel
from medlib.systems import medgemma
from medlib.systems.registry import System, register
from medlib.systems.session import Session


@register("two-questions")
def two_questions(session: Session) -> System:
    """P(CORRECT) is the product of P(yes) to both questions, by the untouched stand-in."""
    if not loading.is_standin(session.config.model):
        raise NotRun("its two questions are those of the stand-in's pretraining")
    revision = provenance.digest([medgemma.revision(session), SHOWS, USED])

    def predict(suite: Suite) -> np.ndarray:
        with medgemma.using(session, None) as model:
            return p_yes(model, suite, SHOWS) * p_yes(model, suite, USED)

    return System("two-questions", revision, predict, chunk=64)


def question(kind: str, scenario) -> str:
    """`SHOWS` without the treatment or `USED` with it, in the form of the pretraining."""
    patient = scenario.patient
    lines = [f"Patient: {patient.age} years, {patient.sex}. {patient.complaint}."]
    lines += [f"Clinical finding: {scenario.finding}."]
    lines += [f"Prescribed treatment: {scenario.treatment}."] if kind == USED else []
    return "\n".join([kind, "", *lines])


@torch.no_grad()
def p_yes(model: VerdictModel, suite: Suite, kind: str) -> np.ndarray:
    """Probability of yes against no, float array (n,); the image is shown with `SHOWS` only."""
    shows = kind == SHOWS
    encoded = [encode(model.processor, question(kind, s), None, shows) for s in suite.scenarios]
    batch = {name: value.to(model.device) for name, value in collate(model.processor, encoded).items()}
    batch.pop("labels")
    if shows:
        pixels = [features.pixels_of(model.processor, suite.image(s)) for s in suite.scenarios]
        batch["pixel_values"] = torch.cat(pixels).to(model.device)
    ends = torch.tensor([length - 1 for _, length in encoded], device=model.device)
    logits = model.network(**batch).logits[torch.arange(len(ends)), ends].float()
    ids = model.processor.tokenizer(["yes", "no"], add_special_tokens=False).input_ids
    chosen = logits[:, [answer[0] for answer in ids]]
    return chosen.softmax(-1)[:, 0].cpu().numpy().astype(float)
