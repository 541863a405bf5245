"""Worklists: every row is answered or has its reason, whatever is broken, killed, changed or refused."""

import csv
import json
import multiprocessing
import shutil
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from medlib.audit import cases, worklist
from medlib.audit.auditor import Auditor
from medlib.config import ConfigError, NotRun
from medlib.data.cases import write_scenarios
from medlib.systems import registry


def records(out):
    """Lines of a worklist's JSONL, without seconds."""
    lines = (out / "worklist.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


run = worklist.run


# --- a local model


def test_a_worklist_is_answered_as_single_cases_are(auditor, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    done = run(auditor, rows, folder, tmp_path / "out", part=10)
    lines = records(tmp_path / "out")
    assert [line["place"] for line in lines] == [row.place for row in rows] and not done.problems
    for row, line in list(zip(rows, lines))[:3]:
        one = auditor.case(row.case, folder)
        assert line["p_correct"] == pytest.approx(one.p_correct, abs=1e-5)
        assert (line["decision"], line["reasons"]) == (one.decision, one.reasons)
        assert [n["id"] for n in line["nearest"]] == [n["id"] for n in one.nearest]
        assert "medical device" in line["notice"] and "knows no medicine" in line["notice"]
    with open(tmp_path / "out" / "worklist.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["decision"] for row in table] == [line["decision"] for line in lines]
    assert all((tmp_path / "out" / row["thumbnail"]).is_file() for row in table)
    assert sum(done.counts.values()) == len(rows) and done.scores is None


def test_broken_images_and_rows_stop_nothing(auditor, worklist, tmp_path):
    file, images_dir = worklist
    images = shutil.copytree(images_dir, tmp_path / "copies")
    rows, _, _ = cases.rows(file, images)
    broken = {rows[4].case.image, rows[9].case.image}
    for name in broken:
        (images / name).write_bytes(b"GIF89a and no more")
    with file.open("a", encoding="utf-8") as out:
        out.write("\nx;absent.png;a mass;biopsy;40;f;xray\n;;;\n")
    rows, folder, _ = cases.rows(file, images)
    done = run(auditor, rows, folder, tmp_path / "out", part=8)
    lines = records(tmp_path / "out")
    failed = {line["place"]: line["problem"] for line in lines if line["decision"] == "failed"}
    expected = {row.place for row in rows if row.case is None or row.case.image in broken}
    assert set(failed) == expected and len(failed) >= 3 and len(lines) == len(rows)
    assert any("absent.png" in problem for problem in failed.values())
    assert any("unreadable image" in problem for problem in failed.values())
    assert not any(str(tmp_path) in problem for problem in failed.values())  # a folder may be named after somebody
    assert done.counts["failed"] == len(failed) == len(done.problems)


def test_an_image_that_vanishes_or_may_not_be_read_is_a_failure_of_its_row(auditor, worklist, tmp_path):
    file, images_dir = worklist
    images = shutil.copytree(images_dir, tmp_path / "copies")
    rows, folder, _ = cases.rows(file, images)
    gone = rows[3].case.image
    (images / gone).unlink()
    done = run(auditor, rows, folder, tmp_path / "out", part=8)
    assert {place for place, _ in done.problems} == {row.place for row in rows if row.case.image == gone}
    assert all(gone in problem or "cannot be opened" in problem for _, problem in done.problems)
    assert not any(str(tmp_path) in problem for _, problem in done.problems)  # it may be named after somebody


def test_only_the_owner_may_look_into_a_worklist(auditor, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    out = tmp_path / "new" / "out"
    run(auditor, rows[:4], folder, out)
    assert {oct(file.stat().st_mode & 0o777) for file in [out, *out.rglob("*")] if file.is_dir()} == {"0o700"}
    files = [file for file in out.rglob("*") if file.is_file() and file.parent.name != "measured"]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_a_thumbnail_is_made_of_what_another_machine_has_asked(auditor, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    run(auditor, rows[:6], folder, tmp_path / "there")
    shutil.copytree(tmp_path / "there" / "measured", tmp_path / "here" / "measured")
    done = run(auditor, rows[:6], folder, tmp_path / "here")
    names = [sorted(f.name for f in (tmp_path / name / "thumbnails").iterdir()) for name in ("there", "here")]
    assert not done.asked and names[0] == names[1] and len(names[0]) == len({row.case.image for row in rows[:6]})


def test_nothing_is_asked_twice_and_a_changed_image_is_asked_again(auditor, worklist, tmp_path):
    file, images_dir = worklist
    images = shutil.copytree(images_dir, tmp_path / "copies")
    rows, folder, _ = cases.rows(file, images)
    out = tmp_path / "out"
    assert run(auditor, rows, folder, out).asked == len(rows)
    before = records(out)
    assert run(auditor, rows, folder, out).asked == 0 and records(out) == before
    first, other = rows[0].case.image, next(r.case.image for r in rows if r.case.image != rows[0].case.image)
    (images / first).write_bytes((images / other).read_bytes())
    changed = sum(row.case.image == first for row in rows)
    assert run(auditor, rows, folder, out).asked == changed
    assert records(out)[0]["hashes"]["case"] != before[0]["hashes"]["case"]


def test_gold_verdicts_are_scored_where_there_are_some(auditor, suite, tmp_path):
    scenarios, images_dir = suite
    file = write_scenarios(tmp_path / "cases.jsonl", scenarios[:6])
    rows, folder, _ = cases.rows(file, images_dir)
    done = run(auditor, rows, folder, tmp_path / "out")
    lines = records(tmp_path / "out")
    right = np.mean([line["verdict"] == line["gold"] for line in lines])
    assert done.scores["accuracy"]["value"] == pytest.approx(right) and done.scores["n"] == 6


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b", "/", "1/0"])
def test_a_bad_shard_is_refused(text):
    with pytest.raises(ConfigError, match="NUMBER/COUNT"):
        worklist.parse_shard(text)


# --- an endpoint


@pytest.fixture
def server(monkeypatch):
    """A server whose verdict depends on the words; it refuses notes with a word of ``refused``, or everything."""
    state = SimpleNamespace(asked=[], fail_after=10**9, refused=(), wait=0.0, lock=threading.Lock())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            image, words = body["messages"][0]["content"]
            text = words["text"]
            with state.lock:
                state.asked.append((text, image["image_url"]["url"]))
                down = len(state.asked) > state.fail_after
            time.sleep(state.wait)
            verdict = "CORRECT" if len(text) % 2 else "ERROR"
            message = {"role": "assistant", "content": f"{verdict} - so it is"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
            }
            refused = any(word in text for word in state.refused)
            self.send_response(503 if down else 400 if refused else 200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            try:
                self.wfile.write(b"{}" if down or refused else json.dumps(reply).encode())
            except OSError:  # the process that asked was killed
                pass

        def log_message(self, *_):
            pass

    pytest.importorskip("openai", reason="the openai package is missing: pip install '.[api]'")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(registry, "MODULES", ["openai_api"])  # the other rows load large packages
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{running.server_port}/v1"
        yield state
        running.shutdown()


@pytest.fixture
def hosted(server, config):
    """A function that makes an auditor of the server; ``more`` are settings."""

    def make(model="openai:audit", **more):
        known = {"api_base_url": server.url, "api_retries": 0, "api_workers": 2, "api_allow_real_images": True}
        return Auditor(config.model_copy(update=known | more), model)

    return make


def test_four_shards_in_one_folder_are_the_whole(server, hosted, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    run(hosted(), rows, folder, tmp_path / "whole")
    for number in range(4):  # as on four machines, whose folders are then put together
        done = run(hosted(), rows[:: (-1) ** number], folder, tmp_path / "four", (number, 4))
        assert 0 < done.asked < len(rows)
    server.asked.clear()
    assert run(hosted(), rows, folder, tmp_path / "four").asked == 0 and not server.asked
    assert records(tmp_path / "four") == records(tmp_path / "whole")


def test_an_endpoint_that_fails_midway_costs_no_answer(server, hosted, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    server.fail_after = 10
    with pytest.raises(NotRun, match="HTTP 503.*run again"):
        run(hosted(), rows, folder, tmp_path / "out", part=10)
    server.asked.clear()
    server.fail_after = 10**9
    assert run(hosted(), rows, folder, tmp_path / "out").asked == len(rows) - 10 == len(server.asked)


def test_a_refused_row_is_recorded_and_the_rest_is_asked_once(server, hosted, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    server.refused = (rows[2].case.finding,)
    some = [row for row in rows if row.case.finding == rows[2].case.finding]
    done = run(hosted(), rows, folder, tmp_path / "out", part=8)
    assert [place for place, _ in done.problems] == [row.place for row in some]
    assert all("HTTP 400" in reason for _, reason in done.problems)
    assert max(Counter(server.asked).values()) == 1
    server.asked.clear()
    server.refused = ()
    assert run(hosted(), rows, folder, tmp_path / "out").asked == len(some) == len(server.asked)


def test_a_killed_worklist_goes_on_where_it_stopped(server, hosted, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    server.wait = 0.03
    job = multiprocessing.get_context("fork").Process(
        target=run, args=(hosted(), rows, folder, tmp_path / "out"), kwargs={"part": 4}, daemon=True
    )
    job.start()
    deadline = time.monotonic() + 60
    while len(server.asked) < 12:
        assert job.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.join()
    server.wait = 0.0
    run(hosted(), rows, folder, tmp_path / "out")
    twice = [asked for asked, n in Counter(server.asked).items() if n > 1]
    assert len(twice) <= 4 and len(server.asked) <= len(rows) + 4  # only what was under way
    run(hosted(), rows, folder, tmp_path / "clean")
    assert records(tmp_path / "out") == records(tmp_path / "clean")


def test_another_model_or_address_has_answers_of_its_own(server, hosted, worklist, tmp_path):
    rows, folder, _ = cases.rows(*worklist)
    run(hosted(), rows, folder, tmp_path / "out")
    assert run(hosted("openai:other"), rows, folder, tmp_path / "out").asked == len(rows)
    address = server.url.replace("127.0.0.1", "localhost")
    assert run(hosted(api_base_url=address), rows, folder, tmp_path / "out").asked == len(rows)


def test_images_are_sent_only_with_leave(server, hosted):
    with pytest.raises(NotRun, match="would leave this machine.*api_allow_real_images"):
        hosted(api_allow_real_images=False)
    assert not server.asked


def test_two_rows_of_one_content_are_asked_once_and_fail_together(server, hosted, worklist, tmp_path):
    file, images = worklist
    lines = file.read_text(encoding="utf-8").splitlines()
    twins = [lines[0], lines[1], "twin" + lines[1][lines[1].index(";") :], lines[3]]
    file.write_text("\n".join(twins), encoding="utf-8")
    rows, folder, _ = cases.rows(file, images)
    server.refused = (rows[0].case.finding,)
    done = run(hosted(), rows, folder, tmp_path / "out")
    assert [place for place, _ in done.problems][:2] == ["list.csv, row 2", "list.csv, row 3"]
    server.refused = ()
    assert run(hosted(), rows, folder, tmp_path / "out").asked == 3 - done.asked - 1
    assert len(records(tmp_path / "out")) == 3


def test_a_hosted_model_has_a_threshold_without_guarantee(hosted):
    decision = hosted().reference.decision
    assert decision.threshold == 0.5 and "without a guarantee" in decision.guarantee
