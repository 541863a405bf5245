"""A run with an adapter that knows nothing, loaded once for each file of tests."""

import pytest

from medlib.audit.auditor import Auditor
from medlib.config import RunConfig


@pytest.fixture(scope="module")
def config(nano_folder, random_adapter, shared_data, tmp_path_factory):
    from medlib.data import sources

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SUITES_DIR", shared_data / "suites")
        patch.setattr(sources, "CORE_DIR", shared_data / "core24")
        yield RunConfig(
            model=str(nano_folder),
            run_dir=str(tmp_path_factory.mktemp("audit") / "run"),
            adapter=str(random_adapter),
            train_pairs=12,
            val_pairs=12,
            test_pairs=12,
            calibration_pairs=12,
            contradiction_pairs=12,
        )


@pytest.fixture(scope="module")
def auditor(config):
    return Auditor(config)
