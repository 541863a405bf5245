"""A hosted model behind any OpenAI-compatible endpoint, as one more row of the benchmark.

**Images and notes leave this machine**: every scenario's image, age, sex, complaint, finding and
treatment go to the endpoint. Synthetic scenarios may go anywhere; an image that this project did not draw
itself, by its pixels and not by its folder, is refused until ``api_allow_real_images`` says that its owner
agreed. Log lines and errors name the endpoint's host and the kind of failure, never what was sent or answered,
nor the key.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from medlib.config import ROOT, VERDICTS, DataError, NotRun, settings
from medlib.data import sources
from medlib.data.cases import LabelledCase
from medlib.data.images import PIXELS_VERSION
from medlib.data.suite import Suite
from medlib.models import prompts
from medlib.systems.registry import Interrupted, System, refused, register
from medlib.systems.session import Session

PRICES = ROOT / "data" / "api_prices.yaml"
DECODING = {"temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 5}
#: An endpoint may refuse these and still give a verdict.
OPTIONAL = ("logprobs", "top_logprobs", "seed", "temperature")
#: What an endpoint says of one case and not of its settings: how it is told here, and a pattern of its words.
OF_THE_CASE = {
    "longer than the endpoint's context": r"context.{0,9}(length|window)|too (long|many tokens)|above_max",
    "refused by the endpoint's content filter": r"content.{0,10}(filter|policy|management)|moderation",
    "an image that the endpoint cannot read": r"(invalid|unsupported|decode|large).{0,20}image|image.{0,9}large",
}
NOT_DRAWN = (
    "{image} is not an image that this project drew, so it may be a patient's, and would leave this machine; set "
    "api_allow_real_images if it may"
)


@register("openai")
def openai_api(session: Session) -> System:
    """``openai:<model>`` through the official client, which retries 429, 5xx and timeouts with back-off.

    The endpoint is ``api_base_url``, else ``OPENAI_BASE_URL``, else OpenAI's; `api_key` says which key goes there.
    Redirects are not followed: they would take images and key elsewhere. ``api_timeout_s``, ``api_retries`` and
    ``api_workers`` bound a request.

    Returns
    -------
    System whose ``predict`` gives one row a scenario: p_correct (see :func:`probability`), generated,
    parsed, read, refused (why the endpoint did not judge this case), prompt_tokens, completion_tokens, usd
    (nan where ``data/api_prices.yaml`` has no price).

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
    endpoint = _Endpoint()

    def ask(suite: Suite, scenario: LabelledCase, failures: list[str]) -> dict | None:
        """One row; None if the endpoint does not answer, to this request or to an earlier one of the call."""
        if failures:
            return None
        try:
            image = suite.image(scenario)
            if not (config.api_allow_real_images or sources.is_drawn(suite, scenario)):
                raise NotRun(NOT_DRAWN.format(image=scenario.image))
            answer = row(complete(client, options, chat(scenario, image)), price)
        except DataError as error:
            return refused(str(error))
        except NotRun as error:
            failures.append(str(error))
        except (openai.OpenAIError, ValueError) as error:  # ValueError: an answer that is not a chat completion
            why = f"{host}: {reason(error, options)}"
            if endpoint.refuses_case(error, options):
                return refused(why)
            failures.append(why)
        else:
            endpoint.has_answered = True
            left_out = sorted(name for name in ("temperature", "seed") if name not in options)
            return answer | ({"left_out": ", ".join(left_out)} if left_out else {})
        return None

    def predict(suite: Suite) -> pd.DataFrame:
        failures: list[str] = []  # of this call: others may be under way in other threads
        with ThreadPoolExecutor(config.api_workers) as pool:
            answers = list(pool.map(lambda s: ask(suite, s, failures), suite.scenarios))
        if failures:
            known = {number: answer for number, answer in enumerate(answers) if answer}
            raise Interrupted(failures[0], known) from None
        return pd.DataFrame(answers)

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
    try:
        known = "api.openai.com", settings.host(os.environ.get("OPENAI_BASE_URL", ""))
    except ValueError as error:
        raise NotRun(f"OPENAI_BASE_URL: {error}") from None
    if key := os.environ.get("MEDLIB_API_KEY"):
        return key
    elsewhere = base_url and settings.host(base_url) not in known
    return None if elsewhere else os.environ.get("OPENAI_API_KEY")


class _Endpoint:
    """What is known of an endpoint while several threads ask it."""

    has_answered = False

    def refuses_case(self, error: Exception, options: dict) -> bool:
        """Whether a failure is about the one case that was asked: by its words, or since others were answered."""
        of_a_case = isinstance(error, ValueError) or getattr(error, "status_code", 0) in (400, 413, 422)
        return of_a_case and (self.has_answered or reason(error, options) in OF_THE_CASE)


def chat(scenario: LabelledCase, image: Image.Image) -> list[dict]:
    """The turns of :func:`medlib.models.prompts.messages`, with the image as a data URL.

    The note is sent as it is: whether control tokens in it are taken as text is the endpoint's affair.
    """
    turns = prompts.messages(scenario, image, is_marked=False)
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
    """What one completion says and costs; nan for a count that the endpoint does not give.

    An answer without a verdict (none at all, a refusal, thoughts only) is a result: ``read`` is False.

    Raises
    ------
    ValueError
        If the answer is not built as a chat completion is.
    """
    try:
        choice, usage = reply.choices[0], reply.usage
        message = choice.message
        text = _text(getattr(message, "content", None)) or _text(getattr(message, "refusal", None))
        tokens = [_count(getattr(usage, f"{kind}_tokens", None)) for kind in ("prompt", "completion")]
        listed = list((choice.logprobs.content if choice.logprobs else None) or [])
    except (AttributeError, TypeError, IndexError, KeyError):
        raise ValueError("no chat completion in the answer") from None
    usd = (tokens[0] * price["input"] + tokens[1] * price["output"]) / 1e6 if price else math.nan
    parsed = prompts.parse_verdict(text)
    return {
        "p_correct": probability(parsed, _behind(listed, prompts.thought(text))),
        "generated": text,
        "parsed": parsed,
        "read": parsed is not None,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "usd": usd,
    }


def _text(content) -> str:
    """An answer's text; some servers give it in parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in content)
    return content if isinstance(content, str) else ""


def _count(number) -> float:
    return number if isinstance(number, int) and number >= 0 else math.nan


def _behind(tokens: list, start: int) -> list:
    """The tokens behind this many letters of the answer."""
    ends = itertools.accumulate(len(str(getattr(token, "token", ""))) for token in tokens)
    return [token for token, end in zip(tokens, ends) if end > start]


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
    first = next((t for t in tokens if letters(_text(getattr(t, "token", None)))), None)
    if first is None or begins(first.token) != parsed or not _has_probability(first):
        return float(parsed == "CORRECT")
    others = [t for t in getattr(first, "top_logprobs", None) or [] if _has_probability(t)]
    listed = {t.token: math.exp(t.logprob) for t in [*others, first]}
    mass = dict.fromkeys(VERDICTS, 0.0)
    for token, p in listed.items():
        if (verdict := begins(token)) is not None:
            mass[verdict] += p
    unlisted = min(*listed.values(), max(0.0, 1 - sum(listed.values())))
    correct, error = (mass[verdict] or unlisted for verdict in VERDICTS)
    return correct / (correct + error) if correct + error else float(parsed == "CORRECT")


def _has_probability(token) -> bool:
    """Whether a listed token states its probability; servers leave it out, or write numbers that are none."""
    p = getattr(token, "logprob", None)
    is_number = isinstance(p, (int, float)) and not isinstance(p, bool) and p <= 1e-6
    return is_number and isinstance(getattr(token, "token", None), str)


def letters(token: str) -> str:
    """A token without quotes, spaces and markup around its word."""
    inside = [place for place, letter in enumerate(token) if letter.isalnum()]
    return token[inside[0] : inside[-1] + 1] if inside else ""


def begins(token: str) -> str | None:
    """The verdict that a token begins, such as CORRECT for "COR"; None for any other token."""
    word = letters(token).upper()
    return next((v for v in VERDICTS if word and (v.startswith(word) or word.startswith(v))), None)


def load_price(host: str, model: str) -> dict | None:
    """Dollars per million ``input`` and ``output`` tokens; None where the table has no such row."""
    return ((yaml.safe_load(PRICES.read_text()) or {}).get(host) or {}).get(model)


def reason(error: Exception, options: dict) -> str:
    """What kind of failure it was, in words of our own.

    Parameters
    ----------
    options : request fields; the one that the endpoint refuses is named
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "no answer within api_timeout_s, after all retries"
    if isinstance(error, openai.APIConnectionError):
        return "not reachable, after all retries"
    if not isinstance(error, openai.APIStatusError):
        return "the answer is not a chat completion; is the address right (most end in /v1)?"
    if error.status_code in (400, 413, 422):
        # a long message repeats the request, whose words say nothing
        said = f"{error.code} {error.message if len(error.message) < 500 else ''}"
        for words, pattern in OF_THE_CASE.items():
            if re.search(pattern, said, re.IGNORECASE):
                return words
    # a code such as insufficient_quota says what to do; free text may repeat what was sent
    codes = [code for code in (error.code, error.type) if re.fullmatch("[a-z_]{1,40}", str(code))]
    refused_option = [f"refuses {error.param}"] if error.param in options else []
    moved = "; redirects are not followed, give the final address" if error.status_code // 100 == 3 else ""
    return " ".join([f"HTTP {error.status_code}", *codes, *refused_option]) + moved
