"""A run with an adapter that knows nothing."""

import pytest

from medlib.audit.auditor import Auditor


@pytest.fixture
def config(small_config, random_adapter):
    return small_config.model_copy(update={"adapter": str(random_adapter), "calibration_pairs": 12})


@pytest.fixture
def auditor(config):
    return Auditor(config)
