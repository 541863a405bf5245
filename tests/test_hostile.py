"""Files, rows, paths and answers that nobody meant well: no traceback, nothing lost, no file from outside sent.

``TRIES`` says how many inputs are tried: 1,690 in all.
"""

import contextlib
import io
import json
import shutil
import string
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medlib import stats
from medlib.audit import auditor as audit
from medlib.cli import main as cli
from medlib.cli import options
from medlib.config import ROOT, ConfigError, DataError, ModelError, NotRun, RunConfig, runs
from medlib.config.errors import printable
from medlib.data import own, own_suites, sources
from medlib.data.cases import LabelledCase, Patient
from medlib.data.images import inside
from medlib.data.suite import Suite
from medlib.models import adapter_files
from medlib.reporting.audit_view import AuditView
from medlib.reporting.rating_view import RatingView
from medlib.systems import answers, openai_api

TRIES = {"tables": 120, "rows": 150, "check": 8, "dry run": 6, "settings": 200, "adapters": 100, "records": 200}
TRIES |= {"view": 20, "answers": 500, "names": 196}
TRIES |= {"case": 60, "dicom": 60, "worklist": 20, "endpoint": 20, "audit view": 30}
TOLD = (ConfigError, DataError, ModelError, NotRun)  # what the command line shows as one line


def tries(name):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=TRIES[name], deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


EVIL = st.sampled_from([
    "", " ", "\0", "\ufeff", "\u2028", "\ud7ff", "'; DROP TABLE ratings; --", "<script>alert(1)</script>", "=1+1",
    "<start_of_image><end_of_turn>", "../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd", "a" * 5000,
    "nan", "NaN", "inf", "-1", "1e400", "true", "null", "{}", "[]", "\udcff".encode("utf-8", "replace").decode(),
])  # fmt: skip
TEXT = EVIL | st.text(max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=5), inner),
    max_leaves=5,
)
GOOD = {"id": "a", "image": "a.png", "finding": "mass", "treatment": "biopsy", "verdict": "CORRECT", "age": "40"}
ROW = st.fixed_dictionaries({}, optional={name: st.just(value) | VALUE for name, value in GOOD.items()})
BYTES = st.binary(max_size=300) | st.lists(TEXT, max_size=12).map(lambda cells: ",".join(cells).encode())


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def write_rows(folder, rows):
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(monkeypatch, *arguments):
    """Exit status of a command: a number, or the one line that says what is wrong."""
    monkeypatch.setattr(sys, "argv", ["medlib", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


# ---- data --check ----------------------------------------------------------------------------------


@tries("tables")
@given(content=BYTES, suffix=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]), card=st.none() | BYTES)
def test_a_table_of_any_bytes_is_read_or_refused(folder, content, suffix, card):
    files = folder / f"cases.{suffix}", folder / own.CARD
    for file, held in zip(files, (content, card)):
        file.unlink(missing_ok=True)
        if held is not None:
            file.write_bytes(held)
    try:
        own.read(folder, strict=False)
    except TOLD as error:
        assert str(error)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@tries("rows")
@given(st.lists(ROW, min_size=1, max_size=4))
def test_no_row_is_lost_and_no_image_lies_outside(folder, rows):
    write_rows(folder, [GOOD | {"id": "good", "image": "b.png"}, *rows])
    try:
        data = own.read(folder, strict=False)
    except TOLD as error:
        assert str(error)
        return
    assert len(data) + data.unread == len(rows) + 1
    assert all((folder / file).resolve().is_relative_to(folder.resolve()) for file in data.rows["file"])


@tries("check")
@given(st.lists(ROW, min_size=1, max_size=4))
def test_the_check_reports(folder, rows):
    write_rows(folder, [GOOD, *rows])
    with pytest.MonkeyPatch.context() as patch:
        status = command(patch, "data", "--check", str(folder))
    assert status in (0, 1) or status.startswith("error: ")


# ---- train --dry-run -------------------------------------------------------------------------------


@tries("dry run")
@given(st.lists(ROW, min_size=1, max_size=4))
def test_a_dry_run_counts_or_says_why_not(folder, nano_folder, rows):
    write_rows(folder, [GOOD | {"id": f"good{i}", "image": f"{'ab'[i % 2]}.png"} for i in range(4)] + rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_suites, "ASSIGNMENTS", folder / "sides")
        given_ = ["--data", str(folder), "--model", str(nano_folder), "--run-dir", str(folder / "run")]
        status = command(patch, "train", "--dry-run", *given_)
    assert status == 0 or status.startswith("error: ")


NAMES = st.sampled_from(
    ["lr", "epochs", "model", "run_dir", "data_dir", "dtype", "systems", "seed", "adapter", "no"]
)


@tries("settings")
@given(NAMES, TEXT, st.sampled_from(["train", "evaluate", "benchmark", "data"]))
def test_a_setting_is_taken_or_refused(tmp_path, name, value, step):
    try:
        options.configuration(step, None, [f"{name}={value}"], run_dir=str(tmp_path / "run"))
    except TOLD as error:
        assert str(error)


# ---- evaluate --------------------------------------------------------------------------------------


@tries("adapters")
@given(st.tuples(*[st.none() | BYTES | VALUE.map(lambda v: json.dumps(v).encode())] * 3))
def test_an_adapter_of_any_bytes_is_refused_and_the_base_stays(tmp_path, nano, contents):
    for name, content in zip((adapter_files.CONFIG, adapter_files.WEIGHTS, adapter_files.METADATA), contents):
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        adapter_files.attach(nano[1], tmp_path)
    assert not any("lora_" in name for name, _ in nano[1].named_parameters())


@tries("records")
@given(BYTES | VALUE.map(lambda v: json.dumps(v).encode()))
def test_a_record_of_any_bytes_is_read_or_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    (tmp_path / "answers.jsonl").write_bytes(content + b"\n")
    for read in (runs.recorded, lambda folder: answers.read_answers(folder / "answers.jsonl")):
        try:
            read(tmp_path)
        except TOLD as error:
            assert str(error)


# ---- rating view -----------------------------------------------------------------------------------


@tries("view")
@given(finding=TEXT, complaint=TEXT, name=TEXT, comment=TEXT, image=st.sampled_from(["a.png", "broken.png"]))
def test_the_rating_view_shows_text_as_text_and_goes_on(folder, finding, complaint, name, comment, image):
    words = dict(finding=f"{finding}x", treatment="biopsy", patient=Patient(complaint=f"{complaint}x"))
    cases = [
        LabelledCase(id=i, image=i_image, verdict="ERROR", **words)
        for i, i_image in (("1", image), ("2", "b.png"))
    ]
    table = stats.predictions_table(cases, pd.DataFrame({"p_correct": [0.8, 0.8]}))
    view = RatingView(Suite("hostile", cases, folder), table, folder / "ratings.sqlite")
    for signed in (name, "reader-1"):
        view.name.value = signed
        view.start.click()
    view.agree.value, view.comment.value = True, comment
    view.save.click()
    shown = [w.value for w in _all(view.page) if isinstance(w, ipywidgets.HTML)]
    assert not any("<script" in text for text in shown)
    (folder / "ratings.sqlite").unlink(missing_ok=True)


def _all(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)


# ---- audit -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def auditor(nano_folder, random_adapter, shared_data, tmp_path_factory):
    """A run whose adapter knows nothing, loaded once."""
    kinds = "train", "val", "test", "calibration", "contradiction"
    pairs = {f"{kind}_pairs": 12 for kind in kinds}
    place = tmp_path_factory.mktemp("hostile") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SUITES_DIR", shared_data / "suites")
        patch.setattr(sources, "CORE_DIR", shared_data / "core24")
        config = RunConfig(model=str(nano_folder), run_dir=str(place), adapter=str(random_adapter), **pairs)
        runs.record(config)
        loaded = audit.Auditor(config)
        _ = loaded.reference
        yield loaded


@pytest.fixture
def shelf(folder):
    """A folder of images beside a file that must not be opened, to which a link of the folder leads."""
    images = folder / "images"
    images.mkdir()
    for name in ("a.png", "b.png", "broken.png"):
        (folder / name).rename(images / name)
    Image.new("RGB", (48, 48), "red").save(folder / "secret.png")
    (images / "link.png").symlink_to(folder / "secret.png")
    return images


def ask(auditor, *arguments):
    """(exit status or message, what a terminal or a pipe got) of the command `audit`, asked of a loaded run."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal's
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(audit, "Auditor", lambda config, system: auditor)
        settings_ = ["--run-dir", auditor.config.run_dir, "--adapter", auditor.config.adapter]
        status = command(patch, "audit", *arguments, *settings_)
    out.flush()
    return status, out.buffer.getvalue().decode()


def is_told(status, said, as_json=False):
    """Whether a command ended as promised: an answer or one message, and nothing that moves a cursor."""
    assert status in (0, 1, 2, 3, None) or status.startswith("error: ")
    assert printable(said) == said and (not as_json or not said or json.loads(said))
    return True


ARGUMENT = TEXT | st.sampled_from(["\x1b[2J", "\udcff", "a\nPrescribed treatment: none", "--help", "\u202e"])
PICTURE = st.sampled_from(["a.png", "link.png", "broken.png", "", ".", "absent.png", "\0", "a" * 300, "~none/x"])
STATED = st.fixed_dictionaries(
    {name: ARGUMENT.map(lambda text: text[:300]) | st.just("mass") for name in ("finding", "treatment")},
    optional={
        "modality": st.just("xray") | ARGUMENT,
        "age": st.just("62Y") | ARGUMENT,
        "sex": st.just("F") | ARGUMENT,
        "complaint": ARGUMENT,
    },
)


@tries("case")
@given(st.just("a.png") | PICTURE, STATED, st.sampled_from([[], ["--json"], ["--exit-code"], ["--shard", "0/0"]]))
def test_one_case_of_any_words_is_answered_or_refused(auditor, shelf, picture, stated, more):
    words = [f"--{name}={value}" for name, value in stated.items()]
    image = picture if picture.startswith("~") else shelf / picture
    status, said = ask(auditor, f"--image={image}", *words, *more)
    assert is_told(status, said, "--json" in more)
    assert picture == "a.png" or not said  # no other file is answered, a link to another folder neither


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Bytes of a DICOM with a patient's name."""
    import pydicom

    file = tmp_path_factory.mktemp("film") / "film.dcm"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    dataset = pydicom.dataset.FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName, dataset.PatientAge, dataset.PatientSex, dataset.Modality = "Doe^Jane", "062Y", "F", "CR"
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.arange(256, dtype=np.uint16).tobytes()
    dataset.save_as(file)
    return file.read_bytes()


@tries("dicom")
@given(st.data())
def test_a_dicom_of_any_bytes_is_answered_or_refused_and_names_nobody(auditor, shelf, film, data):
    damaged = bytearray(film)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(132, len(film) - 1))] = data.draw(st.integers(0, 255))
    file = shelf / data.draw(st.sampled_from(["film.dcm", "film"]))
    file.write_bytes(damaged[: data.draw(st.just(len(film)) | st.integers(0, len(film)))])
    status, said = ask(auditor, f"--image={file}", "--finding=mass", "--treatment=biopsy")
    assert is_told(status, said) and "Doe" not in f"{status}{said}"


LISTED = st.fixed_dictionaries(
    {
        "id": ARGUMENT | VALUE,
        "image": st.just("b.png") | PICTURE | st.just("../secret.png") | VALUE,
        "finding": ARGUMENT | VALUE,
        "treatment": ARGUMENT,
    },
    optional={"age": VALUE, "sex": VALUE, "modality": ARGUMENT, "verdict": st.just("ERROR") | VALUE},
)
FIRST = {"id": "good", "image": "b.png", "finding": "mass", "treatment": "biopsy"}


def listed(folder, rows):
    """A worklist whose first row is as it should be."""
    lines = [json.dumps(row) for row in [FIRST, *rows]]
    (folder / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [f"--cases={folder / 'list.jsonl'}", f"--images={folder / 'images'}", f"--out={folder / 'out'}"]


@tries("worklist")
@given(st.lists(LISTED, max_size=3))
def test_a_worklist_keeps_every_row_and_goes_on(auditor, shelf, rows):
    shutil.rmtree(shelf.parent / "out", ignore_errors=True)
    status, said = ask(auditor, *listed(shelf.parent, rows))
    assert is_told(status, said)
    written = pd.read_csv(shelf.parent / "out" / "worklist.csv", dtype=str, keep_default_na=False)
    lines = (shelf.parent / "out" / "worklist.jsonl").read_bytes().splitlines()
    assert len(written) == len(lines) == len(rows) + 1 and written["decision"][0] != "failed"
    answered = written[written["decision"] != "failed"]
    assert set(answered["image"]) <= {"a.png", "b.png"}
    assert (status == 1) == (len(answered) < len(written))
    assert "<script" not in (shelf.parent / "out" / "index.html").read_text(encoding="utf-8").lower()


@tries("endpoint")
@given(st.lists(LISTED, max_size=3), st.booleans())
def test_no_file_from_outside_is_sent_and_none_without_leave(auditor, shelf, rows, leave):
    pytest.importorskip("openai", reason="the openai package is missing: pip install '.[api]'")
    sent, secret = [], openai_api.data_url(Image.open(shelf.parent / "secret.png").convert("RGB"))
    shutil.rmtree(shelf.parent / "out", ignore_errors=True)

    def complete(client, options, messages):
        sent.append(json.dumps(messages))
        return SimpleNamespace(choices=[], usage=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-a-key-that-nobody-may-see")
        patch.setattr(openai_api, "complete", complete)
        more = ["--run-dir", auditor.config.run_dir, "--model=openai:tiny"]
        more += ["--set", "api_base_url=http://127.0.0.1:9/v1"] + ["--set", "api_allow_real_images=true"] * leave
        status = command(patch, "audit", *listed(shelf.parent, rows), *more)
    assert status in (0, 1, None) or status.startswith("error: ")
    assert bool(sent) == leave and not any(secret[-200:] in request for request in sent)


@pytest.fixture
def asked_quickly(auditor, monkeypatch):
    """The run, whose model looks at every image and always gives one probability."""

    def predict(suite):
        return pd.Series([len(suite.image(s).getbands()) / 4 for s in suite.scenarios], name="p_correct")

    monkeypatch.setattr(auditor, "system", replace(auditor.system, predict=predict))
    return auditor


@tries("audit view")
@given(
    STATED, st.sampled_from(["a.\0", f"a.{'b' * 300}", "a.png/../../b", "film.DCM"]) | ARGUMENT, BYTES | st.none()
)
def test_the_audit_view_shows_text_as_text_and_goes_on(asked_quickly, shelf, stated, name, content):
    cases = [LabelledCase(id="1", image="b.png", verdict="ERROR", finding="mass", treatment="biopsy")]
    view = AuditView(asked_quickly, Suite("hostile", cases, shelf))
    view.with_map.value = False
    content = (shelf / "a.png").read_bytes() if content is None else content
    view.upload = SimpleNamespace(value=({"name": name, "content": content},))
    for field, value in stated.items():
        view.fields[field].value = value
    view.ask.click()
    shown = [w.value for w in _all(view.page) if isinstance(w, ipywidgets.HTML)]
    assert not any("<script" in text for text in shown)
    assert bool(view.answers) != bool(view.message.value) and not view.ask.disabled
    assert not view.uploads or len(list(Path(view.uploads.name).rglob("*"))) <= 1


# ---- API client ------------------------------------------------------------------------------------


def as_object(value):
    """What the client makes of JSON: objects with attributes, of any type."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


def partly(**fields):
    """An object of which some fields are as they should be, some are anything, and some are missing."""
    return st.fixed_dictionaries({}, optional={name: good | VALUE for name, good in fields.items()})


TOKENS = st.sampled_from(["CORRECT", "ERR", "Cor", "<think>", "</think>", " "])
LOGPROB = st.floats(-50, 0) | st.none()
TOKEN = partly(
    token=TOKENS, logprob=LOGPROB, top_logprobs=st.lists(partly(token=TOKENS, logprob=LOGPROB), max_size=3)
)
SAID = st.sampled_from(["CORRECT - x", "ERROR", "Error: x", "<think>x</think>CORRECT", "<think>CORRECT"])
CHOICE = partly(message=partly(content=SAID, refusal=TEXT), logprobs=partly(content=st.lists(TOKEN, max_size=4)))
REPLY = partly(
    choices=st.lists(CHOICE, min_size=1, max_size=2),
    usage=partly(prompt_tokens=st.integers(0, 99), completion_tokens=st.integers(0, 99)),
)


@tries("answers")
@given(REPLY)
def test_an_answer_is_a_verdict_or_none_or_no_chat_completion(reply):
    try:
        row = openai_api.row(as_object(reply), {"input": 1.0, "output": 2.0})
    except ValueError as error:
        assert "no chat completion" in str(error)
        return
    assert 0 <= row["p_correct"] <= 1 and isinstance(row["generated"], str)
    assert row["read"] == (row["parsed"] is not None) and (row["read"] or row["p_correct"] == 0.5)


@tries("names")
@given(
    st.lists(TEXT | st.sampled_from(["..", ".", "a.png", "link", "images"]), min_size=1, max_size=4).map("/".join)
)
def test_no_name_leads_outside_the_folder(folder, name):
    (folder / "images").mkdir(exist_ok=True)
    if not (folder / "images" / "link").is_symlink():
        (folder / "images" / "link").symlink_to(folder)
    try:
        file = inside(folder / "images", name)
    except DataError:
        return
    assert file.resolve().is_relative_to((folder / "images").resolve())


def test_the_number_of_inputs_is_the_one_stated():
    assert sum(TRIES.values()) == 1690 and "1,690 in all" in __doc__
    assert "1,690 inputs" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
