"""The command that asks a trained run about one case, or about a worklist."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from medlib.cli import options
from medlib.cli.options import Adapter, Profile, RunDir, Settings, configuration

app = options.app()
ONE = ("image", "finding", "treatment")

Text = Annotated[Optional[str], typer.Option()]


@app.command()
def audit(
    image: Annotated[
        Optional[Path], typer.Option(help="one case: its image; a DICOM states age, sex, modality")
    ] = None,
    finding: Annotated[Optional[str], typer.Option(help="what the note says of the image")] = None,
    treatment: Annotated[Optional[str], typer.Option(help="what is prescribed")] = None,
    modality: Annotated[Optional[str], typer.Option(help="such as xray, mri, ultrasound, histopathology")] = None,
    age: Annotated[Optional[str], typer.Option(help="in years, or as 018M")] = None,
    sex: Text = None,
    complaint: Text = None,
    frame: Annotated[Optional[int], typer.Option(min=0, help="page of a stack, or frame of a cine")] = None,
    thumbnail: Annotated[Optional[int], typer.Option(min=56, help="pixels of a small copy of a slide")] = None,
    figure: Annotated[Optional[Path], typer.Option(help="PNG of image, map and verdict")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="exit with 0 pass, 1 query, 3 abstain")] = False,
    cases: Annotated[Optional[Path], typer.Option(help="a worklist: CSV, TSV, JSONL, Parquet or a folder")] = None,
    images: Annotated[
        Optional[Path], typer.Option("--images", "--images-dir", help="folder of the worklist's images")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the answers to a worklist")] = Path("audited"),
    shard: Annotated[Optional[str], typer.Option(help="only a share of it: NUMBER/COUNT, from 0/COUNT on")] = None,
    maps: Annotated[int, typer.Option(min=0, help="occlusion maps for so many of the riskiest cases")] = 0,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="row of the benchmark that answers, such as openai:NAME or vllm:FOLDER; default: the adapter"
        ),
    ] = None,
    run_dir: RunDir = None,
    adapter: Adapter = None,
    profile: Profile = None,
    settings: Settings = None,
) -> None:
    """Ask about one case (--image, --finding, --treatment) or about a worklist (--cases); run again to resume.

    Nothing of a case is stored or logged but what --out, --figure and --json ask for.
    """
    from medlib.config import ConfigError, DataError, ModelError, NotRun
    from medlib.config.errors import printable

    _quiet()
    question = dict(zip(ONE, (image, finding, treatment)))
    stated = {"modality": modality, "age": age, "sex": sex, "complaint": complaint}
    view = {"frame": frame, "thumbnail": thumbnail}
    shown = {"--figure": figure, "--json": as_json, "--exit-code": exit_code}
    _check_question({**question, **stated, **view}, cases, shown)
    try:
        config = configuration("audit", profile, settings, run_dir=run_dir, adapter=adapter)
        if cases is not None:
            _worklist(config, model, cases, images, out, shard, maps)
            return
        answer = _one_case(config, model, question, stated, view, figure)
    except (ConfigError, DataError, ModelError, NotRun, OSError) as error:
        if not exit_code:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from None  # 1 is a query
    print(json.dumps(answer.record(), indent=2, ensure_ascii=False) if as_json else answer.text())
    if exit_code:
        from medlib.audit.answer import EXIT

        raise typer.Exit(EXIT[answer.decision])


def _quiet() -> None:
    """Leave out the libraries' bars and warnings, which are no part of an answer."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _check_question(given: dict, cases: Path | None, shown: dict) -> None:
    from medlib.config import ConfigError

    stated = [f"--{name}" for name, value in given.items() if value is not None]
    stated += [flag for flag, value in shown.items() if value]
    missing = [f"--{name}" for name in ONE if given[name] is None]
    if cases is not None and stated:
        raise ConfigError(f"{', '.join(stated)}: of one case; leave it out with --cases")
    if cases is None and missing:
        raise ConfigError(
            f"{', '.join(missing)} missing: one case needs all of --image, --finding and --treatment; "
            "a worklist needs --cases"
        )


def _one_case(config, model: str | None, question: dict, stated: dict, view: dict, figure: Path | None):
    from medlib.audit import cases as reading
    from medlib.audit.auditor import Auditor
    from medlib.config import ADAPTER
    from medlib.data import rendered

    case, images = reading.one(**question, **stated)
    auditor = Auditor(config, options.row(model or ADAPTER))
    _say_if_slow(auditor)
    with tempfile.TemporaryDirectory() as temporary:
        case, images = rendered.one(case, images.resolve(), Path(temporary), **view)
        answer = auditor.case(case, images, with_map=figure is not None)
        if figure is not None:
            _draw(answer, images, figure)
    return answer


def _draw(answer, images: Path, figure: Path) -> None:
    from medlib.config import files
    from medlib.data.suite import shown
    from medlib.reporting import maps

    drawn = maps.answered([answer], [shown(images, answer.case["image"])])
    with files.replacement(figure, private=True) as unfinished:
        drawn.savefig(unfinished, format="png")


def _say_if_slow(auditor) -> None:
    if not auditor.has_reference:
        print("first case of this run: looking at its training and calibration cases once", file=sys.stderr)


def _worklist(config, model, cases: Path, images: Path | None, out: Path, shard: str | None, maps: int) -> None:
    from medlib.audit import cases as reading
    from medlib.audit import worklist
    from medlib.audit.auditor import Auditor
    from medlib.config import ADAPTER
    from medlib.reporting import worklist_page

    part = worklist.parse_shard(shard) if shard else None
    rows, folder, notes = reading.rows(cases, images, extract_to=out / "images")
    auditor = Auditor(config, options.row(model or ADAPTER))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    _say_if_slow(auditor)
    done = worklist.run(auditor, rows, folder, out, part)
    page = worklist_page.render(out, auditor, rows, folder, maps)
    print(worklist_page.summary(done))
    print(f"answers: {out}/worklist.csv, worklist.jsonl; page: {page}")
    if done.problems:
        raise typer.Exit(1)
