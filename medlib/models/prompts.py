"""The question as every vision-language model gets it, and the reading of its answer."""

from __future__ import annotations

import re

from PIL import Image

from medlib.config import ANSWERS
from medlib.data.cases import Case

#: Gemma's token behind every turn; an answer is over with it.
END_OF_TURN = "<end_of_turn>"
INSTRUCTION = (
    "You audit clinical decisions. Review the medical image and the clinical information and decide "
    "whether the prescribed treatment is appropriate.\n"
    "Respond with only:\n"
    f'"{ANSWERS["ERROR"]}" if inappropriate\n'
    f'"{ANSWERS["CORRECT"]}" if appropriate'
)


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


def messages(scenario: Case, image: Image.Image | None, answer: str | None = None) -> list[dict]:
    """Chat messages for ``processor.apply_chat_template``; ``answer`` adds the model's turn."""
    content = [] if image is None else [{"type": "image", "image": image}]
    content.append({"type": "text", "text": f"{INSTRUCTION}\n\n{clinical_text(scenario)}"})
    turns = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def answer_tokens(processor) -> list[list[int]]:
    """Token ids of the two answers in the order of ``ANSWERS``, each with the end of its turn."""
    texts = [f"{answer}{END_OF_TURN}" for answer in ANSWERS.values()]
    return processor.tokenizer(texts, add_special_tokens=False).input_ids


def parse_verdict(text: str) -> str | None:
    """Read the verdict at the start of a generated answer; None if there is none.

    >>> parse_verdict("ERROR - Treatment does not match imaging")
    'ERROR'
    >>> parse_verdict("It may be correct") is None
    True
    """
    match = re.match(r"\W*(CORRECT|ERROR)\b", text.strip())
    return match.group(1) if match else None
