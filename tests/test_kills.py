"""Twenty kills at random moments of drawing, training and scoring; each rerun ends as an undisturbed run.

``benchmarks/kills.py`` does the same with the commands themselves. Here a process is a copy of this one, so that
none spends its time on imports.
"""

import importlib.util
import multiprocessing
import random
import shutil
import time

import pytest

from medlib.config import ROOT, path
from medlib.data import sources
from medlib.evaluation import benchmark
from medlib.training import supervised

spec = importlib.util.spec_from_file_location("kills", ROOT / "benchmarks" / "kills.py")
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)


def draw(config):
    sources.prepare(config)


def train(config):
    supervised.train(config)


def score(config):
    benchmark.benchmark(config, ("constant", "heuristics", "keyword-probe"))


@pytest.fixture
def config(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SUITES_DIR", tmp_path / "suites")
    monkeypatch.setattr(sources, "CORE_DIR", tmp_path / "core24")
    return small_config.model_copy(update={"contradiction_pairs": 4, "corruption_pairs": 4})


def start(function, config):
    process = multiprocessing.get_context("fork").Process(target=function, args=(config,))
    process.start()
    return process


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_after_a_kill_a_rerun_ends_as_an_undisturbed_run(config, tmp_path):
    places = {"suites": sources.SUITES_DIR, "core24": sources.CORE_DIR, "run": path(config.run_dir)}
    rng, before = random.Random(0), tmp_path / "before"

    def state():
        return {name: kills.state(folder) for name, folder in places.items()}

    for function, number in ((draw, 8), (train, 6), (score, 6)):
        for name, folder in places.items():
            if folder.is_dir():
                shutil.copytree(folder, before / function.__name__ / name)
        started = time.monotonic()
        process = start(function, config)
        process.join()
        assert process.exitcode == 0
        seconds, expected = time.monotonic() - started, state()
        for _ in range(number):
            for name, folder in places.items():
                shutil.rmtree(folder, ignore_errors=True)
                if (before / function.__name__ / name).is_dir():
                    shutil.copytree(before / function.__name__ / name, folder)
            killed = start(function, config)
            time.sleep(after := rng.uniform(0, seconds))
            killed.kill()
            killed.join()
            again = start(function, config)
            again.join()
            assert again.exitcode == 0, f"{function.__name__} after {after:.2f} s"
            changed = {name: kills.differences(expected[name], found) for name, found in state().items()}
            assert not any(changed.values()), f"{function.__name__} after {after:.2f} s: {changed}"


def test_the_comparison_sees_what_a_kill_could_spoil(tmp_path):
    (tmp_path / "a.png").write_bytes(b"whole")
    (tmp_path / "predictions.jsonl").write_text('{"id": 1, "seconds": 2}\n')
    expected = kills.state(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"id": 1, "seconds": 3}\n')
    (tmp_path / ".a.png.1-2.tmp").write_bytes(b"left over")
    assert kills.differences(expected, kills.state(tmp_path)) == []
    (tmp_path / "a.png").write_bytes(b"who")
    (tmp_path / "more.png").write_bytes(b"")
    assert kills.differences(expected, kills.state(tmp_path)) == ["a.png", "more.png"]
