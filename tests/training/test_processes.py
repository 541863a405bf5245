"""Two processes over gloo on a CPU: one adapter, written once; and the sharding that 27B needs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import load_file

from medlib.config import ROOT, RunConfig
from medlib.data.cases import read_scenarios
from medlib.models import loading
from medlib.models.verdict_model import VerdictModel
from medlib.training import encoding, lora, processes, trainer

PROFILES = ROOT / "profiles" / "accelerate"

CHILD = """
import sys
import torch
torch.set_num_threads(1)
from medlib.training import processes
from tests.training import test_processes as test_launch
processes.state()  # a notebook that has trained before
processes.notebook(getattr(test_launch, sys.argv[1]), tuple(sys.argv[2:]), processes=2)
"""


def in_two_processes(function, *arguments):
    """Call a function of this module in two forked processes; returns what they printed."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, function.__name__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def load(model, images_dir):
    processor, base = loading.load(model)
    scenarios = read_scenarios(Path(images_dir).parent / "scenarios.jsonl")
    return processor, base, encoding.encode(processor, scenarios, [Path(images_dir)] * len(scenarios))


def train(model, images_dir, out_dir, batch_size=4):
    """24 scenarios, twice; 8 a step in one process or in two."""
    processor, base, rows = load(model, images_dir)
    rows = encoding.cache_image_features(base, rows)
    for row in rows[::3]:  # the processes have unequal numbers of labelled tokens
        row["labels"][-4:] = -100
    config = RunConfig(
        model=model, epochs=2, batch_size=int(batch_size), lr=2e-4, lora_dropout=0, evaluations_per_epoch=1
    )
    save = get_peft_model.__globals__["PeftModel"].save_pretrained

    def watched(peft_model, folder, *args, **kwargs):
        with (Path(out_dir).parent / f"{Path(out_dir).name}.writers").open("a") as file:
            file.write(f"{processes.state().process_index}\n")
        return save(peft_model, folder, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(get_peft_model.__globals__["PeftModel"], "save_pretrained", watched)
        trainer.train_adapter(VerdictModel(processor, base), rows, rows[:8], config, out_dir)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(nano_folder, suite, tmp_path, capfd):
    model, images_dir = str(nano_folder), suite[1]
    printed = in_two_processes(train, model, images_dir, tmp_path / "two", 4)
    assert printed.count("24 training and 8 validation scenarios") == 1
    assert set((tmp_path / "two.writers").read_text().split()) == {"0"}
    train(model, images_dir, tmp_path / "one", 8)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    assert max(float(t.abs().max()) for n, t in one.items() if "lora_B" in n) > 5e-4
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < 5e-6
    metadata = [json.loads((tmp_path / n / "training_metadata.json").read_text()) for n in ("one", "two")]
    assert [m["processes"] for m in metadata] == [1, 2] and [m["steps"] for m in metadata] == [6, 6]
    assert metadata[0]["best_eval_loss"] == pytest.approx(metadata[1]["best_eval_loss"], abs=1e-5)


def read_environment():
    """The environment that `accelerate launch` makes of the FSDP file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(
        ["--config_file", str(PROFILES / "fsdp-27b.yaml"), "--num_processes", "2", "train.py"]
    )
    return prepare_multi_gpu_env(_validate_launch_command(arguments)[0])


def shard(model, images_dir, out_dir):
    """One step, whole and sharded as the FSDP file says; what each process holds goes to a file.

    accelerate shards on accelerators only, so its plugin and its own wrapping are called here.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule

    accelerator = Accelerator(cpu=True)
    os.environ.update(read_environment())
    AcceleratorState._shared_state["fsdp_plugin"] = plugin = FullyShardedDataParallelPlugin()
    processor, _, rows = load(model, images_dir)
    batch = encoding.collator(processor.tokenizer.pad_token_id)(rows[:4])

    def two_losses(sharded):
        torch.manual_seed(0)
        base = loading.load(model)[1]
        peft_model = get_peft_model(base, lora.lora_config(RunConfig(lora_dropout=0))).train()
        if sharded:
            assert plugin.activation_checkpointing
            peft_model = fsdp2_prepare_model(accelerator, fsdp2_apply_ac(accelerator, peft_model))
        optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(3):
            loss = peft_model(**batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return peft_model, losses

    whole, expected = two_losses(sharded=False)
    parts, losses = two_losses(sharded=True)
    units = [name for name, module in parts.named_modules() if isinstance(module, FSDPModule)]
    Path(out_dir, f"{accelerator.process_index}.json").write_text(
        json.dumps(
            {
                "expected": expected,
                "losses": losses,
                "units": units,
                "whole": sum(p.numel() for p in whole.parameters()),
                "held": sum(p.to_local().numel() for p in parts.parameters()),
            }
        )
    )


@pytest.mark.slow
def test_the_27b_file_shards_the_model_and_changes_no_loss(nano_folder, suite, tmp_path):
    in_two_processes(shard, nano_folder, suite[1], tmp_path)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for part in parts:
        assert part["losses"] == pytest.approx(part["expected"], abs=2e-5)
        assert part["losses"][0] - part["losses"][2] > 1e-3  # the steps were real
        assert 0.49 < part["held"] / part["whole"] < 0.51
        layers = [name for name in part["units"] if re.search(r"language_model\.layers\.\d+$", name)]
        assert len(layers) == 6
    assert sum(part["held"] for part in parts) >= parts[0]["whole"]


def test_the_files_say_what_they_are_for():
    ddp, fsdp = (yaml.safe_load((PROFILES / name).read_text()) for name in ("ddp.yaml", "fsdp-27b.yaml"))
    assert ddp["distributed_type"] == "MULTI_GPU" and fsdp["distributed_type"] == "FSDP"
    environment = read_environment()
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Gemma3DecoderLayer"
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"
    assert environment["FSDP_ACTIVATION_CHECKPOINTING"] == "true"


def test_one_process_is_called_in_place(capsys):
    seen = []
    processes.notebook(seen.append, ("here",), processes=1)
    processes.say("once")
    assert seen == ["here"] and processes.count() == 1 and not processes.sharded()
    assert capsys.readouterr().out == "once\n"
