"""The registry and the kept answers: one interface, nothing asked twice, an interruption loses nothing."""

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest

from medlib.config import ConfigError, DataError, NotRun, RunConfig, path
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.systems import REGISTRY, Session, System, is_system, names, register
from medlib.systems.registry import Interrupted


@pytest.fixture
def session(small_config):
    return Session(small_config, sources.prepare(small_config))


@pytest.fixture
def asked(monkeypatch):
    """A system of a few lines, registered for one test; the list of all scenarios it was asked about."""
    calls = []
    for name in REGISTRY:
        monkeypatch.setitem(REGISTRY, name, REGISTRY[name])
    names()

    @register("half")
    def half(session: Session) -> System:
        def predict(suite):
            calls.extend(s.id for s in suite.scenarios)
            return np.array([s.patient.age / 120 for s in suite.scenarios])

        return System("half", f"r-{session.variant}", predict, chunk=5)

    return calls


def test_every_row_of_the_ladder_is_registered():
    from medlib.config import ROWS

    assert all(is_system(name) for name in (*ROWS, "openai:gpt-4o"))
    assert not is_system("google/medgemma-4b-it")


def test_an_unknown_name_lists_the_known(session):
    with pytest.raises(ConfigError, match="no system 'oracle'; systems: .*heuristics"):
        session.system("oracle")


def test_answers_come_in_the_order_of_the_suite_and_are_asked_once(session, asked):
    suite = session.suites["test"]
    frame = session.ask("half", suite)
    assert frame.id.tolist() == [s.id for s in suite.scenarios]
    assert frame.p_correct.tolist() == [s.patient.age / 120 for s in suite.scenarios]
    assert (frame.seconds >= 0).all() and len(asked) == len(suite)
    again = Session(session.config, session.suites).ask("half", suite)
    assert again.equals(frame) and len(asked) == len(suite)
    # another revision, another view and other words are other questions
    session.ask("half:other", suite)
    assert len(asked) == 2 * len(suite)
    from dataclasses import replace

    session.ask("half", replace(suite, view="grey"))
    assert len(asked) == 3 * len(suite)


def test_other_images_under_the_same_name_are_other_questions(session, asked, tmp_path):
    from dataclasses import replace

    suite = session.suites["test"].rows([0])
    session.ask("half", suite)
    image = suite.image(suite.scenarios[0]).rotate(90)
    image.save(tmp_path / suite.scenarios[0].image)
    session.ask("half", replace(suite, images_dir=tmp_path))
    assert len(asked) == 2


def test_an_interrupted_system_goes_on_where_it_stopped(session, asked, monkeypatch):
    suite, build = session.suites["test"], REGISTRY["half"]

    def breaks_off(session):
        system = build(session)

        def predict(part):
            if len(asked) >= 10:
                raise KeyboardInterrupt
            return system.predict(part)

        return System("half", system.revision, predict, chunk=5)

    REGISTRY["half"] = breaks_off
    with pytest.raises(KeyboardInterrupt):
        session.ask("half", suite)
    REGISTRY["half"] = build
    [file] = (path(session.config.run_dir) / "answers").glob("half-*.jsonl")
    file.write_text(file.read_text() + '{"key": "torn', encoding="utf-8")  # killed while it wrote
    frame = Session(session.config, session.suites).ask("half", suite)
    assert sorted(asked) == sorted(s.id for s in suite.scenarios)
    assert frame.p_correct.tolist() == [s.patient.age / 120 for s in suite.scenarios]


def test_a_damaged_line_is_named(session, asked):
    session.ask("half", session.suites["test"])
    [file] = (path(session.config.run_dir) / "answers").glob("half-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "rubbish\n", *lines[1:]]))
    with pytest.raises(DataError, match=rf"{file.name}, row 2: not an answer"):
        session.ask("half", session.suites["test"])


@pytest.mark.parametrize("answer", [[0.5], [0.5, 1.5], pd.DataFrame({"p_correct": [0.1, np.nan]})])
def test_answers_that_are_no_probabilities_are_refused(session, asked, answer):
    REGISTRY["half"] = lambda session: System("half", "bad", lambda suite: answer)
    with pytest.raises(ValueError, match="half: expected 2 answers, each probability between 0 and 1"):
        session.ask("half", session.suites["test"].rows([0, 1]))


def test_constant_and_rules(session):
    suite = session.suites["core_val"]
    constant, rules = session.ask("constant", suite), session.ask("heuristics", suite)
    assert (constant.predicted == "CORRECT").all()
    assert (constant.predicted == constant.verdict).mean() == 0.5
    assert set(rules.p_correct) <= {0.0, 1.0}


def test_the_keyword_probe_learns_from_training_words_only(session):
    system = session.system("keyword-probe")
    changed = {**session.suites, "test": session.suites["val"]}
    assert Session(session.config, changed).system("keyword-probe").revision == system.revision
    changed = {**session.suites, "train": session.suites["val"]}
    assert Session(session.config, changed).system("keyword-probe").revision != system.revision


def test_without_an_adapter_the_adapters_row_is_not_run(session):
    with pytest.raises(NotRun, match="adapter_model.safetensors is missing"):
        session.system("medgemma-lora")


def test_base_answers_are_the_same_before_and_after_the_adapter_is_on(small_config):
    from medlib.training import supervised

    supervised.train(small_config)
    suites = sources.prepare(small_config)
    before = Session(small_config, suites).ask("medgemma", suites["test"])
    elsewhere = small_config.model_copy(
        update={"run_dir": small_config.run_dir + "2", "adapter": small_config.run_dir + "/adapter"}
    )
    later = Session(elsewhere, suites)
    tuned = later.ask("medgemma-lora", suites["test"])
    after = later.ask("medgemma", suites["test"])
    assert later.has_adapter and np.array_equal(before.p_correct, after.p_correct)
    assert not np.allclose(tuned.p_correct, after.p_correct)


def test_free_answers_stand_beside_the_probabilities(session):
    frame = session.ask("medgemma", session.suites["test"].rows(range(3)), free=True)
    assert frame.generated.notna().all() and "p_correct" in frame
    kept = (path(session.config.run_dir) / "answers").glob("medgemma_free-*.jsonl")
    assert [json.loads(line)["generated"] for line in next(kept).read_text().splitlines()]


def test_words_that_the_reading_told_are_not_asked_for_again(session):
    spoken = []

    def predict(suite):
        texts = ["CORRECT" if s.patient.age % 2 else None for s in suite.scenarios]
        return pd.DataFrame({"p_correct": 0.5, "generated": texts})

    def speak(suite):
        spoken.extend(s.id for s in suite.scenarios)
        return pd.DataFrame({"generated": ["ERROR, I think"] * len(suite), "parsed": ["ERROR"] * len(suite)})

    REGISTRY["told"] = lambda session: System("told", "1", predict, speak=speak)
    try:
        suite = session.suites["test"]
        assert "generated" not in session.ask("told", suite) and not spoken
        frame = session.ask("told", suite, free=True)
        again = Session(session.config, session.suites).ask("told", suite, free=True)
    finally:
        del REGISTRY["told"]
    odd = [bool(s.patient.age % 2) for s in suite.scenarios]
    assert len(set(odd)) == 2 and sorted(spoken) == sorted(s.id for s, o in zip(suite.scenarios, odd) if not o)
    assert frame["generated"].tolist() == ["CORRECT" if o else "ERROR, I think" for o in odd]
    assert frame["parsed"].tolist() == ["CORRECT" if o else "ERROR" for o in odd] and again.equals(frame)


def test_a_broken_image_is_recorded_and_the_rest_is_answered(suite, tmp_path, asked):
    scenarios, folder = suite[0][:6], shutil.copytree(suite[1], tmp_path / "images")
    broken = {s.id for s in scenarios if s.image == scenarios[0].image}
    (folder / scenarios[0].image).write_bytes(b"no image")

    @register("looks")
    def looks(session: Session) -> System:
        def predict(part):
            asked.extend(s.id for s in part.scenarios)
            return np.array([np.asarray(part.image(s)).mean() / 255 for s in part.scenarios])

        def speak(part):
            return pd.DataFrame({"generated": [f"CORRECT {part.image(s).size}" for s in part.scenarios]})

        return System("looks", "1", predict, speak=speak)

    session = Session(RunConfig(run_dir=str(tmp_path)), {})
    frame = session.ask("looks", Suite("six", scenarios, folder), free=True)
    refused = frame["refused"].notna()
    assert set(frame.loc[refused, "id"]) == broken and "unreadable image" in frame["refused"][0]
    assert (frame.loc[refused, "predicted"] != frame.loc[refused, "verdict"]).all()
    assert frame.loc[~refused, "generated"].str.startswith("CORRECT").all()
    before = len(asked)
    again = session.ask("looks", Suite("six", scenarios, folder), free=True)
    assert again.equals(frame) and len(asked) == before


def test_an_interruption_crosses_processes():
    stop = pickle.loads(pickle.dumps(Interrupted("no answer", {3: {"p_correct": 1.0}})))
    assert str(stop) == "no answer" and isinstance(stop, NotRun)
