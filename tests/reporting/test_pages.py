import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from medlib.reporting import pages


def page(run_dir, name):
    return BeautifulSoup((run_dir / "report" / name).read_text(encoding="utf-8"), "html.parser")


def outputs(soup):
    return " ".join(tag.get_text(" ") for tag in soup.select(".jp-Cell-outputWrapper"))


def test_code_is_folded_and_outputs_are_not(finished_run):
    soup = page(finished_run, "01_data.html")
    folded = soup.select("details.code")
    assert [tag.summary.text for tag in folded] == [
        "Show default parameters", "Show parameters of this run", "Show code",
    ]  # fmt: skip
    assert not any(tag.has_attr("open") for tag in folded)
    assert all(code.find_parent("details") for code in soup.select(".highlight"))
    assert not any(tag.find_parent("details") for tag in soup.select(".jp-Cell-outputWrapper"))
    assert "42" in outputs(soup)


def test_warnings_and_progress_bars_are_left_out(finished_run):
    shown = outputs(page(finished_run, "01_data.html"))
    assert "a warning" not in shown
    assert "step 3 of 9" not in shown


def test_links_between_pages_resolve(finished_run):
    names = {path.name for path in (finished_run / "report").iterdir()}
    assert names == {"index.html", "01_data.html", "02_score.html"}
    for name in names:
        links = page(finished_run, name).nav.find_all("a")
        assert {link["href"] for link in links} == names
        assert [link["href"] for link in links if link.get("aria-current")] == [name]


def test_pages_load_nothing_and_run_nothing(finished_run):
    for path in (finished_run / "report").glob("*.html"):
        soup = page(finished_run, path.name)
        assert not soup(["script", "link", "iframe", "object", "embed"])
        assert all(tag["src"].startswith("data:") for tag in soup(src=True))
        assert not re.search(r"(@import|url\()", " ".join(tag.text for tag in soup("style")))
        policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        assert policy["content"].startswith("default-src 'none'")
        assert soup.find("meta", attrs={"name": "viewport"})
    assert "<script>alert(1)</script>" in outputs(page(finished_run, "01_data.html"))


def test_images_are_embedded(finished_run):
    images = page(finished_run, "01_data.html").select(".jp-Cell-outputWrapper img")
    assert [image["src"][:30] for image in images] == ["data:image/png;base64,iVBORw0K"]


def test_index_shows_scores_tables_and_provenance(finished_run):
    soup = page(finished_run, "index.html")
    results, modality, by_hand, rows, provenance = soup.find_all("table")
    cells = [[cell.text for cell in row(["th", "td"])] for row in results("tr")]
    assert cells == [
        ["System", "Cases", "Accuracy (95% CI)", "Critical errors missed"],
        ["base <model>", "24", "–", "–"],
        ["tuned", "24", "87.5% [69.0,\xa095.7]", "1 of 6"],
    ]
    assert [cell.text for cell in modality("td")] == ["tuned", "87.5% [69.0,\xa095.7]"]
    assert [cell.text for cell in by_hand("td")] == ["<i>x</i>", "2"]
    assert rows.td.text == "1"
    entries = {row.th.text: row.td.text for row in provenance("tr")}
    entries = {name: text for name, text in entries.items() if not name.startswith("report: ")}
    assert entries == {"parameters: model": "models/stand-in", "git: dirty": "true"}
    assert "Tuned beats base & <prior>." in soup.text
    links = soup.select("ol.notebooks li")
    assert links[0].a.text == "Look at the data"
    assert links[0].p.text == "Every case is drawn <b>twice</b>."


@pytest.mark.parametrize(
    "model, warned", [("models/standin", True), ("a stand-in", True), ("google/medgemma-4b-it", False)]
)
def test_disclaimers(model, warned):
    html = pages._index_html([{"file": "index.html"}], {"parameters": {"model_name": model}}, {})
    assert ("knows no medicine" in html) == warned
    assert "not a medical device" in html


def test_unfamiliar_metrics_are_left_out():
    for odd in ({"systems": []}, {"systems": {"a": 1}}, {"tables": "x"}, {"tables": {"t": [7]}}):
        assert "Overview" in pages._index_html([{"file": "index.html", "label": "Overview"}], {},
                                                odd)  # fmt: skip


def test_rendering_an_empty_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        pages.render(tmp_path)


def test_no_redirect_and_no_form_leaves_a_page():
    html = pages._without_network(
        '<meta charset="utf-8"><meta http-equiv="Refresh" content="0;url=https://example.org/?notes">'
        '<meta http-equiv="Content-Security-Policy" content="x"><p>kept</p>'
        '<form action="https://example.org"><input name="note"><button>Next</button></form>'
    )
    soup = BeautifulSoup(html, "html.parser")
    assert "example.org" not in html and not soup(["form", "input", "button"])
    assert soup.p.text == "kept" and [tag.attrs for tag in soup("meta")] == [
        {"charset": "utf-8"}, {"http-equiv": "Content-Security-Policy", "content": "x"},
    ]  # fmt: skip


REDIRECT = '<meta http-equiv="refresh" content="0;url=https://example.org">'


@pytest.mark.parametrize(
    "hidden",
    [
        f"<!-->{REDIRECT}-->",
        f"<!-- a --!>{REDIRECT} -->",
        f"<svg><style>{REDIRECT}</style></svg>",
        f"<svg><style>a {{}} <![CDATA[ > ]]>{REDIRECT}",
        "<math><style><form action='https://example.org'></style></math>",
        f"<![CDATA[ >{REDIRECT} ]]>",
        f"<?xml >{REDIRECT} ?>",
        f"<!x {REDIRECT}>",
        f"<!DOCTYPE x {REDIRECT}>",
        f"<title><!--</title>{REDIRECT}--></title>",
    ],
)
def test_no_redirect_and_no_form_hides_in_what_is_no_element(hidden):
    html = pages._without_network(f"<!DOCTYPE html>\n<p>kept</p>{hidden}")
    assert (
        html.startswith("<!DOCTYPE html>")
        and "<p>kept</p>" in html
        and not re.search("<meta|<form|<!(?!DOCTYPE html>)", html)
    )


def test_a_style_stays_as_it_is_but_for_what_could_open_an_element():
    style = "<style>a > b { content: '&' } /* c */</style>"
    assert pages._without_network(style) == style
    assert pages._without_network("<style>a::before { content: '<b' }</style>") == (
        r"<style>a::before { content: '\3c b' }</style>"
    )


@pytest.mark.parametrize("rule", ["default-src 'none'", "form-action 'none'", "base-uri 'none'"])
def test_the_policy_forbids_what_default_src_does_not_cover(rule):
    assert rule in pages.POLICY.split("; ")


def test_a_page_names_no_place_of_the_machine(tmp_path):
    html = f"<p>run_dir = {tmp_path.resolve()}/x, {Path.home()}/scans</p>"
    assert pages._without_machine(html, tmp_path) == "<p>run_dir = RUN/x, HOME/scans</p>"


def test_the_overview_shows_of_a_record_what_may_be_shown():
    record = {
        "parameters": {"api_base_url": "https://jane:pass@host.example/v1?key=abc", "data_dir": "/scans/Doe_Jane"},
        "hostname": "ward-7", "git": {"revision": "abc"},
    }  # fmt: skip
    html = pages._index_html([{"file": "index.html"}], record, {})
    assert "https://host.example<" in html and "abc" in html
    for word in ("jane", "pass@", "key=", "Doe", "ward-7"):
        assert word not in html
