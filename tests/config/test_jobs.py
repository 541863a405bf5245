"""Jobs in a pool of processes give what they give one after the other."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from medlib.config import ModelError, jobs

PARENT = """
import time
from medlib.config import jobs
if __name__ == "__main__":
    jobs.run(time.sleep, [(60,), (60,)], 2, "asleep")
"""


def test_results_come_in_the_order_of_the_jobs():
    powers = [(2, n) for n in range(5)]
    assert jobs.run(pow, powers, 2, "powers") == jobs.run(pow, powers, 1, "powers") == [1, 2, 4, 8, 16]


def test_the_first_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        jobs.run(divmod, [(1, 0), (4, 2)], 2, "divisions")


def test_a_killed_process_is_one_sentence():
    with pytest.raises(ModelError, match="killed from outside.*run again"):
        jobs.run(os._exit, [(1,), (1,)], 2, "exits")


def test_jobs_know_that_they_share_the_cores():
    environments = jobs.run(os.getenv, [(jobs.PROCESSES,), ("OMP_NUM_THREADS",)], 2, "environment")
    assert environments == ["1", "1"]


def test_the_number_of_processes_is_asked_for_or_that_of_the_cores(monkeypatch):
    assert jobs.count(3) == 3
    monkeypatch.setenv(jobs.PROCESSES, "5")
    assert jobs.cores() == jobs.count() == 5
    monkeypatch.delenv(jobs.PROCESSES)
    assert 1 <= jobs.cores() <= os.cpu_count()


def test_a_pool_ends_with_the_process_that_started_it(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while len(children := psutil.Process(parent.pid).children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # until they wait for their parent
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
