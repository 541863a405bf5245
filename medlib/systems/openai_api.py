"""A hosted model behind any OpenAI-compatible endpoint, as one more row of the benchmark.

**Images and notes leave this machine**: every scenario's image, age, sex, complaint, finding and
treatment go to the endpoint. Synthetic scenarios may go anywhere; a folder of real images is refused
until ``api_allow_real_images`` says that its owner agreed. Log lines and errors name the endpoint's host
and the kind of failure, never what was sent or answered, nor the key.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from medlib.config import ROOT, VERDICTS, NotRun
from medlib.data.cases import LabelledCase
from medlib.data.images import PIXELS_VERSION
from medlib.data.suite import Suite
from medlib.models import prompts
from medlib.systems.registry import System, register
from medlib.systems.session import Session

PRICES = ROOT / "data" / "api_prices.yaml"
DECODING = {"temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 5}
OPTIONAL = ("logprobs", "top_logprobs", "seed")  # an endpoint may refuse these and still give a verdict


@register("openai")
def openai_api(session: Session) -> System:
    """``openai:<model>`` through the official client, which retries 429, 5xx and timeouts with back-off.

    The endpoint is ``api_base_url``, else ``OPENAI_BASE_URL``, else OpenAI's; `api_key` says which key goes there.
    Redirects are not followed: they would take images and key elsewhere. ``api_timeout_s``, ``api_retries`` and
    ``api_workers`` bound a request.

    Returns
    -------
    System whose ``predict`` gives one row a scenario: p_correct (see :func:`probability`), generated,
    parsed, prompt_tokens, completion_tokens, usd (nan where ``data/api_prices.yaml`` has no price).

    Raises
    ------
    NotRun
        No model named, no key, no package, real images without leave; and by ``predict`` if the
        endpoint refuses, or stays out of reach after all retries.
    """
    config, model = session.config, session.variant
    address = config.api_base_url or os.environ.get("OPENAI_BASE_URL")
    key = api_key(config.api_base_url)
    if not model:
        raise NotRun("no model named: write openai:<model>, for example openai:gpt-4o-mini")
    if not key and not address:
        raise NotRun("OPENAI_API_KEY is not set")
    if (config.data_dir or config.images_dir) and not config.api_allow_real_images:
        name = "data_dir" if config.data_dir else "images_dir"
        raise NotRun(
            f"{name} may hold patients' images, which would leave this machine; "
            "set api_allow_real_images if they may"
        )
    try:
        import openai
    except ImportError:
        raise NotRun("the openai package is missing: pip install '.[api]'") from None
    client = openai.OpenAI(
        api_key=key or "none",
        base_url=address,  # a server of one's own asks for no key
        timeout=config.api_timeout_s,
        max_retries=config.api_retries,
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
    )
    host, price = client.base_url.host, load_price(client.base_url.host, model)
    options = {"model": model, "seed": config.seed, **DECODING}

    def ask(scenario: LabelledCase, image: Image.Image) -> dict:
        try:
            return row(complete(client, options, chat(scenario, image)), price)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: an answer that is not JSON
            # `from None`: an endpoint's own words may repeat the note or part of the key
            raise NotRun(f"{host}: {reason(error)}") from None

    def predict(suite: Suite) -> pd.DataFrame:
        with ThreadPoolExecutor(config.api_workers) as pool:
            return pd.DataFrame(pool.map(lambda s: ask(s, suite.image(s)), suite.scenarios))

    made_of = [
        str(client.base_url.copy_with(userinfo=b"", query=None)),
        prompts.INSTRUCTION,
        options,
        PIXELS_VERSION,
    ]
    revision = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return System(f"openai:{model}", revision, predict, chunk=16)


def api_key(base_url: str | None) -> str | None:
    """The key for an endpoint: ``MEDLIB_API_KEY``, else OpenAI's own where ``base_url`` is no other host."""
    if key := os.environ.get("MEDLIB_API_KEY"):
        return key
    elsewhere = base_url and urlsplit(base_url).hostname not in (
        "api.openai.com",
        urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname,
    )
    return None if elsewhere else os.environ.get("OPENAI_API_KEY")


def chat(scenario: LabelledCase, image: Image.Image) -> list[dict]:
    """The turns of :func:`medlib.models.prompts.messages`, with the image as a data URL."""
    turns = prompts.messages(scenario, image)
    for turn in turns:
        turn["content"] = [
            {"type": "image_url", "image_url": {"url": data_url(part["image"])}}
            if part["type"] == "image"
            else part
            for part in turn["content"]
        ]
    return turns


def data_url(image: Image.Image) -> str:
    """An image as a PNG in a data URL: its pixels and nothing else of the file that it came from."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def complete(client, options: dict, messages: list[dict]):
    """One chat completion; an option that the endpoint refuses by name is left out from then on.

    Parameters
    ----------
    client : openai.OpenAI
    options : dict
        Request fields, shared by all requests: what is learned from a refusal is written here.
        ``max_tokens`` is renamed to ``max_completion_tokens`` where only the newer name is taken.
    """
    import openai

    sent = dict(options)  # a copy: another thread may meet the same refusal meanwhile
    try:
        reply = client.chat.completions.create(messages=messages, **sent)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        complaint = f"{error.param} {error.message}"
        refused = [
            name for name in (*OPTIONAL, "max_tokens") if name in sent and re.search(rf"\b{name}\b", complaint)
        ]
        if not refused:
            raise
        for name in refused:
            options.pop(name, None)
        if "logprobs" in refused:
            options.pop("top_logprobs", None)
        if "max_tokens" in refused:
            options["max_completion_tokens"] = DECODING["max_tokens"]
        return complete(client, options, messages)
    if not getattr(reply, "choices", None):
        raise ValueError("no chat completion in the answer")
    return reply


def row(reply, price: dict | None) -> dict:
    """What one completion says and costs; nan for a count that the endpoint does not give."""
    choice, usage = reply.choices[0], reply.usage
    text = choice.message.content or ""
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (math.nan, math.nan)
    usd = (tokens[0] * price["input"] + tokens[1] * price["output"]) / 1e6 if price else math.nan
    listed = (choice.logprobs.content if choice.logprobs else None) or []
    parsed = prompts.parse_verdict(text)
    return {
        "p_correct": probability(parsed, listed),
        "generated": text,
        "parsed": parsed,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "usd": usd,
    }


def probability(parsed: str | None, tokens: list) -> float:
    """Probability of CORRECT from a completion's tokens.

    At the answer's first token with a letter in it, the probabilities of the listed tokens that begin
    CORRECT are added up, and those that begin ERROR; p_correct is the first sum's share of both. A
    verdict that is not listed gets the most that it can have: the smallest listed probability, or all
    that the list leaves over if that is less. Without log-probabilities p_correct is 1.0 or 0.0 by the
    parsed verdict; an answer that does not parse is 0.5.

    Parameters
    ----------
    parsed : {"CORRECT", "ERROR", None}
    tokens : list
        ``choice.logprobs.content``: token, logprob and top_logprobs of every answer token.
    """
    if parsed is None:
        return 0.5
    first = next((t for t in tokens if letters(t.token)), None)
    if first is None or begins(first.token) != parsed:
        return float(parsed == "CORRECT")
    listed = {t.token: math.exp(t.logprob) for t in [*(first.top_logprobs or []), first]}
    mass = dict.fromkeys(VERDICTS, 0.0)
    for token, p in listed.items():
        if (verdict := begins(token)) is not None:
            mass[verdict] += p
    unlisted = min(*listed.values(), max(0.0, 1 - sum(listed.values())))
    correct, error = (mass[verdict] or unlisted for verdict in VERDICTS)
    return correct / (correct + error) if correct + error else float(parsed == "CORRECT")


def letters(token: str) -> str:
    """A token without quotes, spaces and markup around its word."""
    inside = [place for place, letter in enumerate(token) if letter.isalnum()]
    return token[inside[0] : inside[-1] + 1] if inside else ""


def begins(token: str) -> str | None:
    """The verdict that a token begins, such as CORRECT for "COR"; None for any other token."""
    word = letters(token)
    return next((v for v in VERDICTS if word and (v.startswith(word) or word.startswith(v))), None)


def load_price(host: str, model: str) -> dict | None:
    """Dollars per million ``input`` and ``output`` tokens; None where the table has no such row."""
    return ((yaml.safe_load(PRICES.read_text()) or {}).get(host) or {}).get(model)


def reason(error: Exception) -> str:
    """What kind of failure it was, in words of our own."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "no answer within api_timeout_s, after all retries"
    if isinstance(error, openai.APIConnectionError):
        return "not reachable, after all retries"
    if isinstance(error, openai.APIStatusError):
        # a code such as insufficient_quota says what to do; free text may repeat what was sent
        codes = [code for code in (error.code, error.type) if re.fullmatch("[a-z_]{1,40}", str(code))]
        moved = "; redirects are not followed, give the final address" if error.status_code // 100 == 3 else ""
        return f"HTTP {error.status_code} {' '.join(codes)}".strip() + moved
    return "the answer is not a chat completion; is the address right (most end in /v1)?"
