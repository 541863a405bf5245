"""Which profile fits: a pure function of a few facts."""

import os
import subprocess
import sys

import pytest

from medlib.config import ROOT, ConfigError, hardware, hardware_settings
from medlib.config.hardware import EFFECTIVE_BATCH


def card(name, memory_gb, capability, count=1, processes=1):
    return {
        "device": "cuda",
        "name": name,
        "memory_gb": memory_gb,
        "capability": capability,
        "count": count,
        "processes": processes,
    }


MACHINES = {
    "T4": (card("Tesla T4", 14.6, (7, 5)), "t4", "no bfloat16"),
    "V100": (card("Tesla V100-SXM2-32GB", 31.7, (7, 0)), "t4", "no bfloat16"),
    "4080": (card("NVIDIA GeForce RTX 4080", 15.7, (8, 9)), "t4", "less than 20 GB"),
    "3090": (card("NVIDIA GeForce RTX 3090", 23.7, (8, 6)), "rtx3090", "bfloat16"),
    "4090": (card("NVIDIA GeForce RTX 4090", 23.6, (8, 9)), "rtx4090", "bfloat16"),
    "A100 40": (card("NVIDIA A100-SXM4-40GB", 39.4, (8, 0)), "a100", "40 GB"),
    "A100 80": (card("NVIDIA A100-SXM4-80GB", 79.2, (8, 0)), "a100", "40 GB"),
    "H100": (card("NVIDIA H100 80GB HBM3", 79.1, (9, 0)), "h100", "80 GB"),
    "8 H100, one process": (card("NVIDIA H100 80GB HBM3", 79.1, (9, 0), count=8), "h100", "num_processes 8"),
    "8 H100, launched": (card("NVIDIA H100 80GB HBM3", 79.1, (9, 0), 8, 8), "multi-gpu", "8 processes"),
    "2 T4, launched": (card("Tesla T4", 14.6, (7, 5), 2, 2), "t4", "no bfloat16"),
    "M2": ({"device": "mps"}, "mps", "Apple"),
    "CPU": ({"device": "cpu"}, "cpu", "no GPU"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_gets_its_profile_and_a_reason(machine):
    found, profile, reason = MACHINES[machine]
    assert hardware.detect(found) == profile
    line = hardware.explain(found)
    assert f"profile that fits is {profile}" in line and reason in line and "\n" not in line
    assert found.get("name", found["device"]) in line


@pytest.mark.parametrize("machine", MACHINES)
def test_the_effective_batch_is_the_same_with_any_number_of_processes(machine):
    found = MACHINES[machine][0]
    for processes in (1, 2, 4, 8, 16) if found["device"] == "cuda" else (1,):
        settings = hardware_settings({**found, "processes": processes})
        product = settings["batch_size"] * settings["gradient_accumulation"] * processes
        assert product == EFFECTIVE_BATCH


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ConfigError, match="3 processes cannot share"):
        hardware_settings(card("NVIDIA H100 80GB HBM3", 79.1, (9, 0), 3, 3))


def test_without_visible_cards_the_cpu_is_taken():
    code = (
        "from medlib.config import hardware; from medlib.models import loading; "
        "print(hardware.detect(), loading.pick_device())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    assert result.stdout.split() in (["cpu", "cpu"], ["mps", "mps"])  # a Mac has no cards to hide
