"""vLLM's offline engine as a row of the benchmark: a whole model in this process, many cases at a time.

``vllm:MODEL`` names a folder or a hub model; an adapter is merged first (``python -m medlib publish --merged``).
Nothing leaves this machine. As with a server, control tokens in a note are the engine's affair. Tested with a
stand-in for the package only: we had no GPU to run it on.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from medlib.config import NotRun, provenance
from medlib.data.suite import Suite
from medlib.models import weights
from medlib.models.scoring import MAX_NEW_TOKENS
from medlib.systems import openai_api
from medlib.systems.registry import System, refused, register
from medlib.systems.session import Session

INSTALL = (
    "the vllm package is missing: pip install vllm where there is a GPU, or serve the model and ask openai:NAME"
)
CONTEXT = 2048
LISTED = 5  # tokens whose probabilities are told


@register("vllm")
def vllm(session: Session) -> System:
    """``vllm:MODEL``; the engine starts with the first question.

    Raises
    ------
    NotRun
        No model named, no package, or, at the first question, an engine that does not start.
    """
    model = session.variant
    if not model:
        raise NotRun("no model named: write vllm:FOLDER, with the folder of a whole (merged) model")
    try:
        import vllm as package
    except ImportError:
        raise NotRun(INSTALL) from None
    options = {"dtype": session.config.dtype, "seed": session.config.seed, "max_model_len": CONTEXT}
    sampling = package.SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS, logprobs=LISTED)
    engine: list[Any] = []

    def predict(suite: Suite) -> pd.DataFrame:
        turns = [openai_api.chat(scenario, suite.image(scenario)) for scenario in suite.scenarios]
        engine[:] = engine or [_start(package, weights.locate(model), options)]
        return pd.DataFrame(_ask(engine[0], turns, sampling))

    made_of = [weights.base_hash(model), options, MAX_NEW_TOKENS, getattr(package, "__version__", "")]
    return System(f"vllm:{model}", provenance.digest(made_of), predict)


def _start(package, model: str, options: dict):
    try:
        return package.LLM(model=model, limit_mm_per_prompt={"image": 1}, **options)
    except Exception as error:  # whichever error the engine has for a GPU that is missing or too small
        raise NotRun(f"vllm does not start ({type(error).__name__}: {str(error).splitlines()[:1]})") from None


def _ask(engine, turns: list, sampling) -> list[dict]:
    """A row for each case; of cases that are refused together, each is asked alone."""
    try:
        return [openai_api.row(_as_chat(output), None) for output in engine.chat(turns, sampling, use_tqdm=False)]
    except ValueError:
        if len(turns) == 1:
            return [refused(f"refused by vllm; is the note longer than its context of {CONTEXT} tokens?")]
        half = len(turns) // 2
        return _ask(engine, turns[:half], sampling) + _ask(engine, turns[half:], sampling)


def _as_chat(output) -> SimpleNamespace:
    """What the engine answers to a case, in the form of a chat completion."""
    said = output.outputs[0]
    tokens = []
    for token, listed in zip(said.token_ids, said.logprobs or []):
        told = [SimpleNamespace(token=other.decoded_token, logprob=other.logprob) for other in listed.values()]
        chosen = listed[token]
        tokens.append(SimpleNamespace(token=chosen.decoded_token, logprob=chosen.logprob, top_logprobs=told))
    usage = SimpleNamespace(prompt_tokens=len(output.prompt_token_ids), completion_tokens=len(said.token_ids))
    message = SimpleNamespace(content=said.text)
    choice = SimpleNamespace(message=message, logprobs=SimpleNamespace(content=tokens) if tokens else None)
    return SimpleNamespace(choices=[choice], usage=usage)
