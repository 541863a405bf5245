"""The static pages of a worklist."""

from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from medlib.audit.reference import Decision
from medlib.audit.worklist import COLUMNS, Worklist
from medlib.reporting import worklist_page

AUDITOR = SimpleNamespace(
    standin=True, label="nano + LoRA", reference=SimpleNamespace(decision=Decision(0.4, "A guarantee."))
)


@pytest.fixture
def out(tmp_path):
    """Six answered rows and one that failed."""
    rows = [
        ("pass", 0.01, ""),
        ("query", 0.8, ""),
        ("abstain", 0.99, "the image is unlike the rest"),
        ("query", 0.95, ""),
        ("pass", 0.2, ""),
        ("failed", None, "image 'x.png' not found"),
        ("abstain", 0.1, "unsure"),
    ]
    frame = pd.DataFrame(rows, columns=["decision", "risk", "reasons"]).reindex(columns=COLUMNS)
    frame["place"] = [f"list.csv, row {n}" for n in range(2, 9)]
    frame["id"] = [f"00{n}" for n in range(7)]
    frame["finding"] = "<script>alert(1)</script>"
    frame.to_csv(tmp_path / "worklist.csv", index=False)
    return tmp_path


def read(file):
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def test_what_needs_a_look_comes_first_and_failures_are_listed(out):
    page = read(worklist_page.render(out, AUDITOR, [], out))
    rows = [[cell.get_text(" ") for cell in row.find_all("td")] for row in page.tbody.find_all("tr")]
    assert [row[3].split()[0] for row in rows] == ["003", "001", "002", "006", "004", "000"]
    assert [row[2] for row in rows] == ["95.0%", "80.0%", "99.0%", "10.0%", "20.0%", "1.0%"]
    assert "unlike the rest" in rows[2][1]
    assert "Not answered: 1" in page.text and "list.csv, row 7: image 'x.png' not found" in page.text
    assert "2 query" in page.text and "2 pass" in page.text and "A guarantee." in page.text
    assert "not a medical device" in page.text and "knows no medicine" in page.text


def test_gold_verdicts_are_scored_on_the_page(out):
    assert "gold" not in read(worklist_page.render(out, AUDITOR, [], out)).text
    table = pd.read_csv(out / "worklist.csv", dtype=str)
    table["verdict"], table["gold"] = ["CORRECT"] * 7, ["CORRECT", "ERROR", None, "CORRECT", None, "ERROR", None]
    table.to_csv(out / "worklist.csv", index=False)
    text = read(worklist_page.render(out, AUDITOR, [], out)).text
    assert "Right against the gold verdict: 66.7%" in text and "(n=3)" in text


def test_a_note_is_text_and_nothing_is_loaded_from_elsewhere(out):
    file = worklist_page.render(out, AUDITOR, [], out)
    page = read(file)
    assert not page.find_all("script") and "alert(1)" in page.tbody.text
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "http" not in policy
    assert not [tag for tag in page.find_all(src=True) if "://" in tag["src"]]


def test_a_long_list_has_several_pages(out, monkeypatch):
    monkeypatch.setattr(worklist_page, "PER_PAGE", 4)
    first = read(worklist_page.render(out, AUDITOR, [], out))
    second = read(out / "page-2.html")
    assert len(first.tbody.find_all("tr")) == 4 and len(second.tbody.find_all("tr")) == 2
    assert [link["href"] for link in first.nav.find_all("a")] == ["page-2.html"]
    assert "Not answered" not in second.text


def test_the_summary_counts_every_row(tmp_path):
    problems = [(f"row {n}", "broken") for n in range(25)]
    done = Worklist(tmp_path, Counter({"pass": 3, "query": 1, "failed": 25}), problems, None, 4, 2.0)
    text = worklist_page.summary(done)
    assert "query: 1, abstain: 0, pass: 3, failed: 25 (of 29 rows)" in text
    assert text.count("not answered: ") == 20 and "and 5 more" in text and "medical device" in text
