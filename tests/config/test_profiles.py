"""Hardware profiles: one effective batch, hardware alone, for the command line and papermill alike."""

import re

import nbformat
import pytest
import yaml
from papermill.iorw import read_yaml_file
from papermill.parameterize import parameterize_notebook

from medlib.config import ROOT, ConfigError, RunConfig, from_notebook, hardware, load_profile, resolve
from medlib.config.hardware import EFFECTIVE_BATCH
from medlib.training import forecast
from medlib.training.forecast import PRICES

HARDWARE = ("cpu", "mps", "t4", "rtx3090", "rtx4090", "a100", "h100", "multi-gpu")
SETTINGS = {
    "dtype",
    "quantization",
    "attention",
    "batch_size",
    "gradient_accumulation",
    "gradient_checkpointing",
    "workers",
    "eval_batch_size",
}


def processes(name):
    """Processes that a profile is for, as its comment tells `accelerate launch`."""
    told = re.search(r"--num_processes (\d+)", (ROOT / "profiles" / f"{name}.yaml").read_text())
    return int(told[1]) if told else 1


@pytest.mark.parametrize("name", HARDWARE)
def test_every_profile_sets_hardware_and_nothing_else(name):
    assert set(load_profile(name)) == SETTINGS


@pytest.mark.parametrize("recipe", [None, "standin", "medgemma-4b"])
@pytest.mark.parametrize("name", HARDWARE)
def test_one_effective_batch_on_all_hardware(name, recipe):
    config = resolve(f"{recipe}+{name}" if recipe else name)
    product = config.batch_size * config.gradient_accumulation * processes(name)
    assert product == EFFECTIVE_BATCH
    assert processes(name) == (8 if name == "multi-gpu" else 1)


def test_a_recipe_and_its_hardware_are_layered():
    config = resolve("medgemma-4b+t4")
    assert (config.model, config.lr) == ("google/medgemma-4b-it", 2e-4)  # the recipe's
    assert (config.dtype, config.quantization, config.batch_size) == ("float16", "4bit", 2)  # the T4's
    assert resolve("medgemma-4b").batch_size * resolve("medgemma-4b").gradient_accumulation == 16


@pytest.mark.parametrize("name", HARDWARE)
def test_papermill_reads_the_same_file(name):
    file = ROOT / "profiles" / f"{name}.yaml"
    cell = nbformat.v4.new_code_cell("profile = 'medgemma-4b'", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel, "papermill": {}})
    names = {}
    for cell in parameterize_notebook(notebook, read_yaml_file(str(file))).cells:
        exec(cell.source, names)
    assert from_notebook(names) == resolve(f"medgemma-4b+{name}")


def test_auto_is_the_profile_of_the_hardware_found(monkeypatch):
    monkeypatch.setattr(hardware, "facts", lambda: {"device": "mps"})
    assert load_profile("auto") == load_profile("mps")
    assert resolve("medgemma-4b+auto") == resolve("medgemma-4b+mps")


def test_an_unknown_profile_names_auto_too():
    with pytest.raises(ConfigError, match="auto"):
        load_profile("t5")


def test_every_profile_has_a_price_row_with_its_date():
    table = yaml.safe_load(PRICES.read_text())["profiles"]
    assert set(table) == set(HARDWARE)
    for row in table.values():
        assert row["as_of"] and row["source"] and 0 < row["utilisation"] <= 1
        assert set(row["peak_tflops"]) == {"float32", "float16", "bfloat16"}
    assert table["multi-gpu"]["count"] == processes("multi-gpu")
    assert table["multi-gpu"]["usd_per_hour"] == pytest.approx(8 * table["h100"]["usd_per_hour"])


def test_the_real_4b_model_is_forecast_to_fit_on_every_card():
    for name in HARDWARE:
        config = resolve(f"medgemma-4b+{name}")
        assert isinstance(config, RunConfig)
        assert forecast.forecast(config, name)["fits"] in (True, None), name
