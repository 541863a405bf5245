"""What a verdict rests on."""

import pytest

from medlib.audit.rationale import PARTS, rationale, sentences
from medlib.data.suite import Suite
from medlib.models import scoring
from medlib.models.verdict_model import VerdictModel


def test_rationale_is_what_the_model_does_without_parts(nano, suite):
    model = VerdictModel(nano[0], nano[1])
    pool = Suite("small", suite[0][:2], suite[1])
    rests_on = rationale(model, pool, 1, grid=2)
    assert rests_on["drop"].shape == (2, 2) and tuple(rests_on["without"]) == PARTS
    grey = scoring.p_correct(model, Suite("grey", pool.scenarios[1:], suite[1], "grey"))[0]
    assert rests_on["without"]["image"] == pytest.approx(float(grey), abs=1e-5)
    assert len({round(p, 9) for p in rests_on["without"].values()}) == 3


def test_sentences_say_which_part_the_verdict_hangs_on():
    assert sentences("ERROR", {"image": 0.9, "finding": 0.004, "treatment": 0.5}) == [
        "Without the image the verdict changes.",
        "Without the finding the verdict stays, at more than 99%.",
        "Without the treatment the verdict changes.",
    ]
