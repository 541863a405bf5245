"""Bulk evaluation: shards, kept answers, killed processes, and a server on the loopback that answers."""

import json
import multiprocessing
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from medlib.config import ConfigError, DataError, NotRun, RunConfig
from medlib.data import sources
from medlib.data.cases import write_scenarios
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.evaluation import bulk
from medlib.systems import Session, registry

pytest.importorskip("openai", reason="the openai package is missing: pip install '.[api]'")


@pytest.fixture
def server(monkeypatch):
    """A server whose verdict depends on the words; after ``fail_after`` requests it fails."""
    state = SimpleNamespace(asked=[], fail_after=10**9, wait=0.0, lock=threading.Lock())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = body["messages"][0]["content"][1]["text"]
            with state.lock:
                state.asked.append(text)
                failed = len(state.asked) > state.fail_after
            time.sleep(state.wait)
            verdict = "CORRECT" if len(text) % 2 else "ERROR"
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"{verdict} - so it is"},
            }
            reply = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            )
            self.send_response(503 if failed else 200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            try:
                self.wfile.write((b"{}" if failed else reply.encode()))
            except OSError:  # the process that asked was killed
                pass

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(registry, "MODULES", ["openai_api"])  # the other rows load large packages
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{running.server_port}/v1"
        yield state
        running.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(JSONL of 48 scenarios, folder of images)."""
    folder = tmp_path_factory.mktemp("many")
    scenarios = grammar.build_suite("many", "test", 24, 0, folder)
    return write_scenarios(folder / "many.jsonl", scenarios), folder / "many" / "images"


def config_for(server, tmp_path, name="run", **more):
    return RunConfig(
        **{
            "run_dir": str(tmp_path / name),
            "api_base_url": server.url,
            "api_retries": 0,
            "api_workers": 2,
            "api_allow_real_images": True,
            **more,
        }
    )


def ask(config, many, shard=(0, 1), part=8):
    return bulk.ask(config, *many, "openai:audit", shard, part)


def rows(file):
    """Predictions without the seconds, which no two runs share."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_four_shards_give_what_one_gives(server, many, tmp_path):
    one, four = config_for(server, tmp_path, "one"), config_for(server, tmp_path, "four")
    ask(one, many)
    whole = rows(bulk.merge(one, many[0], "openai:audit", 1))
    parts = [rows(ask(four, many, (number, 4))) for number in range(4)]
    assert all(parts) and sum(map(len, parts)) == 48
    merged = bulk.merge(four, many[0], "openai:audit", 4)
    assert rows(merged) == whole and [r["row"] for r in whole] == list(range(1, 49))
    right = sum(r["predicted"] == r["verdict"] for r in whole) / 48
    assert bulk.score(merged)["accuracy"]["value"] == pytest.approx(right)
    assert {r["predicted"] for r in whole} == {"CORRECT", "ERROR"}


def test_a_server_that_fails_midway_costs_no_answer(server, many, tmp_path):
    config = config_for(server, tmp_path)
    server.fail_after = 20
    with pytest.raises(NotRun, match="HTTP 503"):
        ask(config, many)
    with pytest.raises(DataError, match="not finished: 0/1"):
        bulk.merge(config, many[0], "openai:audit", 1)
    kept = sum(len(f.read_text().splitlines()) for f in (tmp_path / "run").rglob("answers/*.jsonl"))
    assert 0 < kept <= 20
    server.asked.clear()
    server.fail_after = 10**9
    assert len(rows(ask(config, many))) == 48 and len(server.asked) == 48 - kept
    server.asked.clear()
    ask(config, many)
    assert not server.asked  # a finished shard asks nothing


def test_a_killed_process_goes_on_where_it_stopped(server, many, tmp_path):
    config = config_for(server, tmp_path)
    server.wait = 0.03
    process = multiprocessing.get_context("fork").Process(target=ask, args=(config, many), daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while len(server.asked) < 20:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    server.wait = 0.0
    again = config_for(server, tmp_path, "clean")
    assert rows(ask(config, many)) == rows(ask(again, many))
    twice = [text for text, n in Counter(server.asked[:-48]).items() if n > 1]
    assert len(twice) <= 8  # only what was under way when it was killed


def test_bulk_answers_are_those_of_the_benchmark(server, many, tmp_path):
    config = config_for(server, tmp_path)
    suite = Suite("many", [s for _, s in bulk.stream(many[0])], many[1])
    expected = Session(config, {}).ask("openai:audit", suite).drop(columns="seconds")
    answered = rows(ask(config, many))
    assert [r["id"] for r in answered] == expected["id"].tolist()
    assert [r["p_correct"] for r in answered] == expected["p_correct"].tolist()
    assert set(answered[0]) - {"row"} <= set(expected)


def test_images_from_elsewhere_need_leave(server, many, tmp_path, monkeypatch):
    config = config_for(server, tmp_path, api_allow_real_images=False)
    with pytest.raises(NotRun, match="api_allow_real_images"):
        ask(config, many)
    assert not server.asked
    monkeypatch.setattr(sources, "SUITES_DIR", many[1].parents[1])  # drawn by this project
    assert len(rows(ask(config, many))) == 48


def test_a_bad_row_is_named(many, tmp_path):
    lines = many[0].read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    for line, said in (('{"id": "a"}', "row 3, field"), ("{", "row 3: not valid JSON")):
        bad.write_text("\n".join([*lines[:2], line]))
        with pytest.raises(DataError, match=said):
            list(bulk.stream(bad))


def test_another_file_is_another_folder(many, tmp_path):
    config, other = RunConfig(run_dir=str(tmp_path)), tmp_path / "other.jsonl"
    other.write_text("\n".join(many[0].read_text().splitlines()[:-1]))
    folders = {
        bulk.shard_folder(config, f, s, n)
        for f in (many[0], other)
        for s in ("openai:a", "openai:b")
        for n in ((0, 2), (1, 2), (0, 3))
    }
    assert len(folders) == 12


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_scenario_is_in_one_shard_whatever_the_order_and_spacing(many, tmp_path, count):
    contents = [json.loads(line) for line in many[0].read_text().splitlines()]
    other = tmp_path / "reversed.jsonl"
    other.write_text("\n".join(json.dumps(c, separators=(" , ", " : ")) for c in contents[::-1]))
    found = [[s.id for _, s in bulk.stream(many[0], (n, count))] for n in range(count)]
    assert sorted(sum(found, [])) == sorted(content["id"] for content in contents)
    assert [[s.id for _, s in bulk.stream(other, (n, count))][::-1] for n in range(count)] == found


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b", "/", "1/0"])
def test_a_bad_shard_is_refused(text):
    with pytest.raises(ConfigError, match="NUMBER/COUNT"):
        bulk.parse_shard(text)


def test_commands_ask_and_merge(server, many, tmp_path):
    from typer.testing import CliRunner

    from medlib.cli import share

    asked = ["--system", "openai:audit", "--run-dir", str(tmp_path / "run"), "--profile", "tiny"]
    more = ["--set", f"api_base_url={server.url}", "--set", "api_allow_real_images=true"]
    for shard in ("0/2", "1/2"):
        said = CliRunner().invoke(
            share.app, ["bulk", str(many[0]), "--images-dir", str(many[1]), "--shard", shard, *asked, *more]
        )
        assert said.exit_code == 0, said.output
    said = CliRunner().invoke(share.app, ["bulk-merge", str(many[0]), "--shards", "2", *asked])
    assert said.exit_code == 0 and "openai:audit | 48 |" in said.output
