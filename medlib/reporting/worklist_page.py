"""A worklist as static pages: no script, nothing from a network; what needs a look comes first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from medlib.audit.answer import MEANING, notice
from medlib.audit.auditor import Auditor
from medlib.audit.cases import Row
from medlib.audit.worklist import DECISIONS, FAILED, Worklist
from medlib.config import NOT_A_DEVICE, files, provenance
from medlib.data.suite import Suite
from medlib.stats import proportion
from medlib.stats.text import rate_text

PER_PAGE = 250
#: The browser itself refuses scripts and anything from elsewhere, whatever a note says.
POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
STYLE = """body {font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328; margin: 0 auto;
 padding: 1rem; max-width: 75rem} h1 {font-size: 1.6rem; line-height: 1.25} a {color: #0550ae}
.notice {border-left: 5px solid #bf8700; background: #fff8e6; padding: .5rem .8rem}
table {border-collapse: collapse; width: 100%} th, td {text-align: left; vertical-align: top; padding: .5rem;
 border-bottom: 1px solid #d1d9e0} td img {width: 112px; height: 112px; object-fit: contain; background: #000}
.query {color: #a40e26; font-weight: 600} .abstain {color: #7a4e00; font-weight: 600} .pass {color: #14622a}
.number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap} small {color: #59636e}
nav {margin: 1rem 0} nav a, nav b {margin-right: .6rem}"""


def render(out: Path, auditor: Auditor, rows: Sequence[Row], images_dir: Path, maps: int = 0) -> Path:
    """Write ``index.html`` and as many further pages as there are, from ``worklist.csv``.

    Parameters
    ----------
    rows, images_dir : of `medlib.audit.cases.rows`
    maps : occlusion maps for so many of the first cases on the page

    Returns
    -------
    Path of the first page
    """
    # as text: an id such as 007 stays what it is
    table = pd.read_csv(out / "worklist.csv", dtype=str, keep_default_na=False)
    table["risk"] = pd.to_numeric(table["risk"])
    failed = table[table["decision"] == FAILED]
    answered = by_risk(table[table["decision"] != FAILED])
    cases = {row.place: row.case for row in rows}
    drawn = [
        place for place in answered["place"].head(maps) if _draw(auditor, cases[place], images_dir, out, place)
    ]
    pages = max(1, math.ceil(len(answered) / PER_PAGE))
    for page in range(pages):
        part = answered.iloc[page * PER_PAGE : (page + 1) * PER_PAGE]
        body = [
            _head(auditor, table, failed if page == 0 else failed[:0]),
            _navigation(page, pages),
            _table(part, set(drawn)),
            _navigation(page, pages),
        ]
        _write(out / _file(page), "".join(body))
    return out / _file(0)


def by_risk(table: pd.DataFrame) -> pd.DataFrame:
    """Queries first, then abstentions, then what passed; within each the highest probability of ERROR first."""
    order = table["decision"].map({name: number for number, name in enumerate(DECISIONS)})
    return table.assign(order=order).sort_values(["order", "risk"], ascending=[True, False], kind="stable")


def summary(done: Worklist) -> str:
    """What became of a worklist, for the command line."""
    total = sum(done.counts.values())
    lines = [
        ", ".join(f"{name}: {done.counts[name]:,}" for name in (*DECISIONS, FAILED)) + f" (of {total:,} rows)"
    ]
    if done.asked:
        lines.append(f"asked now: {done.asked:,} in {done.seconds:.1f} s")
    if done.scores:
        lines.append(f"accuracy on the rows with a gold verdict: {rate_text(done.scores['accuracy'], n=True)}")
    lines += [f"not answered: {place}: {problem}" for place, problem in done.problems[:20]]
    if len(done.problems) > 20:
        lines.append(f"… and {len(done.problems) - 20:,} more, in worklist.csv")
    return "\n".join([*lines, NOT_A_DEVICE])


def _draw(auditor: Auditor, case, images_dir: Path, out: Path, place: str) -> bool:
    from medlib.reporting import maps

    answer = auditor.case(case, images_dir, with_map=True)
    if answer.drop is None:
        return False
    figure = maps.answered([answer], [Suite("case", [case], images_dir).image(case)])
    with files.replacement(out / "maps" / _map_name(place), private=True) as unfinished:
        figure.savefig(unfinished, format="png")
    return True


def _map_name(place: str) -> str:
    return f"{provenance.digest(place)[:24]}.png"


def _file(page: int) -> str:
    return "index.html" if page == 0 else f"page-{page + 1}.html"


def _head(auditor: Auditor, table: pd.DataFrame, failed: pd.DataFrame) -> str:
    counts = table["decision"].value_counts()
    listed = ", ".join(f"{counts.get(name, 0):,} {name} ({MEANING[name]})" for name in DECISIONS)
    decision = auditor.reference.decision
    unread = "".join(f"<li>{escape(r.place)}: {escape(r.reasons)}</li>" for r in failed.itertuples())
    return (
        f"<h1>Worklist of {len(table):,} cases</h1><p class='notice'>{escape(notice(auditor.standin))}</p>"
        f"<p>{escape(auditor.label)}: {escape(listed)}.{_scored(table)}</p>"
        f"<p><small>Passes from a probability of CORRECT of {decision.threshold:.3g} on. "
        f"{escape(decision.guarantee)}</small></p>"
        + (f"<h2>Not answered: {len(failed):,}</h2><ul>{unread}</ul>" if unread else "")
    )


def _scored(table: pd.DataFrame) -> str:
    """How many verdicts are right, where the list says what they should be."""
    known = table[(table["gold"] != "") & (table["decision"] != FAILED)]
    right = int((known["gold"] == known["verdict"]).sum())
    return (
        f" Right against the gold verdict: {rate_text(proportion(right, len(known)), n=True)}."
        if len(known)
        else ""
    )


def _navigation(page: int, pages: int) -> str:
    if pages == 1:
        return ""
    links = (f"<b>{n + 1}</b>" if n == page else f"<a href='{_file(n)}'>{n + 1}</a>" for n in range(pages))
    return f"<nav>Page {' '.join(links)}</nav>"


def _table(rows: pd.DataFrame, drawn: set[str]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("Image", "Decision", "Risk of an error", "Case", "Note and treatment")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(_rows(rows, drawn))}</tbody></table>"


def _rows(rows: pd.DataFrame, drawn: set[str]) -> Iterable[str]:
    for row in rows.itertuples():
        patient = ", ".join(text for text in (row.age and f"{row.age} years", row.sex, row.complaint) if text)
        image = f"<img loading='lazy' alt='{escape(row.image)}' src='{escape(row.thumbnail)}'>"
        if row.place in drawn:
            image += f"<br><a href='maps/{_map_name(row.place)}'>map</a>"
        gold = f"<br><small>gold verdict: {escape(row.gold)}</small>" if row.gold else ""
        reasons = f"<br><small>{escape(row.reasons)}</small>" if row.reasons else ""
        yield (
            f"<tr><td>{image}</td><td><span class='{row.decision}'>{row.decision}</span>{reasons}</td>"
            f"<td class='number'>{100 * row.risk:.1f}%</td>"
            f"<td>{escape(row.id)}<br><small>{escape(row.modality)}<br>{escape(patient)}</small>{gold}</td>"
            f"<td>{escape(row.finding)}<br><b>{escape(row.treatment)}</b></td></tr>"
        )


def _write(file: Path, body: str) -> None:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<meta name="viewport" content="width=device-width, initial-scale=1">'
    with files.replacement(file, private=True) as unfinished:
        text = f'<!doctype html><html lang="en"><head>{head}<title>Worklist</title><style>{STYLE}</style></head>'
        unfinished.write_text(f"{text}<body>{body}</body></html>", encoding="utf-8")
