"""Two questions of the stand-in's pretraining in place of the audit question."""

import numpy as np
import pytest

from medlib.config import STANDIN, NotRun, RunConfig
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.models.standin.medgemma import SHOWS, USED
from medlib.systems import Session, two_questions


@pytest.fixture
def session(tmp_path):
    return Session(RunConfig(model=STANDIN, run_dir=str(tmp_path)), {})


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """12 held-out pairs, one of each modality and kind."""
    folder = tmp_path_factory.mktemp("suites")
    scenarios = grammar.build_suite("small", "test", 12, 0, folder)
    return Suite("small", scenarios, folder / "small" / "images")


def test_the_untouched_base_composes_most_verdicts_from_what_it_knew(session, cases):
    answers = session.ask("two-questions", cases)
    assert (answers["verdict"] == answers["predicted"]).mean() >= 0.9
    plain = session.ask("medgemma", cases)
    assert (plain["verdict"] == plain["predicted"]).mean() <= 0.7


def test_padding_and_batches_change_no_answer(session, cases):
    few = Suite("few", cases.scenarios[:5], cases.images_dir)
    for kind in (SHOWS, USED):
        together = two_questions.p_yes(session.base, few, kind)
        alone = [two_questions.p_yes(session.base, few.rows([row]), kind)[0] for row in range(5)]
        assert together == pytest.approx(np.array(alone), abs=1e-4)


def test_the_treatment_is_in_the_second_question_only(cases):
    case = cases.scenarios[0]
    shows, used = (two_questions.question(kind, case) for kind in (SHOWS, USED))
    assert case.finding in shows and case.treatment not in shows
    assert case.finding in used and case.treatment in used


def test_another_model_is_not_asked(tmp_path):
    with pytest.raises(NotRun, match="stand-in's pretraining"):
        Session(RunConfig(model="google/medgemma-4b-it", run_dir=str(tmp_path)), {}).system("two-questions")
