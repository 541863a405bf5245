"""Tables in the forms in which people keep them."""

import json
import time

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlib.config import DataError
from medlib.data import tables


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xef\xbb\xbfid,finding\r\n1,\xc3\xa9t\xc3\xa9\r\n\r\n2,NA\r\n"),
        ("a.csv", "id;finding\n1;été\n2;NA\n".encode("cp1252")),
        ("a.csv", "id,finding\n1,été\n2,NA\n".encode("utf-16")),
        ("a.tsv", "id\tfinding\n1\tété\n2\tNA\n".encode()),
        ("a.jsonl", '{"id": 1, "finding": "été"}\r\n\n{"id": 2.0, "finding": "NA"}'.encode()),
    ],
)
def test_every_form_gives_the_same_text(tmp_path, name, content):
    table = written(tmp_path, name, content)
    assert table.frame.to_dict("records") == [{"id": "1", "finding": "été"}, {"id": "2", "finding": "NA"}]
    assert not table.problems


def test_parquet(tmp_path):
    pd.DataFrame({"id": [1, 2], "cost": [1.5, None], "ok": [True, False]}).to_parquet(tmp_path / "a.parquet")
    table = tables.read(tmp_path / "a.parquet")
    assert table.frame.to_dict("records") == [
        {"id": "1", "cost": "1.5", "ok": "true"},
        {"id": "2", "cost": "", "ok": "false"},
    ]
    with pytest.raises(DataError, match="b.parquet: cannot be read as parquet"):
        written(tmp_path, "b.parquet", "text")


def test_guesses_are_noted(tmp_path):
    table = written(tmp_path, "a.csv", "id;finding\n1;été\n".encode("cp1252"))
    assert any("separated by ';'" in note for note in table.notes)
    assert any("cp1252" in note for note in table.notes)


def test_bad_rows_are_listed_and_the_rest_is_read(tmp_path):
    table = written(tmp_path, "a.csv", 'id,finding\n1,one\n2\n3,three,more\n4,"four\nlines"\n5,five,\n')
    assert list(table.frame["id"]) == ["1", "4", "5"] and table.rows == [2, 5, 6]
    assert [p.split(":")[0] for p in table.problems] == ["a.csv, row 3", "a.csv, row 4"]
    table = written(tmp_path, "a.jsonl", '{"id": 1}\n{"id":\n[1]\n{"id": 4}\n')
    assert table.rows == [1, 4]
    assert "row 2: not valid JSON" in table.problems[0] and "row 3: not a JSON object" in table.problems[1]


def test_an_open_quotation_mark_is_said(tmp_path):
    table = written(tmp_path, "a.csv", 'id,finding\n1,one\n2,"two\n3,three\n4,four\n'.replace("2,", ""))
    (problem,) = table.problems
    assert "row 3" in problem and "spans 3 lines, is a quotation mark left open?" in problem


@pytest.mark.parametrize("content", ["", "\n\n", "id,finding\n"])
def test_a_file_without_rows(tmp_path, content):
    with pytest.raises(DataError, match="a.csv: no rows"):
        written(tmp_path, "a.csv", content)


def test_two_columns_of_one_name(tmp_path):
    with pytest.raises(DataError, match="row 1: columns of one name: 'id'"):
        written(tmp_path, "a.csv", "id,id\n1,2\n")


def test_objects_inside_become_columns(tmp_path):
    record = {"id": "a", "patient": {"age": 4, "id": "p"}, "tags": ["x"], "none": None}
    (flat,) = written(tmp_path, "a.jsonl", json.dumps(record)).frame.to_dict("records")
    assert flat == {"id": "a", "tags": '["x"]', "none": "", "age": "4", "patient.id": "p"}


def test_the_instruction_format_is_taken_apart(tmp_path):
    text = "**Patient:**\n- Age: 62\n- Complaint: pain: chest\n\n**Clinical Finding:**\nA mass\n\n**You:**"
    record = {"id": "a", "instruction": "Audit.", "input": text, "output": "CORRECT - x", "metadata": {"m": "ct"}}
    (flat,) = written(tmp_path, "a.jsonl", json.dumps(record)).frame.to_dict("records")
    assert flat == {
        "id": "a",
        "output": "CORRECT - x",
        "m": "ct",
        "Age": "62",
        "Complaint": "pain: chest",
        "Clinical Finding": "A mass",
    }


cell = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=5))
def test_what_pandas_writes_is_read_back(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["id", "finding"], dtype=str)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.csv", "a.jsonl"):
        assert tables.read(tmp_path / name).frame.to_numpy().tolist() == frame.to_numpy().tolist()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(tables.SUFFIXES))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    try:
        table = written(tmp_path, f"a{suffix}", content)
    except DataError as error:
        assert f"a{suffix}" in str(error)
    else:
        assert len(table.rows) == len(table.frame)


def test_headings_of_a_hostile_text_are_read_in_time():
    started = time.perf_counter()
    for text in ("**A**" + "\n" * 100_000, "**" * 50_000, "**A" * 20_000, "**A**\n" + "- " * 50_000):
        tables.headings(text)
    assert time.perf_counter() - started < 5
