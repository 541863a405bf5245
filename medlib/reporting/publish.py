"""From a run's adapter to a model that others can load: merge, export, card, and the Hub.

Everything on the card is read from the run (``metrics.json``, ``run.json``): a run without metrics is
not published. The folder is looked through before anything leaves this machine: weights are
safetensors, and checkpoints, logs, tokens and absolute paths are refused, also in the header of weights.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from medlib.config import (
    ADAPTER,
    BASE,
    STANDIN,
    STANDIN_NOTICE,
    ConfigError,
    RunConfig,
    files,
    provenance,
    run_dir,
    runs,
)
from medlib.config.models import model_config
from medlib.evaluation import measured
from medlib.evaluation.summary import scores_written
from medlib.models import adapter_files, loading
from medlib.models.standin import own as standin_own
from medlib.stats.text import number, results_table, to_markdown
from medlib.training import adapters

HAI_DEF = "https://developers.google.com/health-ai-developer-foundations/terms"
#: The sentence that the terms ask to pass on (section 3.1).
NOTICE = (
    "HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use "
    f"found at {HAI_DEF}\n"
)

#: All that a published folder may hold; the processor's files are those that transformers saves.
ALLOWED = re.compile(
    r"README\.md|NOTICE|LICENSE(\.md|\.txt)?|run\.json|metrics\.json|training\.json"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|(adapter_|generation_|processor_|preprocessor_|tokenizer_)?config\.json"
    r"|tokenizer\.(json|model)|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
)  # fmt: skip
MAX_HEADER = 100_000_000  # bytes, the limit of the format
VOCABULARY = ("tokenizer.json", "chat_template.jinja", "chat_template.json")  # may hold any text
MACHINE_PATH = re.compile(
    r"""(?<![\w:/.<])/(?:[\w.+-]+/)+[\w.+-]*|(?<=")/\w[\w.+-]*(?=")"""
    r"""|(?<![A-Za-z])[A-Za-z]:\\+\w|(?<!\w)~/\w|(?<![\w./])\.\.[/\\]+\w[\w.+-]*|file://"""
)
#: Tokens by their shapes, private keys, passwords in addresses, and values under the name of a secret; without
#: quotation marks a value has a digit, unlike prose. Parts that must be followed by another are bounded, so that
#: no text is slow.
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|[sr]k[-_][A-Za-z0-9_-]{20,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|(AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|xox[a-z]-[\w-]{10,}|npm_[A-Za-z0-9]{30,}"
    r"|api_org_[A-Za-z0-9]{20,}|dckr_pat_[\w-]{20,}|GOCSPX-[\w-]{20,}|SG\.[\w-]{22}\.[\w-]{43}"
    r"|pypi-[\w-]{30,}|eyJ[\w-]{10,400}\.eyJ[\w-]{10,}|[Bb]earer\s+[\w.~+/-]{20,})"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY|://[^\s/:@\"']*:[^\s/@\"']+@|://[\w.~%+-]{12,200}@"
    r"""|(?i:authorization["']?\s*[:=]\s*["']?basic)\s+(?=[a-z]{0,40}[A-Z\d+/=])[\w+/=]{8,}"""
    r"""|(?i:api[_-]?key|secret(_access_key)?|passw(or)?d|(access|auth)_token|account_?key)["']?\s*[:=]\s*"""
    r"""(["'][^"'\s]{6,}["']|(?=[\w+/.=~!$%-]{0,64}\d)[\w+/.=~!$%-]{8,})"""
    r"""|["'](?i:[\w-]{0,40}(token|key))["']\s*:\s*["'](?=[\w+/.=~-]{0,64}\d)[\w+/.=~-]{8,200}["']"""
)

SUITES = {
    "heldout": "Held-out suite, generated from a seed, synthetic images",
    "core24_val": "Core set, 8 validation cases",
    "core24_folds": "Core set, all 24, leave one image group out",
}
FACTS = (
    "base_model",
    "trainable_parameters",
    "total_parameters",
    "epochs_run",
    "steps",
    "train_loss",
    "best_eval_loss",
    "loss_per_epoch",
    "samples_per_second",
    "wall_seconds",
    "peak_memory_mib",
    "device",
)


TERMS_NEEDED = (
    f"what is made of MedGemma is shared with a copy of its terms: save {HAI_DEF} to a file and name it as terms, "
    "or keep the repository private"
)


class PublishError(ConfigError):
    """What keeps a folder from being published, with what to do about it."""


# --- the folder -------------------------------------------------------------------------------------


def merge(config: RunConfig, out: str | Path) -> Path:
    """The adapter added into the base's weights: a model that loads without PEFT.

    The base is loaded unquantized: in full precision the merged model's probabilities are those of
    base and adapter up to 1e-4; bfloat16 rounds the sum once more.

    Raises
    ------
    ModelError
        If there is no adapter yet.
    """
    whole: dict = {"quantization": None, "use_8bit": False}
    if config.dtype == "float16":  # the float16 stand-ins of some layers are not to be saved
        whole["dtype"] = "float32"
    model = loading.load_for(config.model_copy(update=whole)).with_adapter(run_dir(config) / "adapter")
    merged = model.network.merge_and_unload()
    merged.save_pretrained(out)
    model.processor.save_pretrained(out)
    return Path(out)


def export(
    config: RunConfig,
    out: str | Path | None = None,
    merged: bool = False,
    terms: str | Path | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the folder to publish: weights, processor, card, and the records of the run.

    Parameters
    ----------
    config : RunConfig
        Its ``run_dir`` holds the adapter, ``metrics.json`` and ``run.json``.
    out : path, optional
        Made anew; default ``run_dir/published/adapter`` or ``.../merged``.
    merged : bool
        The whole model instead of the adapter alone.
    terms : path, optional
        A copy of the base model's terms, put beside the weights as LICENSE; what is made of MedGemma
        may be shared only with one.

    Raises
    ------
    PublishError
        No metrics, metrics of another adapter or other data, or a folder that :func:`check` refuses.
    ConfigError
        If another command is at work in the run's folder.
    """
    with runs.alone(config.run_dir):
        return _export(of_run(config), out, merged, terms, repo_id)


def _export(
    config: RunConfig, out: str | Path | None, merged: bool, terms: str | Path | None, repo_id: str | None
) -> Path:
    if seen := standin_own.data_seen(config.model):
        raise PublishError(f"{config.model} was taught images of {seen['name']}, which forbid publishing it")
    out = Path(out) if out else run_dir(config) / "published" / ("merged" if merged else "adapter")
    text = card(config, repo_id or config_name(config, merged), merged)
    with files.replacement_folder(out) as unfinished:
        _write(config, unfinished, text, merged, terms)
        check(unfinished, out.name)
    return out


def _write(config: RunConfig, out: Path, text: str, merged: bool, terms: str | Path | None) -> None:
    run = run_dir(config)
    if merged:
        merge(config, out)
    else:
        for file in (run / "adapter").iterdir():
            if file.is_file() and ALLOWED.fullmatch(file.name):
                shutil.copyfile(file, out / file.name)
    (out / "README.md").write_text(text, encoding="utf-8")
    shutil.copyfile(run / "metrics.json", out / "metrics.json")
    record = files.read_json(run / "run.json", PublishError)
    files.write_json(out / "run.json", provenance.public(record))
    metadata = adapters.training_metadata(config)
    facts = {name: provenance.public_value(metadata[name]) for name in FACTS if name in metadata}
    files.write_json(out / "training.json", facts)
    if is_medgemma(config):
        (out / "NOTICE").write_text(NOTICE)
    if terms:
        shutil.copyfile(terms, out / "LICENSE")


def check(folder: str | Path, name: str | None = None) -> pd.DataFrame:
    """Refuse what must not be published; gives the files and their sizes.

    Parameters
    ----------
    name : what messages call the folder; its own name by default

    Returns
    -------
    DataFrame with columns file and bytes.

    Raises
    ------
    PublishError
        Naming every file that is not weights in safetensors, a processor's or a record; and in a text or in the
        header of weights every token and every path of a machine, absolute or upward (they name people).
    """
    folder = Path(folder)
    found = sorted(file for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())
    names = [file.relative_to(folder).as_posix() for file in found]
    problems = [problem for file, file_name in zip(found, names) if (problem := _problem(file, file_name))]
    if problems:
        raise PublishError(f"{name or folder.name} is not published:\n" + "\n".join(problems))
    return pd.DataFrame({"file": names, "bytes": [file.stat().st_size for file in found]})


def _problem(file: Path, name: str) -> str | None:
    """Why a file must not be published; None if it may be."""
    if file.is_symlink() or not ALLOWED.fullmatch(name):
        return f"{name}: not one of the files of a published model"
    is_weights = file.suffix == ".safetensors"
    text = _header(file) if is_weights else file.read_text(encoding="utf-8", errors="replace")
    if text is None:
        return f"{name}: not a safetensors file, or one that is cut off"
    if SECRET.search(text):
        return f"{name}: holds what looks like an access token"
    if name not in VOCABULARY and (path := MACHINE_PATH.search(text)):
        line = text.count("\n", 0, path.start()) + 1
        return f"{name}, {'header' if is_weights else f'line {line}'}: path of a machine {path.group()}"
    return None


def _header(file: Path) -> str | None:
    """What the header of weights says, names and metadata; None if there is no such header."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= min(MAX_HEADER, file.stat().st_size - 8):
            return None
        raw = content.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
        told = header.get("__metadata__", {})
        # the values once more as they are: JSON inside of JSON has its quotation marks escaped
        return "\n".join([json.dumps(header, ensure_ascii=False), *map(str, told.values())])
    except (ValueError, RecursionError, AttributeError):
        return None


def of_run(config: RunConfig) -> RunConfig:
    """The configuration with the base model and images that the run was made of, whatever else is asked.

    Raises
    ------
    PublishError
        If the configuration names another base model than the run's.
    """
    record = files.read_json(run_dir(config) / "run.json", PublishError).get("parameters", {})
    base = adapters.training_metadata(config)["base_model"]
    if config.model not in (base, STANDIN):  # the stand-in is what a command means that names no model
        raise PublishError(f"the adapter of {config.run_dir} was trained on {base}, not on {config.model}")
    folders = {name: record.get(name) for name in ("data_dir", "images_dir")}
    return config.model_copy(update={"model": base, **folders})


# --- the card ---------------------------------------------------------------------------------------


def is_medgemma(config: RunConfig) -> bool:
    """True if the base is Google's MedGemma or made of it, by its config.json and else by its name.

    MedGemma has Gemma 3's architecture, so a folder with that one is taken for it unless it is known to be Gemma.
    """
    if loading.is_standin(config.model) or config.model.startswith("google/gemma-"):
        return False
    kind = model_config(config.model).get("model_type")
    return kind.startswith("gemma3") if kind else "medgemma" in config.model.lower()


def config_name(config: RunConfig, merged: bool = False) -> str:
    """A name for the published model when nobody gave one."""
    return f"{Path(config.model).name}-clinical-audit-{'merged' if merged else 'lora'}"


def licence(config: RunConfig) -> dict[str, str]:
    """The card's licence fields: the base model's, which its derivatives keep."""
    if loading.is_standin(config.model):
        return {"license": "apache-2.0"}
    if is_medgemma(config):
        return {"license": "other", "license_name": "health-ai-developer-foundations", "license_link": HAI_DEF}
    return {
        "license": "other",
        "license_name": "terms-of-the-base-model",
        "license_link": f"https://huggingface.co/{config.model}",
    }


def card(config: RunConfig, repo_id: str | None = None, merged: bool = False) -> str:
    """README.md of the published model, with the Hub's metadata; every figure is read from the run.

    Raises
    ------
    PublishError
        No metrics of the adapter, or metrics of another one.
    """
    metrics, record = _results(config)
    name = (repo_id or config_name(config, merged)).rsplit("/", 1)[-1]
    head = _metadata(config, name, merged, metrics).to_yaml()
    return f"---\n{head}\n---\n\n{_body(config, name, merged, metrics, record)}"


def _results(config: RunConfig) -> tuple[dict, dict]:
    run = run_dir(config)
    results = run / "metrics.json"
    loading.file_hash(run / "adapter" / adapter_files.WEIGHTS)
    metrics = files.read_json(results, PublishError)
    if ADAPTER not in metrics.get("systems", {}):
        raise PublishError(f"{results.name}: no results of the adapter; run `evaluate` first")
    try:
        measured.check(run, metrics)
    except ConfigError as error:
        raise PublishError(str(error)) from None
    record = files.read_json(run / "run.json", PublishError)
    if "packages" not in record:
        raise PublishError("run.json: missing, or not what a run writes; run `evaluate` again")
    return metrics, record


def _metadata(config: RunConfig, name: str, merged: bool, metrics: dict):
    from huggingface_hub import EvalResult, ModelCardData

    names = {
        "accuracy": ("accuracy", "Accuracy"),
        "specificity": ("recall", "Errors caught"),
        "sensitivity": ("recall", "Valid treatments recognised"),
    }
    score = metrics["systems"][ADAPTER]
    results = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Clinical decision audit",
            dataset_type="synthetic",
            dataset_name=SUITES["heldout"],
            dataset_split="test",
            metric_type=kind,
            metric_value=round(score[key]["value"], 4),
            metric_name=f"{label}, 95% interval {number(score[key]['low'])} to {number(score[key]['high'])} "
            f"(n = {score[key]['n']})",
        )
        for key, (kind, label) in names.items()
    ]
    tags = ["lora", "clinical-audit", "not-a-medical-device", "synthetic-data"]
    standin = loading.is_standin(config.model)
    return ModelCardData(
        model_name=name,
        language="en",
        pipeline_tag="image-text-to-text",
        eval_results=results,
        library_name="transformers" if merged else "peft",
        tags=tags + ["stand-in"] * standin,
        # a stand-in has no page on the Hub, so it is named in the text only
        base_model=None if standin else config.model,
        **licence(config),
    )


def _body(config: RunConfig, name: str, merged: bool, metrics: dict, record: dict) -> str:
    tables = []
    for suite, title in SUITES.items():
        by_system = scores_written(metrics, suite)
        scores = {metrics.get("names", {}).get(s, s): by_system[s] for s in (BASE, ADAPTER) if s in by_system}
        if scores:
            tables.append(f"**{title}**\n\n{to_markdown(results_table(scores))}")
    versions = ", ".join(f"{p} {v}" for p, v in record["packages"].items() if v)
    data = "\n".join(f"| {suite} | `{digest[:16]}` |" for suite, digest in record["data_hashes"].items())
    return BODY.format(
        name=name,
        model=loading.model_label(config),
        tables="\n".join(tables),
        warning=f"\n> **Stand-in.** {STANDIN_NOTICE}\n" if loading.is_standin(config.model) else "",
        kind="The adapter merged into its base" if merged else "A LoRA adapter",
        trained_on=_trained_on(config),
        licence=_licence_text(config),
        load=LOAD_MERGED if merged else LOAD_ADAPTER.format(model=config.model),
        revision=record["git"].get("revision") or "unknown",
        dirty=" (with uncommitted changes)" if record["git"].get("dirty") else "",
        time=record["timestamp"],
        seed=record["seed"],
        device=record["device"]["name"],
        python=record["python"],
        versions=versions,
        data=data,
    )


def _trained_on(config: RunConfig) -> str:
    if config.data_dir:
        return "Trained and tested on a data set of the user's own, which is no part of this folder."
    shown = "the user's own images of the core set" if config.images_dir else "drawn images"
    return GENERATED.format(images=shown)


def _licence_text(config: RunConfig) -> str:
    if is_medgemma(config):
        return MEDGEMMA_LICENCE.format(notice=NOTICE.strip(), model=config.model)
    if loading.is_standin(config.model):
        return "Apache-2.0."
    return "That of the base model: see its page before you use or share this one."


MEDGEMMA_LICENCE = """{notice}.

This is a modified work made of `{model}` (a Model Derivative under these terms). Its use and further
distribution are subject to the terms, the use restrictions of their section 3.2 and the
prohibited-use policy included; Google does not endorse it."""

LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("{model}")
model = PeftModel.from_pretrained(base, "this repository")
processor = AutoProcessor.from_pretrained("this repository")
```"""

LOAD_MERGED = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this repository")
processor = AutoProcessor.from_pretrained("this repository")
```"""

GENERATED = """\
Trained on a generated suite of counterfactual pairs and on 16 cases of the core set. All images of
the generated suites are **synthetic**: drawn, of no patient. The core set was shown with {images}."""

BODY = """# {name}

**Not a medical device.** {kind} that says whether a prescribed treatment matches an image and its
note. Base: {model}.
{warning}
## Intended use

Research on auditing clinical decisions: how well a vision-language model can be taught to answer
`CORRECT - Treatment matches imaging findings` or `ERROR - Treatment does not match imaging`, and
whether it looks at the image. It is **not** for diagnosis, treatment, triage, or any decision about
a patient; it was not validated on patients, and no health authority has seen it.

## Data

{trained_on}

## Results

Rates with 95% intervals and the number of scenarios; written by the run, see `metrics.json`.

{tables}
A held-out suite from the same generator as the training suite says how well the method learned the
generator's rules, not how well it would do in a hospital.

## How to load it

{load}

## Provenance

Revision `{revision}`{dirty}, {time}, seed {seed}, device {device}, Python {python}. Parameters and
versions are in `run.json`, the course of the training in `training.json`.

{versions}

| Data | SHA-256 |
|:---|:---|
{data}

## Licence

{licence}
"""


# --- the Hub ----------------------------------------------------------------------------------------


def publish(
    config: RunConfig,
    repo_id: str,
    dry_run: bool = True,
    merged: bool = False,
    private: bool = True,
    terms: str | Path | None = None,
    endpoint: str | None = None,
) -> pd.DataFrame:
    """Write the folder and, unless it is a dry run, upload it.

    The token is that of ``hf auth login`` or ``HF_TOKEN``; it is never a parameter, printed or logged.

    Parameters
    ----------
    repo_id : str
        ``owner/name``.
    dry_run : bool
        Write and list the folder only.
    private : bool
        Whether a new repository is for its owner only. A public one, also one that is there already, with
        weights made of MedGemma needs ``terms``.
    endpoint : str, optional
        Another Hub; default ``HF_ENDPOINT``, else huggingface.co.

    Returns
    -------
    DataFrame with columns file and bytes.

    Raises
    ------
    PublishError
        As :func:`export`; or the Hub refuses, without its words and headers.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PublishError(f"{repo_id!r}: expected owner/name")
    config = of_run(config)
    needs_terms = is_medgemma(config) and not terms
    if needs_terms and not dry_run and not private:
        raise PublishError(TERMS_NEEDED)
    with runs.alone(config.run_dir):  # until it is uploaded, nobody replaces the folder
        folder = export(config, merged=merged, terms=terms, repo_id=repo_id)
        files = check(folder)
        if not dry_run:
            _upload(folder, repo_id, private, endpoint, needs_terms)
    return files


def _upload(folder: Path, repo_id: str, private: bool, endpoint: str | None, needs_terms: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    hub = HfApi(endpoint=endpoint)
    host = urlsplit(hub.endpoint).hostname
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        # of a repository that exists already, ``private`` says nothing
        if needs_terms and not hub.repo_info(repo_id).private:
            raise PublishError(f"{repo_id} is public on {host}: {TERMS_NEEDED}")
        hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Weights, card and records of a run")
    except HfHubHTTPError as error:  # `from None`: a server's words may repeat what was sent
        status = error.response.status_code
        hint = "; run `hf auth login` with a token that may write there" if 400 < status < 405 else ""
        raise PublishError(f"{host}: HTTP {status}{hint}") from None
    except HTTPError as error:
        raise PublishError(f"{host}: not reachable ({type(error).__name__})") from None
