"""A run with an adapter that knows nothing, and a worklist of its held-out cases."""

import pytest

from medlib.audit.auditor import Auditor


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
def config(small_config, random_adapter):
    return small_config.model_copy(update={"adapter": str(random_adapter), "calibration_pairs": 12})


@pytest.fixture
def auditor(config):
    return Auditor(config)


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
