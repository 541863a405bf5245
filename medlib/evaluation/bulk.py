"""Hundreds of thousands of scenarios through a server of one's own, shard by shard.

The system is a row of the benchmark, as a rule ``openai:NAME`` with ``api_base_url`` at a vLLM server
that has the adapter (``cloud/vllm-serve.yaml``). Scenarios are streamed; which shard one belongs to
follows from its content, so machines need no more than the file, the images and their number. A
shard that was stopped resumes where it stopped: answers are kept as in `medlib.systems.session`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from medlib import stats
from medlib.config import ConfigError, DataError, RunConfig, jsonl, path, provenance
from medlib.data import sources
from medlib.data.cases import LabelledCase, parse_scenario
from medlib.data.suite import Suite
from medlib.systems import Session

PART = 4096  # scenarios in memory at a time


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


def stream(file: str | Path, shard: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, LabelledCase]]:
    """(row, scenario) of one shard of a JSONL file, row 1 first, one line in memory at a time.

    The shard is the SHA-256 of the scenario's content modulo the number of shards: it depends neither
    on the order of the file nor on how a line is spaced.

    Raises
    ------
    DataError
        Naming file, row and field of the first bad row of this shard.
    """
    number, count = shard
    for row, content in jsonl.read(file):
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
        if int.from_bytes(digest[:8]) % count == number:
            yield row, parse_scenario(file, row, content)


def ask(
    config: RunConfig,
    scenarios: str | Path,
    images_dir: str | Path,
    system: str,
    shard: tuple[int, int] = (0, 1),
    part: int = PART,
) -> Path:
    """Ask a system about every scenario of a shard; call again after an interruption.

    Parameters
    ----------
    config : RunConfig
        ``api_base_url``, ``api_workers`` (requests at a time: a server that batches wants dozens),
        ``api_retries``, ``run_dir``.
    scenarios : path
        JSONL of scenarios; the same file on every machine.
    images_dir : path
        Their images. Unless they are this project's drawn ones, ``api_allow_real_images`` must say
        that they may be sent to the endpoint.
    system : str
        Row of the benchmark, such as ``openai:audit``. Give an adapter that changed another name:
        answers are kept under the name and the address.
    shard : (number, count)
    part : int
        Scenarios asked at a time; the same in every call, or kept answers are not found.

    Returns
    -------
    Path of the shard's predictions, JSONL in the file's order, with the ``row`` of each.

    Raises
    ------
    NotRun
        The endpoint refuses, or stays out of reach after all retries; what was answered is kept.
    """
    scenarios, images_dir = path(scenarios), path(images_dir)
    folder = shard_folder(config, scenarios, system, shard)
    finished = folder / "predictions.jsonl"
    if finished.is_file():
        return finished
    drawn = images_dir.resolve().is_relative_to(sources.SUITES_DIR.resolve())
    config = config.model_copy(update={} if drawn else {"images_dir": str(images_dir)})
    with provenance.replacement(finished) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        for number, rows in enumerate(_parts(stream(scenarios, shard), part)):
            own = config.model_copy(update={"run_dir": str(folder / f"part-{number:05d}")})
            suite = Suite(f"shard {shard[0]}/{shard[1]}", [s for _, s in rows], images_dir)
            answers = _answers(Session(own, {}), system, suite)
            for (row, _), answer in zip(rows, answers.to_dict(orient="records")):
                out.write(json.dumps({"row": row, **stats.without_missing(answer)}) + "\n")
    return finished


def _answers(session: Session, name: str, suite: Suite) -> pd.DataFrame:
    system = session.system(name)
    # as many as keep all workers busy: at the end of each chunk they wait for the slowest answer
    chunk = max(system.chunk, 8 * session.config.api_workers)
    return stats.predictions_table(
        suite.scenarios, session.kept(name, system.revision, suite, system.predict, chunk)
    )


def _parts(rows: Iterator, size: int) -> Iterator[list]:
    part = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def shard_folder(config: RunConfig, scenarios: str | Path, system: str, shard: tuple[int, int]) -> Path:
    """Where a shard's answers are kept; another file of scenarios or another system has another."""
    with open(scenarios, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    stem = system.translate(str.maketrans(":/ ", "___"))
    return path(config.run_dir) / "bulk" / f"{stem}-{digest}" / f"{shard[0]:04d}-of-{shard[1]:04d}"


def merge(config: RunConfig, scenarios: str | Path, system: str, count: int) -> Path:
    """Put the predictions of all shards into one JSONL file, in the order of the scenarios' file.

    Raises
    ------
    DataError
        Naming the shards that are not finished.
    """
    folders = [shard_folder(config, path(scenarios), system, (number, count)) for number in range(count)]
    files = [folder / "predictions.jsonl" for folder in folders]
    missing = [f"{number}/{count}" for number, file in enumerate(files) if not file.is_file()]
    if missing:
        raise DataError(f"{system}: shards not finished: {', '.join(missing)}")
    merged = folders[0].parent / "predictions.jsonl"
    shards = [file.open(encoding="utf-8") for file in files]
    try:
        with merged.open("w", encoding="utf-8") as out:  # a line of each shard in memory at a time
            out.writelines(heapq.merge(*shards, key=lambda line: json.loads(line)["row"]))
    finally:
        for file in shards:
            file.close()
    return merged


def score(predictions: str | Path) -> dict:
    """Scores of merged predictions, see `medlib.stats.scores.score`."""
    return stats.score(pd.DataFrame([record for _, record in jsonl.read(predictions)]))
