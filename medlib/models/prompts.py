"""The question as every vision-language model gets it, and the reading of its answer.

A note is text: words such as ``<end_of_turn>`` in it are read as these letters, never as a model's control
tokens. `literal` marks where one would begin, and the tokenizer drops the marks once it has found its tokens.
"""

from __future__ import annotations

import re

from PIL import Image
from tokenizers import normalizers

from medlib.config import ANSWERS
from medlib.data.cases import Case

#: Part of what answers are known by: raise it whenever the layout of a prompt changes.
VERSION = 2
#: Gemma's token behind every turn; an answer is over with it.
END_OF_TURN = "<end_of_turn>"
#: A character that no text may have (Unicode keeps it for such uses).
MARK = "\ufdd0"
INSTRUCTION = (
    "You audit clinical decisions. Review the medical image and the clinical information and decide "
    "whether the prescribed treatment is appropriate.\n"
    "Respond with only:\n"
    f'"{ANSWERS["ERROR"]}" if inappropriate\n'
    f'"{ANSWERS["CORRECT"]}" if appropriate'
)
#: A question to a base model, which is answered by yes or no; the stand-ins' pretraining asks it too.
SHOWS = "Review the medical image and the clinical information. Does the image show the clinical finding?"


def clinical_text(scenario: Case) -> str:
    """The clinical information block; the same layout for every model and suite, less what is not stated.

    Each part is one line: a line break in a note becomes a space, so that none can look like another part.
    """
    patient = scenario.patient
    age = None if patient.age is None else f"{patient.age} years"
    who = ", ".join(text for text in (age, patient.sex) if text)
    stated = [f"{_line(text)}." for text in (who, patient.complaint) if text]
    return (f"Patient: {' '.join(stated)}\n" if stated else "") + (
        f"Clinical finding: {_line(scenario.finding)}.\nPrescribed treatment: {_line(scenario.treatment)}."
    )


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def literal(text: str) -> str:
    """The text with a mark behind whatever may begin a control token; see `read_literally`."""
    return re.sub(r"[<\[]", rf"\g<0>{MARK}", text.replace(MARK, ""))


def read_literally(tokenizer) -> None:
    """Have a tokenizer drop the marks of `literal`, which it does after it has looked for control tokens."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        before = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Replace(MARK, ""), *before])


def messages(
    scenario: Case, image: Image.Image | None, answer: str | None = None, is_marked: bool = True
) -> list[dict]:
    """Chat messages for ``processor.apply_chat_template``.

    Parameters
    ----------
    answer : adds the model's turn
    is_marked : whether the note is `literal`, for a tokenizer of `medlib.models.loading`
    """
    content = [] if image is None else [{"type": "image", "image": image}]
    note = clinical_text(scenario)
    content.append({"type": "text", "text": f"{INSTRUCTION}\n\n{literal(note) if is_marked else note}"})
    turns = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def shows_messages(scenario: Case, image: Image.Image | None) -> list[dict]:
    """Chat messages that ask `SHOWS` of a case; the treatment is not told."""
    note, _, _ = clinical_text(scenario).rpartition("\n")  # the treatment is the last line
    text = {"type": "text", "text": f"{SHOWS}\n\n{literal(note)}"}
    return [{"role": "user", "content": [{"type": "image", "image": image}, text]}]


def answer_tokens(processor) -> list[list[int]]:
    """Token ids of the two answers in the order of ``ANSWERS``, each with the end of its turn."""
    texts = [f"{answer}{END_OF_TURN}" for answer in ANSWERS.values()]
    return processor.tokenizer(texts, add_special_tokens=False).input_ids


def parse_verdict(text: str) -> str | None:
    """Read the verdict at the start of a generated answer; None if there is none.

    What a model thought beforehand (``<think>…</think>``) is no answer. In small letters a verdict must stand for
    itself: "Correct - …", not "Correct treatment would be …".

    >>> parse_verdict("ERROR - Treatment does not match imaging")
    'ERROR'
    >>> parse_verdict("It may be correct") is None
    True
    """
    match = _VERDICT.match(text, thought(text))
    return match.group(1).upper() if match else None


def thought(text: str) -> int:
    """Where the answer begins: behind what a model wrote down of its thinking; the end if it only thought."""
    begun = re.match(r"\s*<think>", text)
    end = text.find("</think>")
    if end < 0:
        return len(text) if begun else 0
    return end + len("</think>")


_VERDICT = re.compile(r"[\W_]*(CORRECT\b|ERROR\b|(?i:CORRECT|ERROR)(?=[\s*_\"']*(?:[-–—:.,;!]|$)))")
