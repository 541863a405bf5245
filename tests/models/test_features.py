"""Features of images: made once, shared by processes, never half written."""

import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from peft import get_peft_model

from medlib.config import RunConfig
from medlib.data.suite import Suite
from medlib.models import features, loading, scoring
from medlib.training import lora


def load(nano_folder, folder):
    model = loading.load(str(nano_folder))
    features.keep_on_disk(model.network, model.processor.image_processor, folder)
    return model


def test_a_later_process_reads_no_image(nano_folder, suite, tmp_path, monkeypatch):
    small = Suite("small", suite[0][:6], suite[1])
    first = load(nano_folder, tmp_path)
    p = scoring.p_correct(first, small)
    later = load(nano_folder, tmp_path)  # a tower of its own, as in another process
    monkeypatch.setattr(Suite, "image", None)
    monkeypatch.setattr(later.network, "get_image_features", None)
    assert np.array_equal(scoring.p_correct(later, small), p)
    with torch.no_grad():
        next(features._parts(later.network)[0].parameters()).add_(1)
    features._KNOWN.clear()
    features.keep_on_disk(later.network, later.processor.image_processor, tmp_path)
    with pytest.raises(TypeError):  # another tower: other features
        scoring.p_correct(later, small)


def test_nothing_is_kept_where_an_adapter_changes_the_tower(nano_folder):
    base = loading.load(str(nano_folder)).network
    assert features.are_fixed(base)
    model = get_peft_model(base, lora.lora_config(RunConfig(lora_targets="vision", lora_rank=4)))
    assert not features.are_fixed(model) and features.of_images(model, [], []) is None


def writer(folder, first, count):
    store = features._Features()
    store.folder, store.made_by = folder, "tower"
    for n in range(first, first + count):
        store.write({f"image-{n}": torch.full((1, 4, 3), float(n))})


def reader(folder):
    store = features._Features()
    store.folder, store.made_by = folder, "tower"
    return store


def test_writers_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    # the second writes half of what the first writes, at the same time
    processes = [context.Process(target=writer, args=(tmp_path, first, 40)) for first in (0, 20)]
    for process in processes:
        process.start()
    store, names = reader(tmp_path), [f"image-{n}" for n in range(60)]
    while any(process.is_alive() for process in processes):
        for name, feature in store.read(names).items():  # whatever is there is whole
            assert (feature == float(name.partition("-")[2])).all()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(store.read(names)) == sorted(names) and not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_or_broken_writer_leaves_is_no_feature(tmp_path):
    writer(tmp_path, 0, 2)
    [file, _] = sorted(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:20])
    left = tmp_path / "tower-x.1-2.tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * features._HOUR,) * 2)
    assert len(reader(tmp_path).read(["image-0", "image-1"])) == 1
    writer(tmp_path, 2, 1)
    assert not left.exists()


def test_the_oldest_features_make_room(tmp_path, monkeypatch):
    writer(tmp_path, 0, 1)
    size = next(tmp_path.iterdir()).stat().st_size
    monkeypatch.setattr(features, "DISK_BYTES", 3 * size)
    for n in range(1, 6):
        writer(tmp_path, n, 1)
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=lambda f: f.stat().st_mtime_ns)[::-1]):
            os.utime(file, (1e9 - age,) * 2)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size
    assert list(reader(tmp_path).read([f"image-{n}" for n in range(6)])) == ["image-3", "image-4", "image-5"]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(features, "MEMORY_BYTES", 3 * 48)
    store = features._Features()
    for n in range(5):
        store.add((n,), torch.zeros(1, 4, 3))
    assert list(store.memory) == [(0,), (1,), (2,)]
