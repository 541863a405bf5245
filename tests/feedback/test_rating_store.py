"""The store of ratings is append-only and replayed; preferences follow from it; comments stay in it."""

import contextlib
import json
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlib import stats
from medlib.config import DataError, run_dir
from medlib.data.suite import Suite
from medlib.feedback import queue, rating_store
from medlib.feedback.preferences import (
    collected,
    consensus,
    export,
    heldout_side,
    is_heldout,
    rating_file,
    ratings_in_use,
    training_side,
)
from medlib.feedback.simulated import NAMES
from medlib.reporting.notebooks import collect_feedback as collect_feedback_page

KEYS = [f"{number:064x}" for number in range(6)]


def rating(rater="reader-1", key=KEYS[0], agree=True, **more):
    """Of a case that the model calls ERROR, unless told otherwise."""
    shown = more.pop("shown", "ERROR")
    severity = "high" if rating_store.verdict_of(shown, agree) == "ERROR" else "none"
    return {
        "rater": rater,
        "key": key,
        "shown": shown,
        "p_correct": 0.2,
        "agree": agree,
        "severity": severity,
    } | more


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ratings.sqlite"


@pytest.fixture
def rated(small_config, monkeypatch):
    """A configuration whose adapter's answers are made up: every fourth verdict is wrong."""
    from medlib.data import sources

    config = small_config.model_copy(update={"feedback_pairs": 24, "feedback_note_pairs": 8, "rater_noise": 0.1})
    suite = sources.feedback(config)
    p = [0.9 if (s.verdict == "CORRECT") != (i % 4 == 0) else 0.1 for i, s in enumerate(suite.scenarios)]
    answers = stats.predictions_table(suite.scenarios, pd.DataFrame({"p_correct": p}))
    monkeypatch.setattr(queue, "pool", lambda _: (suite, answers))
    return config


# --- the store ---


def test_nothing_is_ever_changed_deleted_or_replaced(file):
    rating_store.add(file, [rating(), rating(key=KEYS[1])])
    rating_store.undo(file, "reader-1")
    before = rating_store.rows(file)
    with sqlite3.connect(file) as connection:
        for statement in (
            "UPDATE ratings SET severity = 'critical'",
            "DELETE FROM ratings",
            "INSERT OR REPLACE INTO ratings (id, time, rater) VALUES (1, 'now', 'reader-1')",
            "INSERT OR REPLACE INTO ratings (time, rater, withdraws) VALUES ('now', 'reader-2', 2)",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="only added"):
                connection.execute(statement)
    pd.testing.assert_frame_equal(rating_store.rows(file), before)
    assert before["withdraws"].tolist() == [None, None, 2]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reader-1", "reader-2"]),
            st.sampled_from(["rate", "rate", "undo"]),
            st.sampled_from(KEYS),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_replaying_gives_what_was_not_withdrawn(tmp_path_factory, steps):
    file = tmp_path_factory.mktemp("replay") / "ratings.sqlite"
    rating_store.add(file, [])
    standing = {"reader-1": [], "reader-2": []}
    for rater, action, key, agree in steps:
        if action == "rate":
            rating_store.add(file, [rating(rater, key, agree)])
            standing[rater].append((key, agree))
        else:
            withdrawn = rating_store.undo(file, rater)
            assert withdrawn == (standing[rater].pop()[0] if standing[rater] else None)
    table = rating_store.current(file)
    for rater, ratings in standing.items():
        own = table[table["rater"] == rater]
        assert dict(zip(own["key"], own["agree"])) == dict(ratings)  # the last rating of a case counts


def test_two_raters_can_write_at_a_time(file):
    def rate(rater):
        for key in KEYS:
            rating_store.add(file, [rating(rater, key)])

    threads = [threading.Thread(target=rate, args=(f"reader-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rating_store.current(file).groupby("rater").size().tolist() == [len(KEYS)] * 4


def test_ratings_are_added_all_or_none(file):
    with pytest.raises(DataError, match="new row 2, field 'severity'"):
        rating_store.add(file, [rating(), rating(key=KEYS[1], severity="severe")])
    assert not file.exists() or rating_store.rows(file).empty


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"severity": "none"}, "severity: 'none' does not fit ERROR"),
        ({"agree": False, "severity": "high"}, "severity: 'high' does not fit CORRECT"),
        ({"rater": "Jane Doe"}, "field 'rater'"),
        ({"key": "feedback_00000_a"}, "field 'key'"),
        ({"p_correct": 1.5}, "field 'p_correct'"),
        ({"shown": "MAYBE"}, "field 'shown'"),
        ({"simulated": True, "noise": 0.1}, "simulated"),
        ({"rater": "simulated-1"}, "simulated"),
        ({"rater": "simulated-1", "simulated": True}, "noise"),
    ],
)
def test_an_inconsistent_rating_is_refused(file, wrong, message):
    good = rating()
    with pytest.raises(DataError, match=message):
        rating_store.add(file, [good | wrong])


def test_bad_rows_name_file_row_and_field(file):
    rating_store.add(file, [rating()])
    with sqlite3.connect(file) as connection:
        connection.execute(
            "INSERT INTO ratings (time, rater, key, shown, p_correct, agree, severity, simulated) "
            "VALUES ('now', 'reader-1', ?, 'ERROR', 0.1, 1, 'severe', 0)",
            (KEYS[1],),
        )
    with pytest.raises(DataError, match=r"ratings.sqlite, row 2, field 'severity'"):
        rating_store.current(file)


def test_an_undo_of_what_is_not_there_is_refused(file):
    rating_store.add(file, [rating()])
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO ratings (time, rater, withdraws) VALUES ('now', 'reader-2', 1)")
    with pytest.raises(DataError, match="row 2, field 'withdraws'"):
        rating_store.current(file)


def test_other_files_are_refused_and_left_alone(tmp_path, file):
    with pytest.raises(DataError, match="no ratings there"):
        rating_store.current(file)
    text = tmp_path / "notes.txt"
    text.write_text("no database, but longer than the header of one: " * 20)
    with pytest.raises(DataError, match="notes.txt"):
        rating_store.add(text, [rating()])
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE ratings (film TEXT, stars INTEGER)")
    with pytest.raises(DataError, match="other.sqlite: no column id"):
        rating_store.add(tmp_path / "other.sqlite", [rating()])
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "Dr House",
        "jane.doe@clinic.org",
        "simulated-3",
        "x" * 20 + "1",
        "é-1",
        "jane-doe",
        "janedoe",
        "Jane",
    ],
)
def test_what_could_be_a_name_is_no_pseudonym(text):
    with pytest.raises(DataError, match="pseudonym"):
        rating_store.pseudonym(text)
    assert rating_store.pseudonym(" Reader-7 ") == "reader-7"


def test_a_secret_is_given_once_and_kept_as_a_salted_hash(file):
    first, second = rating_store.enrol(file, "reader-1"), rating_store.enrol(file, "reader-2")
    assert first != second and rating_store.enrol(file, "reader-1") is None
    rating_store.check_secret(file, "reader-1", first)
    for name, secret in (("reader-1", second), ("reader-1", ""), ("reader-3", first)):
        with pytest.raises(DataError, match="not the secret"):
            rating_store.check_secret(file, name, secret)
    assert first.encode() not in file.read_bytes()
    with sqlite3.connect(file) as connection:
        for statement in ("DELETE FROM raters", "UPDATE raters SET hash = x'00'",
                          "INSERT OR REPLACE INTO raters VALUES ('reader-1', 'now', x'00', x'00')"):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)


# --- who may read it, and what goes wrong with it ---


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_stores_and_preferences_are_for_their_owner(rated, tmp_path):
    before = os.umask(0)
    try:
        rating_store.add(tmp_path / "new" / "ratings.sqlite", [rating()])
        preferences = export(rated, tmp_path / "preferences.jsonl")
        simulated_file = ratings_in_use(rated)
    finally:
        os.umask(before)
    rights = {path: stat.S_IMODE(path.stat().st_mode) for path in (
        tmp_path / "new", tmp_path / "new" / "ratings.sqlite", preferences, simulated_file, run_dir(rated),
    )}  # fmt: skip
    assert list(rights.values()) == [0o700, 0o600, 0o600, 0o600, 0o700]


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
rows = [["x" * 3000]] * 200
connection.executemany("INSERT INTO ratings (time, rater, comment) VALUES ('now', 'reader-1', ?)", rows)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_readers_go_on_after_a_writer_was_killed(file):
    rating_store.add(file, [rating()])
    subprocess.run([sys.executable, "-c", KILLED, str(file)])
    assert file.with_name("ratings.sqlite-journal").stat().st_size > 0
    assert list(rating_store.current(file)["key"]) == [KEYS[0]]
    rating_store.add(file, [rating(key=KEYS[1])])
    assert len(rating_store.rows(file)) == 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("SQLITE_BUSY", "another program has been writing"),
        ("SQLITE_LOCKED", "another program has been writing"),
        ("SQLITE_FULL", "the disk is full"),
        ("SQLITE_READONLY_DIRECTORY", "may not be written; check the rights"),
        ("SQLITE_CANTOPEN", "may not be written; check the rights"),
        ("SQLITE_NOTADB", "is it a store of ratings"),
    ],
)
def test_each_trouble_has_words_of_its_own(name, message):
    error = sqlite3.OperationalError("words of sqlite")
    error.sqlite_errorname = name
    assert message in rating_store._reason(error)


def test_a_locked_store_says_so(file, monkeypatch):
    rating_store.add(file, [])
    connect = sqlite3.connect
    monkeypatch.setattr(rating_store.sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"timeout": 0.01}))
    with contextlib.closing(connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match="ratings.sqlite: another program has been writing"):
            rating_store.add(file, [rating()])


# --- what raters see ---


def test_every_rater_has_their_own_fixed_order(file):
    keys = [f"{n:064x}" for n in range(50)]
    first = queue.order(keys, "reader-1")
    assert sorted(first) == list(range(50)) and first == queue.order(keys, "reader-1")
    assert first != queue.order(keys, "reader-2") and first != queue.order(keys, "reader-1", seed=1)
    moved = queue.order(keys[::-1], "reader-1")
    assert [keys[::-1][row] for row in moved] == [keys[row] for row in first]  # by key, not by place


def test_a_returning_rater_continues_where_they_stopped(file):
    order = queue.order(KEYS, "reader-1")
    assert queue.still_open(file, KEYS, "reader-1") == order
    for row in order[:3]:
        rating_store.add(file, [rating(key=KEYS[row])])
    rating_store.add(file, [rating("reader-2", KEYS[order[4]])])
    assert queue.still_open(file, KEYS, "reader-1") == order[3:]
    rating_store.undo(file, "reader-1")
    assert queue.still_open(file, KEYS, "reader-1") == order[2:]


def test_a_case_reveals_nothing_of_gold_and_origin(rated):
    suite, answers = queue.pool(rated)
    for row, scenario in enumerate(suite.scenarios):
        case = queue.case(suite, answers, row)
        assert set(case) == {"key", "image", "modality", "text", "shown", "p_correct", "answer"}
        words = json.dumps({name: value for name, value in case.items() if name != "image"})
        secret = [scenario.id, scenario.image, "contradiction", *map(str, scenario.factors.values())]
        assert not [s for s in secret if "_" in s and s in words]
        assert case["shown"] == ("CORRECT" if case["p_correct"] >= 0.5 else "ERROR")


# --- from ratings to preferences ---


def made(*verdicts, severity="high", row=0):
    """Ratings of one case by as many raters as verdicts."""
    return pd.DataFrame(
        [
            {
                "row": row,
                "key": KEYS[row],
                "rater": f"reader-{i}",
                "verdict": verdict,
                "severity": severity if verdict == "ERROR" else "none",
                "simulated": False,
            }
            for i, verdict in enumerate(verdicts)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["CORRECT", "ERROR"]), min_size=1, max_size=7))
def test_consensus_is_the_majority_and_ties_are_left_out(suite, verdicts):
    pool = Suite("small", suite[0], suite[1])
    table = consensus(pool, made(*verdicts))
    errors = verdicts.count("ERROR")
    if 2 * errors == len(verdicts):
        assert table.empty
        return
    only = table.iloc[0]
    assert only["chosen"] == ("ERROR" if 2 * errors > len(verdicts) else "CORRECT") != only["rejected"]
    assert only["severity"] == ("high" if only["chosen"] == "ERROR" else "none")
    assert only["raters"] == len(verdicts) and only["agreement"] == verdicts.count(only["chosen"]) / len(verdicts)


@pytest.mark.parametrize(
    "given_levels, median",
    [
        (["moderate"], "moderate"),
        (["moderate", "high"], "high"),
        (["moderate", "critical"], "high"),
        (["moderate", "moderate", "critical"], "moderate"),
        (["high", "critical", "critical", "moderate"], "critical"),
    ],
)
def test_severity_is_the_median_and_between_two_levels_the_more_severe(suite, given_levels, median):
    ratings = pd.concat([made("ERROR", severity=level) for level in given_levels])
    assert consensus(Suite("small", *suite), ratings).iloc[0]["severity"] == median


def test_the_two_sides_share_no_pair_and_no_image(rated):
    (train, to_learn), (held_out, to_measure) = training_side(rated), heldout_side(rated)
    assert not set(to_learn["pair"]) & set(to_measure["pair"])
    assert not {s.image for s in train.scenarios} & {s.image for s in held_out.scenarios}
    for side, table in ((train, to_learn), (held_out, to_measure)):
        assert list(table["id"]) == [s.id for s in side.scenarios] and list(table["key"]) == side.keys()
        assert table["simulated"].all() and (table["raters"] == 2).all() and (table["agreement"] == 1).all()
    suite, ratings = collected(rated)
    assert len(to_learn) + len(to_measure) == len(consensus(suite, ratings)) < len(suite)  # ties


def test_about_a_quarter_of_the_pairs_is_held_out():
    share = np.mean([is_heldout(f"feedback_{number:05d}") for number in range(2000)])
    assert abs(share - 0.25) < 0.03


def test_without_noise_the_consensus_is_the_gold_verdict(rated):
    suite, ratings = collected(rated.model_copy(update={"rater_noise": 0.0}))
    table = consensus(suite, ratings)
    assert list(table["chosen"]) == [s.verdict for s in suite.scenarios]
    assert list(table["severity"]) == [s.severity for s in suite.scenarios]


def test_simulated_ratings_are_made_once_and_again_for_other_noise(rated):
    file = ratings_in_use(rated)
    before = file.read_bytes()
    assert ratings_in_use(rated) == file and file.read_bytes() == before
    assert ratings_in_use(rated.model_copy(update={"rater_noise": 0.3})) != file
    rows = rating_store.rows(file)
    assert set(rows["rater"]) == set(NAMES)
    assert (rows["simulated"] == 1).all() and (rows["noise"] == 0.1).all()


def test_a_killed_writer_of_simulated_ratings_leaves_nothing_in_the_run(rated, monkeypatch):
    def killed(file, rows):
        raise KeyboardInterrupt(str(file))

    monkeypatch.setattr(rating_store, "add", killed)
    with pytest.raises(KeyboardInterrupt) as where:
        ratings_in_use(rated.model_copy(update={"rater_noise": 0.25}))
    assert not str(where.value).startswith(str(run_dir(rated)))


def test_ratings_of_unknown_cases_are_reported(rated, file):
    suite, _ = queue.pool(rated)
    rating_store.add(file, [rating(key=suite.keys()[0]), rating(key=KEYS[0])])
    config = rated.model_copy(update={"ratings": str(file)})
    with pytest.warns(UserWarning, match="1 of 2 ratings are of cases that are not in this run's pool.*row 2"):
        _, known = collected(config)
    assert list(known["row"]) == [0]


def test_too_few_ratings_say_what_to_do(rated, file):
    rating_store.add(file, [])
    with pytest.raises(DataError, match="rate more cases"):
        training_side(rated.model_copy(update={"ratings": str(file)}))


def test_export_is_read_by_datasets_and_prepared_by_trl(rated, tmp_path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    file = export(rated, tmp_path / "out" / "preferences.jsonl")
    table = load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]
    suite, ratings = collected(rated)
    assert len(table) == len(consensus(suite, ratings)) and set(table["side"]) == {"train", "heldout"}
    row = table[0]
    scenario = suite.scenarios[suite.keys().index(row["key"])]
    assert is_conversational(row) and row["images"] == [scenario.image] and row["simulated"] is True
    content = prepare_multimodal_messages(row["prompt"], [suite.image(scenario)])[0]["content"]
    assert [part["type"] for part in content] == ["image", "text"] and scenario.finding in content[1]["text"]
    assert {row["chosen"][0]["content"][:5], row["rejected"][0]["content"][:5]} == {"CORRE", "ERROR"}


def test_comments_and_pseudonyms_leave_the_store_nowhere(rated, file, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    suite, _ = queue.pool(rated)
    secret = "Mrs Miller, born 1950"
    rating_store.add(
        file,
        [rating(rater, key, comment=secret) for rater in ("reader-1", "reader-2") for key in suite.keys()[:8]],
    )
    config = rated.model_copy(update={"ratings": str(file)})
    exported = export(config, tmp_path / "preferences.jsonl").read_text()
    assert exported.count("\n") == 8 and "Miller" not in exported and "reader-1" not in exported
    assert "comment" not in exported
    suite, ratings = collected(config)
    shown = [
        collect_feedback_page.rated_table(suite, ratings),
        collect_feedback_page.preference_table(suite, ratings),
    ]
    told = [
        collect_feedback_page.rated_sentence(ratings),
        collect_feedback_page.disagreement_sentence(suite, ratings),
    ]
    printed = "".join([caplog.text, *capsys.readouterr(), *map(str, told), *(t.to_string() for t in shown)])
    assert "Miller" not in printed


# --- what the notebook shows ---


def test_figures_and_sentences_name_simulated_raters(rated):
    from medlib.stats import agreement

    suite, ratings = collected(rated)
    agreed = agreement.summary(ratings)
    for words in (
        collect_feedback_page.rated_sentence(ratings),
        collect_feedback_page.agreement_sentence(agreed, ratings),
        collect_feedback_page.preference_sentence(suite, ratings),
        collect_feedback_page.where_sentence(rated),
        collect_feedback_page.disagreements(suite, ratings).get_suptitle(),
        *collect_feedback_page.rated_table(suite, ratings)["Kind"],
    ):
        assert "simulated" in words
    assert any("SIMULATED" in text.get_text() for text in collect_feedback_page.disputed(suite, ratings).texts)
    contradicted = collect_feedback_page.by_kind(suite, ratings)
    assert sum(rate["n"] for rate in contradicted["among"]) == len(suite)
    assert 0.15 < np.mean([rate["value"] for rate in contradicted["with_model"]]) < 0.35  # one in four is wrong


def test_the_notebook_can_be_run_before_anybody_rated(rated, file):
    from medlib.stats import agreement

    rating_store.add(file, [])
    suite, ratings = collected(rated.model_copy(update={"ratings": str(file)}))
    agreed = agreement.summary(ratings)
    assert "Nobody" in collect_feedback_page.rated_sentence(ratings)
    assert (
        collect_feedback_page.agreement_table(agreed).empty
        and collect_feedback_page.rated_table(suite, ratings).empty
    )
    assert "two raters" in collect_feedback_page.agreement_sentence(agreed, ratings)
    assert "no consensus" in collect_feedback_page.disagreement_sentence(suite, ratings)
    assert "0 of" in collect_feedback_page.preference_sentence(suite, ratings)
    assert collect_feedback_page.preference_table(suite, ratings)["Cases"].sum() == 0
    for draw in (collect_feedback_page.disagreements, collect_feedback_page.disputed):
        assert draw(suite, ratings).get_suptitle().startswith("No")


def test_unused_ratings_are_reported(rated, file):
    rating_store.add(rating_file(rated), [rating()])
    assert "not used yet: **1**" in collect_feedback_page.where_sentence(rated)
    assert str(file) in collect_feedback_page.where_sentence(rated.model_copy(update={"ratings": str(file)}))
