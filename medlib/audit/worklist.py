"""A worklist: every row of a table asked, in parts, in shards, and resumed where it was stopped.

What was measured is kept in ``out/measured``, one line for each case, under the case's content (words, image,
way of showing it) and the system's revision (weights, adapter, prompt, address), so that no answer of another
adapter or image is ever taken for this one's. Only the part at work is in memory.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from medlib import stats
from medlib.audit import reference
from medlib.audit.answer import ABSTAIN, PASS, QUERY, CaseAudit
from medlib.audit.auditor import Auditor
from medlib.audit.cases import Row
from medlib.config import ConfigError, DataError, NotRun, files, jobs, jsonl, provenance
from medlib.data.cases import Case, LabelledCase
from medlib.data.suite import Suite, shown
from medlib.systems.answers import keep_answers

PART = 256  # cases in memory at a time
THUMBNAIL = 128  # pixels
#: In this order on the page; the riskiest first within each.
DECISIONS = (QUERY, ABSTAIN, PASS)
FAILED = "failed"
OUT_OF_REACH = 8  # refusals without an answer between them after which the endpoint is taken to be down
SAID_EVERY = 15.0  # seconds between two lines on the progress
COLUMNS = (
    "place id modality image decision verdict probability_correct risk reasons gold finding treatment age sex "
    "complaint thumbnail notice"
).split()


@dataclass
class Worklist:
    """What became of a worklist.

    Attributes
    ----------
    counts : how many rows got which decision, ``failed`` among them
    problems : (place, reason) of every row that could not be answered
    scores : of the rows with a gold verdict, see `medlib.stats.scores.score`; None without any
    asked : how many were asked now; the others were known
    seconds : of asking
    """

    out: Path
    counts: Counter = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    scores: dict | None = None
    asked: int = 0
    seconds: float = 0.0


def parse_shard(text: str) -> tuple[int, int]:
    """``3/16`` is shard 3 of shards 0 to 15.

    Examples
    --------
    >>> parse_shard("3/16")
    (3, 16)
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ConfigError(f"shard {text!r}: expected NUMBER/COUNT, the number from 0 to COUNT - 1")
    return int(number), int(count)


def in_shard(case: Case, shard: tuple[int, int]) -> bool:
    """Whether a case belongs to a shard; that follows from its content, not from its place in the file."""
    number, count = shard
    text = json.dumps(case.model_dump(include=set(Case.model_fields)), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % count == number


def run(
    auditor: Auditor,
    rows: Sequence[Row],
    images_dir: Path,
    out: Path,
    shard: tuple[int, int] | None = None,
    part: int = PART,
) -> Worklist:
    """Ask about every row; call again after an interruption.

    Parameters
    ----------
    rows, images_dir : of `cases.rows`
    out : folder for ``worklist.csv``, ``worklist.jsonl`` and ``thumbnails/``, for the owner's eyes alone
    shard : (number, count), optional
        Ask about this share only. Where the folders ``measured`` of all shards lie in one ``out``, a call without
        a shard finds every answer and puts them together.
    part : cases asked at a time

    Raises
    ------
    NotRun
        If a whole part cannot be asked, such as by an endpoint out of reach; what was answered is kept.
    """
    mine = [row for row in rows if row.case is None or shard is None or in_shard(row.case, shard)]
    done = Worklist(out)
    files.private_folder(out)
    store = _Store(out / "measured", auditor, shard)
    _ = auditor.reference  # made before threads ask for it
    keys, failed = _ask_all(auditor, [row for row in mine if row.case], images_dir, store, done, part)
    _write(auditor, mine, store, keys, failed, done)
    _complete_thumbnails([row.case for row in mine if row.place in keys], images_dir, out / "thumbnails")
    return done


# --- asking ---------------------------------------------------------------------------------------


class _Store:
    """What was measured, on disk: one line for each case, found again by the place of the line."""

    def __init__(self, folder: Path, auditor: Auditor, shard: tuple[int, int] | None) -> None:
        made_of = [auditor.system.revision, auditor.name, *([reference.VERSION] if auditor.sees else [])]
        name = provenance.digest(made_of)[:16]
        ending = f"-{shard[0]}-of-{shard[1]}" if shard else ""
        self.file = folder / f"{name}{ending}.jsonl"
        self.places: dict[str, tuple[Path, int]] = {}
        self.ends: dict[Path, int] = {}  # up to where each file is known
        for file in sorted(folder.glob(f"{name}*.jsonl")):
            self._index(file)

    def _index(self, file: Path) -> None:
        with file.open("rb") as content:
            content.seek(self.ends.get(file, 0))
            for line in iter(content.readline, b""):
                if not line.endswith(b"\n"):
                    break  # cut off by an interruption
                self.places[jsonl.parse(file.name, 0, line)["key"]] = file, content.tell() - len(line)
                self.ends[file] = content.tell()

    def keep(self, keys: list[str], table: pd.DataFrame) -> None:
        keep_answers(self.file, keys, table)
        self._index(self.file)

    def read(self, key: str) -> dict:
        """What was measured of a case."""
        file, place = self.places[key]
        with file.open("rb") as content:
            content.seek(place)
            return json.loads(content.readline())


def _ask_all(
    auditor: Auditor, rows: list[Row], images_dir: Path, store: _Store, done: Worklist, part: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Ask what is not known yet; by place, the key of each row that can be asked and why others cannot."""
    keys: dict[str, str] = {}
    failed: dict[str, str] = {}
    say = _Progress(len(rows))
    started = time.perf_counter()
    for begin in range(0, len(rows), part):
        some = rows[begin : begin + part]
        _find_keys(some, images_dir, keys, failed)
        readable = [row for row in some if row.place in keys]
        # two rows of one content are asked once
        new = {keys[row.place]: row for row in readable if keys[row.place] not in store.places}
        for names, table in _measure(auditor, [*new.values()], images_dir, done.out / "thumbnails", keys, failed):
            store.keep(names, table)
            done.asked += len(names)
        failed |= {
            row.place: failed[new[keys[row.place]].place]
            for row in readable
            if keys[row.place] not in store.places
        }
        say(begin + len(some), len(new))
    done.seconds = time.perf_counter() - started
    return keys, failed


def _find_keys(rows: list[Row], images_dir: Path, keys: dict[str, str], failed: dict[str, str]) -> None:
    """Add what each case is known by; an image that cannot be opened is a failure."""
    for row in rows:
        try:
            [keys[row.place]] = _suite([row], images_dir).keys()
        except DataError as error:
            failed[row.place] = str(error)


def _suite(rows: Sequence[Row], images_dir: Path, thumbnails: Path | None = None) -> Suite:
    cases: list[Any] = [row.case for row in rows]
    if thumbnails is None:
        return Suite("worklist", cases, images_dir)
    return _WithThumbnails("worklist", cases, images_dir, folder=thumbnails)


@dataclass(frozen=True)
class _WithThumbnails(Suite):
    """A suite that keeps a small copy of every image that it shows as it is."""

    folder: Path = Path()

    def image(self, scenario: Case) -> Image.Image:
        image = super().image(scenario)
        if not self.view:
            _keep_thumbnail(image, self.folder / thumbnail_name(scenario.image))
        return image


def _keep_thumbnail(image: Image.Image, file: Path) -> None:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    with files.replacement(file, sync=False, private=True) as unfinished:
        small.save(unfinished, "JPEG", quality=80)


def _complete_thumbnails(cases: Sequence[Case | None], images_dir: Path, folder: Path) -> None:
    """Make those of cases that another machine, or a row of the same content, was asked about."""
    missing = {case.image: case for case in cases if case and not (folder / thumbnail_name(case.image)).is_file()}
    for case in missing.values():
        with contextlib.suppress(DataError, OSError):  # such a row is listed with its reason
            _keep_thumbnail(shown(images_dir, case.image), folder / thumbnail_name(case.image))


def thumbnail_name(image: str) -> str:
    """File of an image's small copy."""
    return f"{hashlib.sha256(image.encode()).hexdigest()[:24]}.jpg"


def _measure(
    auditor: Auditor, rows: list[Row], images_dir: Path, thumbnails: Path, keys: dict, failed: dict
) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """(keys, what was measured) of rows that were asked together; notes those that could not be asked."""
    if auditor.hosted:
        yield from _measure_hosted(auditor, rows, images_dir, thumbnails, keys, failed)
        return
    if not rows:
        return
    try:
        yield [keys[row.place] for row in rows], _timed(auditor, _suite(rows, images_dir, thumbnails))
    except (DataError, NotRun) as error:  # a broken image, a note that is too long: halve until it is alone
        if len(rows) == 1:
            failed[rows[0].place] = str(error)
            return
        half = len(rows) // 2
        for some in (rows[:half], rows[half:]):
            yield from _measure(auditor, some, images_dir, thumbnails, keys, failed)


def _measure_hosted(auditor, rows, images_dir, thumbnails, keys, failed):
    """Each case is a request of its own, so that one that is refused is not asked, nor paid for, twice."""

    def ask(row: Row) -> pd.DataFrame | DataError | NotRun:
        try:
            return _timed(auditor, _suite([row], images_dir, thumbnails))
        except (DataError, NotRun) as error:
            return error

    answered, refused = 0, []
    with ThreadPoolExecutor(auditor.config.api_workers) as pool:
        for row, answer in zip(rows, pool.map(ask, rows)):
            if isinstance(answer, pd.DataFrame):
                answered += 1
                yield [keys[row.place]], answer
            else:
                failed[row.place] = str(answer)
                refused += [answer] if isinstance(answer, NotRun) else []
    if len(refused) >= OUT_OF_REACH and not answered:
        raise NotRun(f"{refused[0]} (what was answered before is kept; run again to go on)")


def _timed(auditor: Auditor, suite: Suite) -> pd.DataFrame:
    started = time.perf_counter()
    table = auditor.measure(suite)
    return table.assign(seconds=(time.perf_counter() - started) / len(suite))


class _Progress:
    """Says how many of the rows are done and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self.total, self.asked, self.started = total, 0, time.monotonic()
        self.told = self.started if not sys.stderr.isatty() else 0.0

    def __call__(self, done: int, asked: int) -> None:
        self.asked += asked
        now = time.monotonic()
        text = f"{done:,} of {self.total:,} cases"
        if self.asked and done < self.total:
            left = (now - self.started) / self.asked * (self.total - done)
            text += f", about {_duration(left)} left"
        jobs.progress(text)
        if now - self.told > SAID_EVERY or (done == self.total and self.asked):
            self.told = now
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """
    >>> _duration(150), _duration(40)
    ('3 min', '40 s')
    """
    return f"{round(seconds / 60)} min" if seconds > 90 else f"{round(seconds)} s"


# --- writing --------------------------------------------------------------------------------------


def answers(
    auditor: Auditor, rows: list[Row], store: _Store, keys: dict[str, str], failed: dict[str, str]
) -> Iterator[tuple[Row, CaseAudit | str]]:
    """Every row in its order with its answer, or the reason why there is none."""
    for row in rows:
        if row.case is None or row.place in failed:
            yield row, row.problem or failed[row.place]
        else:
            measured = store.read(keys[row.place])
            yield row, auditor.answer(row.case, measured, keys[row.place], measured["seconds"])


def _write(
    auditor: Auditor, rows: list[Row], store: _Store, keys: dict[str, str], failed: dict[str, str], done: Worklist
) -> None:
    gold: list[dict] = []
    with (
        files.replacement(done.out / "worklist.csv", private=True) as table,
        files.replacement(done.out / "worklist.jsonl", private=True) as lines,
        table.open("w", encoding="utf-8", newline="") as csv_file,
        lines.open("w", encoding="utf-8") as json_file,
    ):
        writer = csv.DictWriter(csv_file, COLUMNS)
        writer.writeheader()
        for row, answer in answers(auditor, rows, store, keys, failed):
            if isinstance(answer, str):
                done.counts[FAILED] += 1
                done.problems.append((row.place, answer))
                cells, line = {"decision": FAILED, "reasons": answer}, {"decision": FAILED, "problem": answer}
            else:
                done.counts[answer.decision] += 1
                cells, line = _cells(row, answer), answer.record()
                if isinstance(row.case, LabelledCase):
                    line["gold"] = row.case.verdict
                    gold.append(stats.prediction_row(row.case, answer.p_correct))
            writer.writerow({"place": row.place, **cells})
            json_file.write(json.dumps({"place": row.place, **files.to_json(line)}, ensure_ascii=False) + "\n")
    done.scores = stats.score(pd.DataFrame(gold)) if gold else None


def _cells(row: Row, answer: CaseAudit) -> dict[str, Any]:
    case = row.case
    assert case is not None
    return {
        "id": case.id,
        "modality": case.modality,
        "image": case.image,
        "decision": answer.decision,
        "verdict": answer.verdict,
        "probability_correct": round(answer.probability, 4),
        "risk": round(answer.risk, 4),
        "reasons": "; ".join(answer.reasons),
        "gold": getattr(case, "verdict", ""),
        "finding": case.finding,
        "treatment": case.treatment,
        "age": case.patient.age,
        "sex": case.patient.sex,
        "complaint": case.patient.complaint,
        "thumbnail": f"thumbnails/{thumbnail_name(case.image)}",
        "notice": answer.notice,
    }
