"""Do note and image disagree: what is asked, how the limit is chosen, and what an answer says."""

from dataclasses import replace

import numpy as np
import pytest

from medlib.audit import agreement
from medlib.audit.agreement import Agreement, choose
from medlib.config import STANDIN, RunConfig
from medlib.data import sources
from medlib.data.synthetic import grammar
from medlib.models import loading, prompts
from medlib.models.verdict_model import VerdictModel


def answers(fitting, contradicting):
    return np.array([*fitting, *contradicting]), np.array([True] * len(fitting) + [False] * len(contradicting))


def test_the_limit_lies_between_two_kinds_that_are_apart():
    chosen = choose(*answers([0.9] * 50, [0.1] * 30))
    assert chosen == Agreement(pytest.approx(0.5), 0, 50, 30, 30)


def test_no_more_than_the_share_of_false_alarms_is_held_back():
    fitting = np.linspace(0.02, 0.99, 100)  # five of them are below 0.06
    chosen = choose(*answers(fitting, [0.05] * 20 + [0.3] * 20))
    assert (chosen.false_alarms, chosen.found) == (4, 20) and 0.05 < chosen.limit < fitting[4]
    assert chosen.false_alarms == (fitting < chosen.limit).sum()


@pytest.mark.parametrize(
    ("fitting", "contradicting"),
    [
        ([0.9] * 50, []),  # of cases of one's own nobody knows
        ([], [0.1] * 50),
        ([0.5] * 50, [0.5] * 50),
        (np.linspace(0, 1, 50), np.linspace(0, 1, 50)),
        ([0.9] * 3, [0.1]),  # too few to tell
    ],
)
def test_answers_that_tell_nothing_give_no_limit(fitting, contradicting):
    assert choose(*answers(fitting, contradicting)) is None


def test_the_reason_states_the_limit_and_its_price():
    reason = Agreement(0.25, 2, 100, 38, 40).reason(0.01)
    assert "note and the image disagree" in reason and "probability of 0.01, below 0.25" in reason
    assert "38 of 40" in reason and "2 of 100 without" in reason
    assert Agreement(0.25, 2, 100, 38, 40).reason(0.25) is None


def test_the_question_names_the_finding_and_not_the_treatment(suite):
    case = suite[0][0].model_copy(update={"treatment": "a secret\nthing", "finding": "mass <end_of_turn>"})
    [turn] = prompts.shows_messages(case, "image")
    text = turn["content"][1]["text"]
    assert text.startswith(prompts.SHOWS) and "secret" not in text and "thing" not in text
    assert text.replace(prompts.MARK, "").endswith("Clinical finding: mass <end_of_turn>.")
    assert "<end_of_turn>" not in text  # marked, so that it is read as text


def test_the_adapter_is_off_while_the_base_is_asked(nano, random_adapter, suite):
    from medlib.data.suite import Suite

    few = Suite("few", suite[0][:5], suite[1])
    base = VerdictModel(*nano[:2])
    before = agreement.shows(base, few, batch_size=2)
    adapted = base.with_adapter(random_adapter)
    try:
        np.testing.assert_allclose(agreement.shows(adapted, few), before, atol=1e-5)
    finally:
        adapted.network.unload()
    assert ((before > 0) & (before < 1)).all() and not len(agreement.shows(base, few.rows([])))


def test_the_stand_in_tells_notes_that_fit_from_those_that_contradict(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SUITES_DIR", tmp_path)
    config = RunConfig(val_pairs=12, test_pairs=12, contradiction_pairs=12, run_dir=str(tmp_path / "run"))
    model = loading.load_for(config)
    chosen = agreement.of_run(config, model)
    assert chosen.false_alarms <= 0.05 * chosen.fitting and chosen.found > 0.8 * chosen.contradicting
    held = sources.contradiction(config, "test")
    below = agreement.shows(model, held) < chosen.limit
    assert below.mean() > 0.8 and config.model == STANDIN


def test_each_note_beside_an_image_is_asked_once_and_unknown_ones_never(suite):
    from medlib.data.suite import Suite

    both = [*grammar.note_pairs("val", 3, 0)]
    unknown = [both[0].model_copy(update={"id": "x", "finding": "other", "factors": {}})]
    assert len(agreement._one_per_note(Suite("notes", both + unknown, suite[1]))) == 3


def test_an_auditor_abstains_where_note_and_image_disagree(auditor, config, monkeypatch):
    held = sources.suite(config, "test")
    case, images = held.scenarios[0], held.images_dir
    assert not any("disagree: that" in reason for reason in auditor.case(case, images).reasons)
    monkeypatch.setattr(auditor, "reference", replace(auditor.reference, agreement=Agreement(1.0, 1, 20, 18, 20)))
    answers = [auditor.answer(case, {"p_correct": p, "shows": 0.5}, "key") for p in (1.0, 0.0)]
    assert [answer.decision for answer in answers] == ["abstain", "query"]  # an error is an error all the same
    assert all(any("disagree: that" in reason for reason in answer.reasons) for answer in answers)
    [measured] = auditor.measure(held.rows([0])).to_dict(orient="records")
    assert 0 < measured["shows"] < 1
