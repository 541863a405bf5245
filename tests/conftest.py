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
        epochs=1,
        batch_size=8,
        lr=3e-3,
        eval_batch_size=24,
        core_folds=False,
    )


def pytest_terminal_summary(terminalreporter):
    """Say how many tests ran in a real browser; without one they are skipped, which is easily overlooked."""
    counts = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        counts[outcome] = sum("browser" in report.keywords for report in reports)
    if any(counts.values()):
        ran = sum(counts.values()) - counts["skipped"]
        terminalreporter.write_line(f"tests in a browser: {ran} ran, {counts['skipped']} skipped")
