"""Shared by the tests: a random model of MedGemma's classes, and a small drawn suite."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MEDLIB_PROCESSES", "1")  # a test that wants more says so

import pytest  # noqa: E402

from medlib.config import RunConfig


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory):
    """Folder of a randomly initialised stand-in; it knows nothing."""
    import torch

    from medlib.models.standin import medgemma as medgemma_standin

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("nano")
    processor = medgemma_standin.build_processor(medgemma_standin.corpus())
    model = medgemma_standin.build_model(processor)
    model.config.standin = True
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def nano(nano_folder):
    """(processor, model, folder), loaded as any other model is."""
    from medlib.models import loading

    return *loading.load(str(nano_folder)), nano_folder


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """(scenarios, images_dir): 12 pairs, one of each modality and kind."""
    from medlib.data.synthetic import grammar

    folder = tmp_path_factory.mktemp("suites")
    return grammar.build_suite("small", "train", 12, 0, folder), folder / "small" / "images"


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def small_config(nano_folder, shared_data, tmp_path, monkeypatch):
    """A run of seconds that writes nothing into the repository."""
    from medlib.data import sources

    monkeypatch.setattr(sources, "SUITES_DIR", shared_data / "suites")
    monkeypatch.setattr(sources, "CORE_DIR", shared_data / "core24")
    return RunConfig(
        model=str(nano_folder),
        run_dir=str(tmp_path / "run"),
        train_pairs=12,
        val_pairs=12,
        test_pairs=12,
        patient_suite_pairs=4,
        renderer_pairs=4,
        epochs=1,
        batch_size=8,
        lr=3e-3,
        eval_batch_size=24,
        core_folds=False,
    )


@pytest.fixture(scope="session")
def random_adapter(nano_folder, tmp_path_factory):
    """Folder of an adapter whose weights are random, so that it changes every answer."""
    import torch
    from peft import get_peft_model

    from medlib.config import RunConfig
    from medlib.models import loading
    from medlib.training import adapters, lora

    folder = tmp_path_factory.mktemp("random") / "adapter"
    config = RunConfig(model=str(nano_folder), lora_dropout=0)
    processor, base = loading.load(config.model)
    model = get_peft_model(base, lora.lora_config(config))
    torch.manual_seed(0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    adapters.save_adapter(model, processor, config, folder)
    return folder


@pytest.fixture
def worklist(suite, tmp_path):
    """(CSV without verdicts of the small suite, folder of its images)."""
    scenarios, images_dir = suite
    rows = ["case no;file;Finding;Therapy;age;gender;modality"]
    rows += [
        f"{s.id};{s.image};{s.finding};{s.treatment};{s.patient.age}Y;{s.patient.sex[0]};{s.modality}"
        for s in scenarios
    ]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(rows), encoding="utf-8")
    return file, images_dir


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that no process is left alone with one at the end."""
    first = ("test_end_to_end.py", "test_side_by_side.py", "test_kills.py")
    items.sort(key=lambda item: item.path.name not in first)


def pytest_terminal_summary(terminalreporter):
    """Say how many tests ran in a real browser; without one they are skipped, which is easily overlooked."""
    counts = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        counts[outcome] = sum("browser" in getattr(report, "keywords", ()) for report in reports)
    if any(counts.values()):
        ran = sum(counts.values()) - counts["skipped"]
        terminalreporter.write_line(f"tests in a browser: {ran} ran, {counts['skipped']} skipped")
