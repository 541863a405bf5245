"""The hosted model: what is sent, what is read, what it costs, and how it fails.

Most tests talk to a scripted server on the loopback; one starts `transformers serve` with the stand-in.
"""

import base64
import io
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medlib.config import ROOT, STANDIN, VERDICTS, DataError, NotRun, RunConfig
from medlib.data.suite import Suite
from medlib.models import prompts
from medlib.systems import Session, openai_api, registry

pytest.importorskip("openai", reason="the openai package is missing: pip install '.[api]'")
KEY = "sk-a-key-that-nobody-may-see"
SOON = {"retry-after-ms": "1"}  # the client waits as long as the server asks


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MEDLIB_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(registry, "MODULES", ["openai_api"])  # the other rows load large packages


@pytest.fixture
def stub():
    """A server that answers with ``script[i]`` to request i, and with the last entry from then on."""
    state = SimpleNamespace(script=[said("CORRECT")], requests=[], lock=threading.Lock())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            request = SimpleNamespace(path=self.path, headers=self.headers, body=body)
            with state.lock:
                state.requests.append(request)
                reply = state.script[min(len(state.requests), len(state.script)) - 1]
            status, headers, content = reply(body) if callable(reply) else reply
            self.send_response(status)
            for name, value in ({"content-type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(content.encode())
            except OSError:  # the client gave up waiting
                pass

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()


def said(text, logprobs=None, usage=(1000, 10)):
    """A chat completion as an endpoint writes it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if logprobs:
        choice["logprobs"] = {"content": logprobs}
    content = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if usage:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        content["usage"] = counts
    return 200, {}, json.dumps(content)


def failed(status, message="", **fields):
    error = {"message": message, "code": None, "type": None, **fields}
    return status, SOON, json.dumps({"error": error})


def refuses(*names):
    """An endpoint that does not know these request fields, and names the first one that it meets."""

    def reply(body):
        met = [name for name in names if name in body]
        return failed(400, f"Unsupported parameter: '{met[0]}'.") if met else said("ERROR - no")

    return reply


def token(text, p, **others):
    """One answer token with its probability, and those of the tokens that it beat."""
    listed = [{"token": t, "logprob": math.log(q)} for t, q in {text: p, **others}.items()]
    return {**listed[0], "top_logprobs": listed}


def build(url, model="tiny", **fields):
    return session(url, **fields).system(f"openai:{model}")


def session(url, **fields):
    return Session(RunConfig(**{"api_base_url": url, "api_retries": 2, "api_workers": 1, **fields}), {})


@pytest.fixture
def few(suite):
    scenarios, folder = suite
    return Suite("few", scenarios[:3], folder)


def one(few):
    return few.rows([0])


# ---- what is sent


def test_the_request_holds_the_very_image_and_the_words_that_every_model_gets(stub, few):
    build(stub.url, "tiny-vision").predict(one(few))
    (request,), scenario = stub.requests, few.scenarios[0]
    assert request.path == "/v1/chat/completions" and request.headers["Authorization"] == f"Bearer {KEY}"
    ((turn,), body) = request.body.pop("messages"), request.body
    assert body == {
        "model": "tiny-vision",
        "temperature": 0,
        "seed": 0,
        "max_tokens": 24,
        "logprobs": True,
        "top_logprobs": 5,
    }
    image, text = turn["content"]
    assert turn["role"] == "user"
    assert text == prompts.messages(scenario, few.image(scenario), is_marked=False)[0]["content"][1]
    kind, _, content = image["image_url"]["url"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/png;base64" and sent.format == "PNG"
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(few.image(scenario)))


def test_the_view_of_a_suite_is_what_is_sent(stub, few):
    grey = Suite("few", few.scenarios[:1], few.images_dir, "grey")
    build(stub.url).predict(grey)
    url = stub.requests[0].body["messages"][0]["content"][0]["image_url"]["url"]
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    np.testing.assert_array_equal(sent, np.asarray(grey.image(grey.scenarios[0])))
    assert (sent != np.asarray(few.image(few.scenarios[0]))).any()


def test_no_metadata_leaves_with_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "Dr Jane Doe"
    Image.new("RGB", (9, 7), (10, 20, 30)).save(
        tmp_path / "a.jpg", exif=exif, comment=b"MRN 123", icc_profile=b"Jane Doe's scanner"
    )
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.info["exif"] and image.info["icc_profile"]
        content = base64.b64decode(openai_api.data_url(image).partition(",")[2])
    chunks, at = [], 8
    while at < len(content):
        chunks.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4])
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


# ---- what is read


def test_answers_come_back_in_order_with_tokens_and_nothing_invented(stub, few):
    def reply(body):
        number = next(
            i
            for i, s in enumerate(few.scenarios)
            if prompts.clinical_text(s) in body["messages"][0]["content"][1]["text"]
        )
        time.sleep(0.05 * (2 - number))  # the last question is answered first
        return said(("CORRECT - a", "ERROR - b", "I cannot say")[number], usage=(100 + number, 7))

    stub.script = [reply]
    table = build(stub.url, api_workers=3).predict(few)
    counts = {"prompt_tokens", "completion_tokens", "usd", "read"}
    assert set(table) == {"p_correct", "generated", "parsed"} | counts
    assert table.p_correct.tolist() == [1.0, 0.0, 0.5]
    assert table.generated.tolist() == ["CORRECT - a", "ERROR - b", "I cannot say"]
    assert table.parsed.tolist()[:2] == ["CORRECT", "ERROR"] and table.parsed.isna()[2]
    assert table.prompt_tokens.tolist() == [100, 101, 102]
    assert table.completion_tokens.tolist() == [7] * 3
    assert table.usd.isna().all()


def test_money_is_counted_by_the_table_for_its_own_host_only(stub, few, tmp_path, monkeypatch):
    table = tmp_path / "prices.yaml"
    table.write_text(
        "127.0.0.1:\n  tiny: {input: 2.0, output: 30.0, as_of: 2026-01-01}\n"
        "elsewhere.example:\n  other: {input: 1.0, output: 1.0, as_of: 2026-01-01}\n"
    )
    monkeypatch.setattr(openai_api, "PRICES", table)
    stub.script = [said("ERROR", usage=(1_000_000, 100_000)), said("ERROR", usage=None)]
    usd = build(stub.url).predict(few.rows([0, 1])).usd
    assert usd[0] == 2.0 + 3.0 and math.isnan(usd[1])
    assert build(stub.url, "other").predict(one(few)).usd.isna().all()


def test_the_price_table_is_dated_and_complete():
    import datetime

    price = openai_api.load_price("api.openai.com", "gpt-4o-mini")
    assert isinstance(price["as_of"], datetime.date) and 0 < price["input"] < price["output"]
    assert openai_api.load_price("127.0.0.1", "gpt-4o-mini") is None
    assert openai_api.load_price("api.openai.com", "no-such-model") is None


@pytest.mark.parametrize(("text", "tokens", "expected"), [
    ("CORRECT - x", [token("COR", 0.6, ERROR=0.2, The=0.1)], 0.75),
    ("ERROR - x", [token("ERROR", 0.6, COR=0.2, C=0.1)], 1 / 3),
    ('"ERROR - x', [token('"', 0.9), token("ERROR", 0.9, CORRECT=0.1)], 0.1),
    ("CORRECT", [token(" CORRECT", 0.9, The=0.05)], 0.9 / 0.95),  # ERROR: what the list leaves over
    ("CORRECT", [token("CORRECT", 0.7, The=0.02)], 0.7 / 0.72),  # ERROR: as much as the last one listed
    ("CORRECT", [token("Well", 0.9)], 1.0),  # these tokens are not of this answer
    ("Correct - x", [token("Cor", 0.6, Error=0.2, The=0.1)], 0.75),
    ("<think>ERROR?</think>ERROR - x", [token("<think>", 1.0), token("ERROR", 0.9), token("?</think>", 1.0),
                                        token("ERROR", 0.6, COR=0.2, C=0.1)], 1 / 3),
    ("ERROR", [token("ERROR", 0.9) | {"logprob": None}], 0.0),
    ("CORRECT", [token("CORRECT", 0.7) | {"top_logprobs": [{"token": "A", "logprob": None}]}], 0.7 / 1.0),
    ("I cannot say", [token("I", 0.9, ERROR=0.1)], 0.5),
])  # fmt: skip
def test_probability_is_read_at_the_first_token_of_the_verdict(stub, few, text, tokens, expected):
    stub.script = [said(text, tokens)]
    assert build(stub.url).predict(one(few)).p_correct[0] == pytest.approx(expected)


PIECES = ["C", "COR", "CORRECT", "E", "ERR", "ERROR", "The", '"', ""]


@given(st.sampled_from(VERDICTS), st.dictionaries(st.sampled_from(PIECES), st.floats(-9999, -5)))
def test_probability_favours_a_verdict_that_was_near_certain(verdict, others):
    others = [SimpleNamespace(token=t, logprob=p) for t, p in others.items()]  # less than 0.07 in all
    first = SimpleNamespace(token=verdict[:3], logprob=-0.1, top_logprobs=others)
    p = openai_api.probability(verdict, [first])
    assert 0.9 < (p if verdict == "CORRECT" else 1 - p) <= 1


# ---- how it fails


def test_a_rate_limit_is_waited_out(stub, few):
    stub.script = [failed(429), failed(503), said("ERROR - x")]
    assert build(stub.url).predict(one(few)).parsed.tolist() == ["ERROR"]
    assert len(stub.requests) == 3


def test_waiting_grows_where_the_server_asks_for_no_delay(stub, few, monkeypatch):
    naps, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: naps.append(s) or sleep(0))
    stub.script = [(500, {}, "{}")] * 3 + [said("ERROR - x")]
    build(stub.url, api_retries=3).predict(one(few))
    naps = [nap for nap in naps if nap > 0.1]
    assert len(naps) == 3 and naps[0] < naps[1] < naps[2]


def test_an_endpoint_that_stays_broken_is_not_run_and_is_not_asked_for_the_rest(stub, few):
    stub.script = [failed(500)]
    with pytest.raises(NotRun, match="^127.0.0.1: HTTP 500$"):
        build(stub.url).predict(few)
    assert len(stub.requests) <= 6  # three for the first scenario, at most three for one begun meanwhile


def test_a_silent_endpoint_is_given_up_on(stub, few):
    stub.script = [lambda body: time.sleep(1) or said("ERROR")]
    start = time.monotonic()
    with pytest.raises(NotRun, match="no answer within api_timeout_s"):
        build(stub.url, api_timeout_s=0.1, api_retries=0).predict(one(few))
    assert time.monotonic() - start < 0.9


def test_a_port_where_nobody_listens(few):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotRun, match="^127.0.0.1: not reachable"):
        build(f"http://127.0.0.1:{port}/v1", api_retries=0).predict(one(few))


def test_what_was_answered_before_a_failure_is_not_asked_again(stub, suite, tmp_path):
    scenarios, folder = suite
    everything = Suite("everything", scenarios, folder)
    stub.script = [said("ERROR - x")] * 16 + [failed(500)]
    with pytest.raises(NotRun):
        session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", everything)
    stub.script, stub.requests[:] = [said("ERROR - x")], []
    table = session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", everything)
    assert len(stub.requests) == len(scenarios) - 16 == 8
    assert table.predicted.tolist() == ["ERROR"] * 24


@pytest.mark.parametrize("reply", [
    (200, {"content-type": "text/html"}, "<html>welcome</html>"),
    (200, {}, "{not json"),
    (200, {}, "{}"),
    (200, {}, json.dumps({"choices": []})),
])  # fmt: skip
def test_an_address_that_is_no_endpoint_is_not_run_rather_than_a_coin_toss(stub, few, reply):
    stub.script = [reply]
    with pytest.raises(NotRun, match="not a chat completion"):
        build(stub.url).predict(one(few))


@pytest.mark.parametrize(("names", "left"), [
    (["logprobs"], {"seed", "max_tokens"}),
    (["top_logprobs"], {"logprobs", "seed", "max_tokens"}),
    (["seed", "logprobs"], {"max_tokens"}),
    (["max_tokens"], {"logprobs", "top_logprobs", "seed", "max_completion_tokens"}),
])  # fmt: skip
def test_a_refused_option_is_left_out_and_not_tried_again(stub, few, names, left):
    stub.script = [refuses(*names)]
    system = build(stub.url)
    assert system.predict(few).parsed.tolist() == ["ERROR"] * 3
    assert len(stub.requests) == 3 + len(names)
    assert set(stub.requests[-1].body) - {"model", "messages", "temperature"} == left


def test_threads_that_meet_the_same_refusal_all_go_on(stub, few):
    together = threading.Barrier(3, timeout=5)

    def reply(body):
        if "logprobs" in body:
            together.wait()  # all three are refused before any of them can tell the others
        return refuses("logprobs")(body)

    stub.script = [reply]
    assert build(stub.url, api_workers=3).predict(few).parsed.tolist() == ["ERROR"] * 3
    assert len(stub.requests) == 6


def test_a_refusal_of_something_else_is_not_run(stub, few):
    stub.script = [failed(400, "no such model", code="model_not_found")]
    with pytest.raises(NotRun, match="^127.0.0.1: HTTP 400 model_not_found$"):
        build(stub.url).predict(one(few))


@pytest.mark.parametrize("message", [
    {"content": None},
    {"content": ""},
    {"content": None, "refusal": "I cannot help with that."},
    {"content": "<think>It may be CORRECT"},
    {"content": "Correct treatment would be surgery"},
    {},
])  # fmt: skip
def test_an_answer_without_a_verdict_is_a_result_that_counts_as_wrong(stub, few, tmp_path, message):
    stub.script = [(200, {}, json.dumps({"choices": [{"message": message}]}))]
    for _ in range(2):  # the second time from disk
        table = session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", few)
        assert (table.predicted != table.verdict).all() and not table.read.any()
        assert table.generated.tolist() == [message.get("content") or message.get("refusal") or ""] * 3
    assert len(stub.requests) == 3


def test_thoughts_and_small_letters_are_read(stub, few):
    stub.script = [
        said("<think>is it ERROR?</think>\nCorrect - fits"),
        said([{"type": "text", "text": "**Error**"}]),
    ]
    table = build(stub.url).predict(few.rows([0, 1]))
    assert table.parsed.tolist() == ["CORRECT", "ERROR"] and table.read.all()


TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."


@pytest.mark.parametrize("failure, reason", [
    (failed(400, TOO_LONG), "longer than the endpoint's context"),
    (failed(400, "filtered", code="content_filter"), "refused by the endpoint's content filter"),
    (failed(422, "who knows"), "HTTP 422"),
])  # fmt: skip
def test_a_case_that_the_endpoint_refuses_is_recorded_and_the_rest_goes_on(stub, few, tmp_path, failure, reason):
    stub.script = [said("ERROR - a"), failure, said("ERROR - b")]
    for _ in range(2):
        table = session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", few)
        refused = table[table.refused.notna()]
        assert refused.refused.tolist() == [f"127.0.0.1: {reason}"]
        assert (refused.predicted != refused.verdict).all()
        assert sorted(table.generated) == ["", "ERROR - a", "ERROR - b"]
    assert len(stub.requests) == 3  # neither the refused one nor the others are asked again


def test_a_broken_image_is_recorded_and_the_rest_goes_on(stub, few, tmp_path):
    folder = shutil.copytree(few.images_dir, tmp_path / "images")
    (folder / few.scenarios[0].image).write_bytes(b"no image")
    broken = Suite("few", few.scenarios, folder)
    table = session(stub.url, run_dir=str(tmp_path), api_allow_real_images=True).ask("openai:tiny", broken)
    unread = [s.image == few.scenarios[0].image for s in few.scenarios]
    assert table.refused.notna().tolist() == unread and "unreadable image" in table.refused[0]


def test_what_came_before_a_failure_within_a_call_is_kept(stub, few, tmp_path):
    stub.script = [said("ERROR - x"), said("ERROR - x"), failed(401)]
    with pytest.raises(NotRun, match="^127.0.0.1: HTTP 401$"):
        session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", few)
    stub.script, stub.requests[:] = [said("ERROR - x")], []
    session(stub.url, run_dir=str(tmp_path)).ask("openai:tiny", few)
    assert len(stub.requests) == 1


def test_an_endpoint_that_refuses_temperature_is_asked_without_and_says_so(stub, few):
    stub.script = [
        lambda body: (
            failed(400, "Unsupported value", param="temperature") if "temperature" in body else said("ERROR")
        )
    ]
    table = build(stub.url).predict(few)
    assert table.parsed.tolist() == ["ERROR"] * 3 and table.left_out.tolist() == ["temperature"] * 3
    assert len(stub.requests) == 4


def test_a_refused_field_is_named(stub, few):
    stub.script = [failed(400, "no", param="model")]
    with pytest.raises(NotRun, match="^127.0.0.1: HTTP 400 refuses model$"):
        build(stub.url).predict(one(few))


# ---- what may not be asked, and what may not be told


def test_only_drawn_images_leave_without_leave_whatever_their_folder(stub, few, tmp_path):
    folder = shutil.copytree(few.images_dir, tmp_path / "images")
    scenario = few.scenarios[0]
    moved = Suite("few", [scenario], folder)
    assert len(build(stub.url).predict(moved)) == 1  # known by its pixels, wherever it lies
    with Image.open(folder / scenario.image) as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(folder / scenario.image)
    with pytest.raises(NotRun, match="is not an image that this project drew"):
        build(stub.url).predict(moved)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "link.png"])
def test_no_image_outside_the_folder_is_sent(stub, few, tmp_path, name):
    (tmp_path / "images").mkdir()
    shutil.copy(few.images_dir / few.scenarios[0].image, tmp_path / "secret.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    case = few.scenarios[0].model_copy(update={"image": name})
    outside = Suite("few", [case], tmp_path / "images")
    with pytest.raises(DataError, match="leads outside"):
        session(stub.url, run_dir=str(tmp_path), api_allow_real_images=True).ask("openai:tiny", outside)
    assert not stub.requests


def test_without_key_and_address_the_row_is_not_run(stub, few, monkeypatch):
    for name in ("OPENAI_API_KEY", "MEDLIB_API_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(NotRun, match="^OPENAI_API_KEY is not set$"):
        build(None)
    assert len(build(stub.url).predict(one(few))) == 1  # a server of one's own asks for no key
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    assert len(build(None).predict(one(few))) == 1
    for address in ("http://[::1", "http://host:port/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        with pytest.raises(NotRun, match="^OPENAI_BASE_URL: not an address, such as"):
            build(None)


def test_without_the_package_or_a_model_the_row_says_what_to_do(monkeypatch):
    with pytest.raises(NotRun, match="openai:<model>"):
        build(None, "")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(NotRun, match=r"pip install '\.\[api\]'"):
        build(None)


def test_real_images_need_leave(stub, few, tmp_path):
    with pytest.raises(NotRun, match="api_allow_real_images"):
        build(stub.url, images_dir=str(tmp_path))
    assert not stub.requests
    allowed = build(stub.url, images_dir=str(tmp_path), api_allow_real_images=True)
    assert len(allowed.predict(one(few))) == 1


@pytest.mark.parametrize("status", [400, 401, 500])
def test_neither_note_nor_key_is_logged_or_raised(stub, few, caplog, status):
    caplog.set_level(logging.DEBUG)

    def echo(body):  # an endpoint that repeats all that it was told
        finding = few.scenarios[0].finding
        return failed(status, f"{json.dumps(body)} {KEY}", code=finding, type="server_error")

    stub.script = [echo]
    with pytest.raises(NotRun) as failure:
        build(stub.url).predict(one(few))
    assert str(failure.value) == f"127.0.0.1: HTTP {status} server_error"
    assert failure.value.__suppress_context__
    stub.script = [said("CORRECT - the patient is fine")]
    build(stub.url).predict(one(few))
    assert "127.0.0.1" in caplog.text  # the log was on
    scenario = few.scenarios[0]
    words = (scenario.finding, scenario.treatment, scenario.patient.complaint)
    for secret in (KEY, *words, "base64", "is fine"):
        assert secret not in caplog.text


def test_revision_follows_what_could_change_an_answer(monkeypatch):
    url = "http://a.example/v1"
    first = build(url).revision
    assert build(url, api_timeout_s=1).revision == first and build(url).chunk == 16
    others = [build("http://b.example/v1"), build(url, "other"), build(url, seed=1)]
    monkeypatch.setattr(prompts, "INSTRUCTION", "Guess.")
    assert len({first, build(url).revision, *(o.revision for o in others)}) == 5


# ---- a real server


@pytest.fixture
def transformers_serve(tmp_path):
    """Address of `transformers serve` with the stand-in, on a free port, stopped afterwards."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}: pip install '.[test]'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(ROOT / STANDIN),
               "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]  # fmt: skip
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def healthy(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_real_server_answers_as_the_model_itself_does(transformers_serve, suite):
    from medlib.models import loading

    processor, model = loading.load(STANDIN)
    system = build(transformers_serve, str(ROOT / STANDIN), api_workers=2)

    def by_hand(asked, scenario):
        prompt = processor.apply_chat_template(
            prompts.messages(scenario, asked.image(scenario)),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        length = prompt["input_ids"].shape[1]
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, length:]
        return processor.tokenizer.decode(output, skip_special_tokens=True), length, len(output)

    said_of = {}
    for view in ("", "grey"):
        asked = Suite("asked", suite[0][:8], suite[1], view)
        table = system.predict(asked)
        told = zip(table.generated, table.prompt_tokens, table.completion_tokens)
        assert list(told) == [by_hand(asked, s) for s in asked.scenarios]
        # this server gives no log-probabilities, so the parsed verdict is all there is
        meant = {"CORRECT": 1.0, "ERROR": 0.0, None: 0.5}
        assert table.p_correct.tolist() == [meant[prompts.parse_verdict(t)] for t in table.generated]
        assert table.usd.isna().all()
        said_of[view] = table.generated.tolist()
    assert said_of[""] != said_of["grey"]  # it looked at the images


@pytest.mark.parametrize(
    "base_url, environment_url, expected",
    [
        (None, None, KEY),
        ("https://api.openai.com/v1", None, KEY),
        ("https://llm.example.org/v1", None, None),
        ("https://api.openai.com.evil.example/v1", None, None),
        (None, "https://llm.example.org/v1", KEY),
        ("https://llm.example.org/other", "https://llm.example.org/v1", KEY),
    ],
)
def test_openais_key_goes_to_openai_or_where_the_environment_says(
    monkeypatch, base_url, environment_url, expected
):
    monkeypatch.delenv("MEDLIB_API_KEY")
    if environment_url:
        monkeypatch.setenv("OPENAI_BASE_URL", environment_url)
    assert openai_api.api_key(base_url) == expected
    monkeypatch.setenv("MEDLIB_API_KEY", "one of its own")
    assert openai_api.api_key(base_url) == "one of its own"


def test_a_redirect_is_not_followed(stub, few):
    stub.script = [(307, {"location": f"{stub.url}/elsewhere"}, "")]
    with pytest.raises(NotRun, match="127.0.0.1: HTTP 307; redirects are not followed"):
        build(stub.url).predict(one(few))
    assert {request.path for request in stub.requests} == {"/v1/chat/completions"}


@pytest.mark.parametrize("token, word", [("_**CORRECT**._", "CORRECT"), (" '", ""), ("", ""), ("a-b", "a-b")])
def test_letters_of_a_token(token, word):
    assert openai_api.letters(token) == word


def test_a_long_token_is_read_in_time():
    started = time.perf_counter()
    assert openai_api.letters("_" * 200_000 + "E") == "E" and openai_api.letters("E" + "_" * 200_000 + "E") != ""
    assert time.perf_counter() - started < 1
