"""Merging, exporting, the card, and a Hub on the loopback that takes what is uploaded."""

import base64
import hashlib
import json
import logging
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import nbformat
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file

from medlib.config import ROOT, STANDIN, ConfigError, RunConfig, adapter_dir, models, run_dir, runs
from medlib.data import sources
from medlib.data.suite import Suite
from medlib.evaluation import benchmark
from medlib.models import loading, scoring, weights
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import gallery, pages, publish, readme
from medlib.reporting.publish import ALLOWED, HAI_DEF, NOTICE, PublishError
from medlib.training import adapters, supervised

TOKEN = "hf_" + "a" * 34  # made up: a form that the client takes


@pytest.fixture(scope="module")
def finished(nano_folder, shared_data, tmp_path_factory):
    """A run with an adapter and its metrics."""
    from medlib.config import RunConfig

    config = RunConfig(
        model="models/nano",
        run_dir=str(tmp_path_factory.mktemp("runs") / "run"),
        train_pairs=12,
        val_pairs=4,
        test_pairs=12,
        epochs=1,
        batch_size=8,
        lr=3e-2,
        eval_batch_size=24,
        core_folds=False,
        ablations=False,
        generate=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SUITES_DIR", shared_data / "suites")
        patch.setattr(sources, "CORE_DIR", shared_data / "core24")
        # a published run names its base by a name, not by a folder of this machine
        for module in (loading, models, weights):
            patch.setattr(module, "locate", lambda name: str(nano_folder) if name == config.model else name)
        supervised.train(config)
        benchmark.evaluate(config)
        yield config


def real(config, folder):
    """A copy of the run that says it was made of the real MedGemma, asked for without naming a model."""
    run = shutil.copytree(run_dir(config), folder / "run")
    name = "google/medgemma-4b-it"
    for file, keys in (("run.json", ("parameters", "model")), ("adapter/training_metadata.json", ("base_model",))):
        record = json.loads((run / file).read_text())
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = name
        (run / file).write_text(json.dumps(record))
    return config.model_copy(update={"model": STANDIN, "run_dir": str(run)})


@pytest.fixture
def suite12(suite):
    scenarios, folder = suite
    return Suite("small", scenarios[:12], folder)


# ---- merge and export


def test_the_merged_model_answers_as_base_and_adapter_do(finished, suite12, tmp_path):
    folder = publish.merge(finished, tmp_path / "merged")
    processor, base = loading.load_for(finished)
    untouched = scoring.p_correct(VerdictModel(processor, base), suite12)
    adapted = VerdictModel(processor, base).with_adapter(adapter_dir(finished)).network
    expected = scoring.p_correct(VerdictModel(processor, adapted), suite12)
    processor, merged = loading.load(str(folder))
    answered = scoring.p_correct(VerdictModel(processor, merged), suite12)
    np.testing.assert_allclose(answered, expected, atol=1e-4)
    assert np.abs(expected - untouched).max() > 1e-2  # the adapter does something
    assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").is_file()
    assert loading.is_standin(str(folder))  # what is made of a stand-in is one


def test_the_exported_adapter_loads_with_plain_peft_and_holds_nothing_else(finished):
    folder = publish.export(finished)
    _, base = loading.load(loading.locate(finished.model))
    assert PeftModel.from_pretrained(base, folder).peft_config["default"].r == finished.lora_rank
    names = {file.name for file in folder.iterdir()}
    assert {"README.md", "adapter_model.safetensors", "processor_config.json", "run.json"} <= names
    assert all(ALLOWED.fullmatch(name) for name in names)
    facts = json.loads((folder / "training.json").read_text())
    assert facts["best_eval_loss"] == adapters.training_metadata(finished)["best_eval_loss"]
    assert "config" not in facts


def test_a_run_without_fresh_metrics_is_not_published(finished, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(finished.run_dir, run)
    copy = finished.model_copy(update={"run_dir": str(run)})
    publish.card(copy)
    adapter = run / "adapter" / "adapter_model.safetensors"
    content = adapter.read_bytes()
    save_file({name: tensor * 2 for name, tensor in load_file(adapter).items()}, adapter)
    with pytest.raises(PublishError, match="figures of medgemma-lora are of another adapter than adapter; run"):
        publish.export(copy)
    adapter.write_bytes(content)
    record = json.loads((run / "run.json").read_text())
    record["data_hashes"]["test-12-0"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(PublishError, match=r"are of other data \(test-12-0\)"):
        publish.export(copy)
    (run / "metrics.json").unlink()
    with pytest.raises(PublishError, match="no results of the adapter"):
        publish.card(copy)


def test_figures_of_another_adapter_are_published_nowhere(finished, tmp_path):
    other = shutil.copytree(run_dir(finished) / "adapter", tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, other / "adapter_model.safetensors")
    run = shutil.copytree(finished.run_dir, tmp_path / "copy")
    copy = finished.model_copy(update={"run_dir": str(run), "adapter": str(other)})
    benchmark.evaluate(copy)
    measured = json.loads((run / "metrics.json").read_text())["measured"]
    assert measured["adapters"] == {"medgemma-lora": loading.file_hash(other / "adapter_model.safetensors")}
    (run / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), run / "notebooks" / "01_data.ipynb")
    for door in (pages.render, readme.update_readme, gallery.update):
        with pytest.raises(ConfigError, match="figures of medgemma-lora are of another adapter"):
            door(run)
    with pytest.raises(PublishError, match="figures of medgemma-lora are of another adapter"):
        publish.publish(copy, "someone/auditor")
    benchmark.evaluate(copy.model_copy(update={"adapter": None}))
    pages.render(run)


def test_a_folder_is_published_whole_or_stays_as_it_was(finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    publish.export(finished, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "of the old one").write_text("")

    def stopped(folder, name):
        assert (
            out / "of the old one"
        ).exists() and name == "out"  # the old one is there until the new one is whole
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "check", stopped)
        with pytest.raises(KeyboardInterrupt):
            publish.export(finished, out)
    assert {file.name for file in out.iterdir()} == {*before, "of the old one"}
    publish.export(finished, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


# ---- what is refused


def weights_of(folder, **metadata):
    save_file({"a.weight": torch.zeros(2)}, folder / "adapter_model.safetensors", metadata=metadata or None)


@pytest.mark.parametrize("name", [
    "optimizer.pt", "training_args.bin", "checkpoint-5/trainer_state.json", "model.pth", "weights.pkl",
    "checkpoints/checkpoint-2/adapter_model.safetensors", "runs/events.out.tfevents.1.host.1.0", ".env",
])  # fmt: skip
def test_other_files_are_refused(tmp_path, name):
    weights_of(tmp_path)
    files = publish.check(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert files.to_dict("list") == {"file": ["adapter_model.safetensors"], "bytes": [size]}
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(PublishError, match="not one of the files") as error:
        publish.check(tmp_path)
    assert name in str(error.value)


def test_a_link_is_refused(tmp_path):
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(PublishError, match="config.json"):
        publish.check(tmp_path)


@pytest.mark.parametrize("text", [
    '{"base_model": "/work/models/nano"}', '{"images_dir": "/scans"}', "base_model: /home/a/model\n",
    r'{"dir": "C:\\Users\\someone"}', "see ~/runs/latest", "file:///etc/passwd", "(/mnt/disk/a.png)",
    '{"base_model": "../jane-doe/model"}', r"..\jane\model",
])  # fmt: skip
def test_paths_of_a_machine_are_refused(tmp_path, text):
    (tmp_path / "README.md").write_text("first line\n" + text)
    with pytest.raises(PublishError, match="README.md, line 2: path of a machine"):
        publish.check(tmp_path)


def test_tokens_are_refused_and_not_repeated(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"key": TOKEN}))
    with pytest.raises(PublishError, match="access token") as error:
        publish.check(tmp_path)
    assert TOKEN not in str(error.value)


# put together here, so that no scanner of this repository takes them for real ones
SECRETS = [
    "sk-" + "ant-api03-" + "a" * 30, "rk_" + "live_" + "a1" * 12, "ghp_" + "a" * 36, "github_pat_" + "a" * 40,
    "glpat-" + "a" * 20, "AKIA" + "A1" * 8, "AIza" + "b" * 35, "xoxb-" + "1" * 12, "npm_" + "c" * 36,
    "pypi-" + "d" * 40, "eyJ" + "a" * 20 + ".eyJ" + "b" * 20, "Authorization: Bearer " + "e" * 30,
    "-----BEGIN RSA " + "PRIVATE KEY-----", "https://jane:" + "hunter2@host.example/v1",
    '"api_key": "' + 'abc12345"',
    "password = '" + "correct-horse'", '"HF_ACCESS_TOKEN": "' + 'abcdefgh"',
    "password: " + "hunter2222", "api_key = " + "abcdef12345678", "WANDB_API_KEY=" + "ab12" * 10,
    "AWS_SECRET_ACCESS_KEY=" + "wJalr7/K+" * 4, '"token": "' + 'abcd1234efgh"',
    '"wandb_key": "' + "ab12" * 10 + '"',
    "https://" + "a1" * 10 + "@host.example/x", "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "Authorization: Basic " + "amFuZTpodW50ZXIy", "api_org_" + "a" * 34, "dckr_pat_" + "a" * 27,
    "GOCSPX-" + "a" * 28, "SG." + "a" * 22 + "." + "b" * 43, "AccountKey=" + "aB1+" * 21 + "==",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_secrets_of_many_shapes_are_refused(tmp_path, secret):
    (tmp_path / "README.md").write_text(f"first line\n{secret}\n")
    with pytest.raises(PublishError, match="access token"):
        publish.check(tmp_path)


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_secrets_in_the_header_of_weights_are_refused(tmp_path, secret):
    weights_of(tmp_path, format="pt", made_of=secret)
    with pytest.raises(
        PublishError, match="adapter_model.safetensors: holds what looks like an access token"
    ) as e:
        publish.check(tmp_path)
    assert secret not in str(e.value)


def test_paths_in_the_header_of_weights_are_refused(tmp_path):
    weights_of(tmp_path, format="pt")
    assert len(publish.check(tmp_path)) == 1
    weights_of(tmp_path, format="pt", config=json.dumps({"dir": "/scans/Doe_Jane/a.png"}))
    with pytest.raises(PublishError, match="adapter_model.safetensors, header: path of a machine /scans/Doe_Jane"):
        publish.check(tmp_path)
    tensors = {"/home/jane/model.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PublishError, match="header: path of a machine /home/jane"):
        publish.check(tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"weights", b"\x80\x04K\x01.", (2**40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
    (40_000).to_bytes(8, "little") + b"[" * 40_000,
])  # fmt: skip
def test_weights_without_a_header_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PublishError, match="model.safetensors: not a safetensors file, or one that is cut off"):
        publish.check(tmp_path)


def test_words_of_a_tokenizer_are_no_secrets(tmp_path):
    config = {"eos_token": "<end_of_turn>", "image_token": "<image_soft_token>", "pad_token": "<pad>"}
    config |= {"unk_token": "[UNK100]", "bos_token": "<|reserved_10|>", "max_new_tokens": 24, "key": "image"}
    config |= {"model_input_names": ["input_ids", "token_type_ids"], "tokenizer_class": "GemmaTokenizer2"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text(
        "https://a.example:443/b, see me@b.example; task-specific, risk-" + "a" * 30 + "\n"
        "password: none; secret: optional, api_key=os.environ['KEY'], api_key: str = None, ssh://git@host.example\n"
        "Authorization: Basic authentication. Basic 12-lead electrocardiograms; eos_token: <eos>, https://jane@host\n"
    )
    assert len(publish.check(tmp_path)) == 2


def test_the_files_of_the_stand_in_hold_no_secrets():
    files = [file for file in (ROOT / STANDIN).iterdir() if file.suffix in (".json", ".jinja")]
    assert len(files) > 4
    assert not [file.name for file in files if publish.SECRET.search(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "text",
    ["eyJ-", "secret=", "password: ", "'token': '", "://", "://a:", "-----BEGIN ", "a-token'", "Basic ", "SG."],
)
def test_no_text_is_slow_to_search(text):
    began = time.process_time()
    publish.SECRET.search(text * (400_000 // len(text)))
    assert time.process_time() - began < 20


def test_a_run_in_which_another_command_is_at_work_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0)
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(ConfigError, match="another command is at work in this run's folder"):
            publish.export(RunConfig(run_dir=str(tmp_path)))


def test_the_published_record_holds_what_may_be_shown(finished, tmp_path):
    file = run_dir(finished) / "run.json"
    before = file.read_text()
    record = json.loads(before)
    record |= {"hostname": "ward-7", "parameters": record["parameters"] | {"ratings": "/scans/Doe_Jane.sqlite"}}
    try:
        file.write_text(json.dumps(record))
        text = (publish.export(finished, tmp_path / "out") / "run.json").read_text()
    finally:
        file.write_text(before)
    assert (
        "ward-7" not in text
        and "Doe" not in text
        and json.loads(text)["parameters"]["ratings"].startswith("path-")
    )


def test_an_adapter_has_no_card_that_names_this_machine(finished):
    assert not (run_dir(finished) / "adapter" / "README.md").exists()
    assert not list(run_dir(finished).rglob("*tfevents*"))


def test_relative_names_and_addresses_are_not_absolute_paths(tmp_path):
    (tmp_path / "README.md").write_text(
        "runs/latest/adapter, google/medgemma-4b-it, https://a.example/b/c, w/o, 1/2/3, <a/b/c>, "
        r'".*language_model.*\\.(q_proj|k_proj)", lost / 1,000, "/"'
    )
    assert len(publish.check(tmp_path)) == 1


# ---- the card


def test_the_card_says_what_the_run_measured(finished):
    card = ModelCard(publish.card(finished, "someone/auditor"), ignore_metadata_errors=False)
    found = json.loads((run_dir(finished) / "metrics.json").read_text())
    accuracy = found["systems"]["medgemma-lora"]["accuracy"]
    results = {r.metric_name.split(",")[0]: r for r in card.data.eval_results}
    assert set(results) == {"Accuracy", "Valid treatments recognised", "Errors caught"}
    assert results["Accuracy"].metric_value == round(accuracy["value"], 4)
    assert f"{accuracy['low']:.3f} to {accuracy['high']:.3f} (n = 24)" in results["Accuracy"].metric_name
    assert card.data.license == "apache-2.0" and card.data.base_model is None
    assert card.data.library_name == "peft" and card.data.model_name == "auditor"
    for said in (
        "Not a medical device",
        "knows no medicine",
        "synthetic",
        "Intended use",
        f"{100 * accuracy['value']:.1f}%",
    ):
        assert said in card.text, said
    record = json.loads((run_dir(finished) / "run.json").read_text())
    assert record["git"]["revision"] in card.text and f"torch {record['packages']['torch']}" in card.text
    assert all(digest[:16] in card.text for digest in record["data_hashes"].values())


def test_another_measurement_gives_another_card(finished, monkeypatch):
    before = publish.card(finished)
    changed, record = publish._results(finished)
    changed["systems"]["medgemma-lora"]["accuracy"]["value"] = 0.123
    monkeypatch.setattr(publish, "_results", lambda config: (changed, record))
    assert "0.123" in publish.card(finished) and "0.123" not in before


def test_what_is_made_of_medgemma_keeps_its_terms(finished, tmp_path):
    asked = real(finished, tmp_path)
    with pytest.raises(PublishError, match="was trained on google/medgemma-4b-it, not on someone/another"):
        publish.of_run(asked.model_copy(update={"model": "someone/another"}))
    config = publish.of_run(asked)
    head, _, text = publish.card(config)[4:].partition("\n---\n")
    fields = yaml.safe_load(head)
    assert fields["license"] == "other" and fields["license_name"] == "health-ai-developer-foundations"
    assert fields["license_link"] == HAI_DEF and fields["base_model"] == "google/medgemma-4b-it"
    assert "Stand-in" not in text and NOTICE.strip() in text and "stand-in" not in fields["tags"]
    folder = publish.export(asked, tmp_path / "out")
    assert (folder / "NOTICE").read_text() == NOTICE
    with pytest.raises(PublishError, match="copy of its terms"):
        publish.publish(asked, "someone/auditor", dry_run=False, private=False)
    assert "license_name: terms-of-the-base-model" in publish.card(
        finished.model_copy(update={"model": "someone/another"})
    )


# ---- the Hub


@pytest.fixture
def hub(monkeypatch):
    """Create, preupload, LFS and commit as the Hub's HTTP API has them; keeps what arrives."""
    state = SimpleNamespace(files={}, blobs={}, created=[], paths=[], tokens=set(), status=200, private=True)

    class Handler(BaseHTTPRequestHandler):
        def body(self):
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def reply(self, content, status=200):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_POST(self):
            body = self.body()
            state.paths.append(self.path)
            state.tokens.add(self.headers.get("authorization"))
            if state.status != 200:
                told = f"refused {self.headers.get('authorization')}"
                return self.reply({"error": told}, state.status)
            if self.path == "/api/repos/create":
                state.created.append(json.loads(body))
                return self.reply({"url": state.page})
            if self.path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                return self.reply(
                    {
                        "files": [
                            {
                                "path": f["path"],
                                "shouldIgnore": False,
                                "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                            }
                            for f in json.loads(body)["files"]
                        ]
                    }
                )
            if self.path.endswith("/info/lfs/objects/batch"):
                return self.reply(
                    {
                        "transfer": "basic",
                        "objects": [
                            {**o, "actions": {"upload": {"href": f"{state.url}/lfs/{o['oid']}"}}}
                            for o in json.loads(body)["objects"]
                        ],
                    }
                )
            assert self.path == "/api/models/someone/auditor/commit/main", self.path
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    state.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    state.files[value["path"]] = state.blobs[value["oid"]]
            self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": state.page})

        def do_GET(self):
            assert self.path.startswith("/api/models/someone/auditor"), self.path
            self.reply({"id": "someone/auditor", "private": state.private}, state.status)

        def do_PUT(self):
            content = self.body()
            state.blobs[self.path.rpartition("/")[2]] = content
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        state.page = f"{state.url}/someone/auditor"
        yield state
        server.shutdown()


def test_a_dry_run_writes_the_folder_and_asks_nobody(finished, hub):
    files = publish.publish(finished, "someone/auditor", endpoint=hub.url)
    folder = run_dir(finished) / "published" / "adapter"
    assert not hub.paths
    assert dict(zip(files.file, files.bytes)) == {f.name: f.stat().st_size for f in folder.iterdir()}


def test_what_is_uploaded_is_the_folder_byte_by_byte(finished, hub, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    files = publish.publish(finished, "someone/auditor", dry_run=False, endpoint=hub.url)
    folder = run_dir(finished) / "published" / "adapter"
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files.file) == set(hub.files)
    assert all(hashlib.sha256(blob).hexdigest() == oid for oid, blob in hub.blobs.items()) and hub.blobs
    assert hub.created[0]["name"] == "auditor" and hub.created[0]["organization"] == "someone"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert f"Bearer {TOKEN}" in hub.tokens  # it was sent, and nothing else says it
    output = capfd.readouterr()
    assert TOKEN not in caplog.text + output.out + output.err


@pytest.mark.parametrize(("status", "said"), [(401, "hf auth login"), (403, "login"), (500, "HTTP 500")])
def test_a_refusal_is_one_line_without_the_token(finished, hub, caplog, status, said):
    caplog.set_level(logging.DEBUG)
    hub.status = status
    with pytest.raises(PublishError, match=said) as error:
        publish.publish(finished, "someone/auditor", dry_run=False, endpoint=hub.url)
    assert str(error.value).startswith(f"127.0.0.1: HTTP {status}") and error.value.__suppress_context__
    assert TOKEN not in caplog.text + str(error.value) and not hub.files


@pytest.mark.parametrize("is_private", [True, False])
def test_a_public_repository_that_is_there_needs_the_terms(finished, hub, tmp_path, is_private):
    hub.private, asked = is_private, real(finished, tmp_path)
    if is_private:
        publish.publish(asked, "someone/auditor", dry_run=False, endpoint=hub.url)
    else:
        with pytest.raises(PublishError, match="someone/auditor is public on 127.0.0.1: what is made of MedGemma"):
            publish.publish(asked, "someone/auditor", dry_run=False, endpoint=hub.url)
    assert bool(hub.files) == is_private


def test_what_is_made_of_medgemma_is_known_by_its_config_whatever_its_name(tmp_path, nano_folder):
    for name, content in (("mine", {"model_type": "gemma3"}), ("llama", {"model_type": "llama"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    asked = {str(tmp_path / "mine"): True, str(tmp_path / "llama"): False, "unsloth/medgemma-4b-it": True}
    asked |= {"google/gemma-3-4b-it": False, str(nano_folder): False}
    assert {name: publish.is_medgemma(RunConfig(model=name)) for name in asked} == asked


def test_a_hub_that_is_not_there(finished, hub):
    with pytest.raises(PublishError, match="not reachable"):
        publish.publish(finished, "someone/auditor", dry_run=False, endpoint="http://127.0.0.1:9")
    with pytest.raises(PublishError, match="owner/name"):
        publish.publish(finished, "auditor")


def test_the_command_does_a_dry_run_unless_told_to_upload(finished, hub, monkeypatch):
    from typer.testing import CliRunner

    from medlib.cli import share

    monkeypatch.setattr(share, "configuration", lambda *_, **__: finished)
    command = ["publish", "someone/auditor", "--endpoint", hub.url]
    said = CliRunner().invoke(share.app, command)
    assert said.exit_code == 0 and "dry run: nothing was sent" in said.output and not hub.paths
    said = CliRunner().invoke(share.app, [*command, "--upload"])
    assert said.exit_code == 0 and "adapter_model.safetensors" in hub.files and TOKEN not in said.output
