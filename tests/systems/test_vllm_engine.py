"""vLLM's offline engine, over a module that stands for the package: what is asked, read, refused and said."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from medlib.audit import worklist
from medlib.audit.auditor import Auditor
from medlib.audit.cases import Row
from medlib.config import NotRun, RunConfig
from medlib.data.suite import Suite
from medlib.systems import Session


def output(text="ERROR - no", p=0.9):
    """What the engine gives for one case: the first token with its probability, and the other verdict's."""
    words = text.split()
    first = {1: (words[0], p), 2: ("CORRECT" if words[0] == "ERROR" else "ERROR", 1 - p)}
    listed = [{i: SimpleNamespace(decoded_token=t, logprob=math.log(q)) for i, (t, q) in first.items()}]
    listed += [{9: SimpleNamespace(decoded_token=word, logprob=-0.1)} for word in words[1:]]
    ids = [1] + [9] * (len(words) - 1)
    said = SimpleNamespace(text=text, token_ids=ids, logprobs=listed)
    return SimpleNamespace(outputs=[said], prompt_token_ids=[0] * 300)


@pytest.fixture
def package(monkeypatch):
    """A module `vllm` that keeps what it is asked; notes with "too long" are refused, as are all beside them."""
    module = ModuleType("vllm")
    module.started, module.asked, module.answer = [], [], output

    class LLM:
        def __init__(self, **options):
            module.started.append(options)

        def chat(self, turns, sampling, use_tqdm=True):
            module.asked.append(turns)
            if any("too long" in str(turn[0]["content"][1]) for turn in turns):
                raise ValueError("The decoder prompt is longer than the maximum model length, and holds a note")
            return [module.answer() for _ in turns]

    module.LLM, module.SamplingParams, module.__version__ = LLM, lambda **given: given, "1"
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def few(suite):
    return Suite("few", suite[0][:3], suite[1])


def system(nano_folder, **settings):
    return Session(RunConfig(model=str(nano_folder), **settings), {}).system(f"vllm:{nano_folder}")


def test_all_cases_are_asked_at_once_with_image_and_words(package, few, nano_folder):
    made = system(nano_folder)
    assert not package.started  # not before the first question
    table = made.predict(few)
    assert made.predict(few).equals(table) and len(package.started) == 1
    assert package.started[0]["model"] == str(nano_folder) and package.started[0]["limit_mm_per_prompt"] == {
        "image": 1
    }
    [image, words] = package.asked[0][0][0]["content"]
    assert len(package.asked[0]) == 3 and image["image_url"]["url"].startswith("data:image/png;base64,")
    assert few.scenarios[0].treatment in words["text"]
    assert table["p_correct"].tolist() == pytest.approx([0.1] * 3) and set(table["parsed"]) == {"ERROR"}
    assert set(table["prompt_tokens"]) == {300}


def test_a_case_that_is_refused_stops_no_other_and_its_note_is_not_repeated(package, few, nano_folder):
    cases = [few.scenarios[0], few.scenarios[1].model_copy(update={"finding": "too long"}), few.scenarios[2]]
    table = system(nano_folder).predict(Suite("few", cases, few.images_dir))
    assert table["refused"].isna().tolist() == [True, False, True] and table["read"].tolist() == [
        True,
        False,
        True,
    ]
    assert "context of 2048" in table["refused"][1] and "holds a note" not in table["refused"][1]


def test_another_model_is_another_revision(package, nano_folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    other = Session(RunConfig(), {}).system(f"vllm:{tmp_path}")
    assert other.revision != system(nano_folder).revision == system(nano_folder).revision


def test_what_is_missing_is_said(package, monkeypatch, few, nano_folder):
    with pytest.raises(NotRun, match="vllm:FOLDER"):
        Session(RunConfig(), {}).system("vllm")
    package.LLM = lambda **_: 1 / 0
    with pytest.raises(NotRun, match="does not start .*ZeroDivisionError"):
        system(nano_folder).predict(few)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(NotRun, match="pip install vllm .* openai:NAME"):
        system(nano_folder)


def test_a_worklist_is_asked_in_one_batch_and_a_refused_row_stops_nothing(package, few, small_config, tmp_path):
    config = small_config.model_copy(update={"calibration_pairs": 12})
    auditor = Auditor(config, f"vllm:{config.model}")
    assert auditor.label == "vllm:" + config.model.rsplit("/", 1)[-1]  # the folder's name and no path
    long = few.scenarios[1].model_copy(update={"finding": "too long"})
    rows = [Row(f"row {i}", case) for i, case in enumerate([few.scenarios[0], long, few.scenarios[2]])]
    _ = auditor.reference
    package.asked.clear()
    done = worklist.run(auditor, rows, few.images_dir, tmp_path / "out")
    assert len(package.asked[0]) == 3 and done.counts["failed"] == 1 and done.asked == 2
    assert done.problems[0][0] == "row 1" and "context" in done.problems[0][1]
    package.answer = lambda: output("I cannot say")
    [answer] = [auditor.case(few.scenarios[2], few.images_dir)]
    assert answer.decision == "abstain" and "no verdict can be read from the answer" in answer.reasons
