"""Values as people write them, and what they mean: ages, sexes, verdicts, modalities.

Every function takes the text of one cell, returns None where it says that nothing is known, and raises
ValueError with the reason if the text cannot be read.
"""

from __future__ import annotations

import re

from medlib.data.cases import ERROR_TYPES

#: What people write where they know nothing.
MISSING = {"", "-", "--", "?", ".", "na", "n/a", "nan", "null", "nil", "none", "unknown", "not stated", "u"}
#: Of these, what nobody writes who means that there is no treatment.
NO_ANSWER = {"", "nan", "n/a", "null", "?"}
YES = {"1", "1.0", "yes", "y", "true", "t"}
NO = {"0", "0.0", "no", "n", "false", "f"}
RIGHT = {"correct", "appropriate", "right", "valid", "ok", "agree", "adequate", "justified", "indicated"}
WRONG = {"error", "inappropriate", "incorrect", "wrong", "invalid", "disagree", "inadequate", "unjustified"}
SEXES = {
    "female": {"f", "female", "w", "woman", "girl"},
    "male": {"m", "male", "man", "boy"},
    "other": {"o", "other", "x", "d", "diverse", "intersex", "non-binary", "nonbinary"},
}
MODALITY_SPELLINGS = {
    "xray": {"xray", "x-ray", "x ray", "xr", "cxr", "cr", "dx", "radiograph", "chest x-ray", "chest radiograph"},
    "histopathology": {"histopathology", "histology", "pathology", "sm", "wsi", "histo"},
    "mri": {"mri", "mr", "mrt", "magnetic resonance"},
    "ultrasound": {"ultrasound", "us", "sonography", "ultrasonography", "sono"},
}
SPLITS = {
    "train": {"train", "training", "tr"},
    "val": {"val", "valid", "validation", "dev", "development"},
    "test": {"test", "testing", "holdout", "held-out", "held_out"},
}
SEVERITY_SPELLINGS = {
    "none": {"none", "no error"},
    "moderate": {"moderate", "medium"},
    "high": {"high", "severe", "serious", "major"},
    "critical": {"critical", "life-threatening"},
}


def shorten(text: str, length: int = 40) -> str:
    """The text in quotes, cut to a length, for a message."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known."""
    return plain(text) in MISSING


def plain(text: str) -> str:
    """Lower case, without blanks around."""
    return text.strip().casefold()


def age(text: str) -> int | None:
    """Age in whole years.

    Reads DICOM's form with days, weeks, months and years (``018M``), ``<1`` (0), ``>89`` and ``90+`` (90), and the
    middle of a range (``40-49``).
    """
    if is_missing(text):
        return None
    written = plain(text).replace("–", "-").replace(",", ".")
    unit = r"\s*(years?|yrs?|y/?o|y|months?|mo|m|weeks?|wks?|w|days?|d)?\.?(\s+old)?"
    if match := re.fullmatch(rf"(\d{{1,9}})\s*(?:-|to)\s*(\d{{1,9}}){unit}", written):
        years = _years((int(match[1]) + int(match[2])) / 2, match[3])
    elif match := re.fullmatch(rf"([<>]?)=?\s*(\d{{1,9}}(?:\.\d{{1,9}})?)(\+?){unit}", written):
        value = float(match[2])
        if match[1] == "<":
            value = max(0.0, value - 1)
        elif match[1] == ">" and "=" not in written:
            value += 1
        years = _years(value, match[4])
    else:
        raise ValueError(f"{shorten(text)} is no age")
    if not 0 <= years <= 120:
        raise ValueError(f"{shorten(text)} is no age between 0 and 120 years")
    return years


def _years(value: float, unit: str | None) -> int:
    per_year = {"m": 12, "w": 52.18, "d": 365.25}
    return int(value / per_year.get((unit or "y")[0], 1))


def sex(text: str) -> str | None:
    """``female``, ``male`` or ``other``."""
    return None if is_missing(text) else _spelling(text, SEXES, "a sex")


def verdict(text: str, yes_is_correct: bool = True) -> str:
    """``CORRECT`` or ``ERROR``; an answer that goes on ("ERROR - Treatment does not match") is read too.

    ``yes_is_correct`` is False for a column that asks whether there is an error.
    """
    written = plain(text)
    if written in YES | NO:
        return "CORRECT" if (written in YES) == yes_is_correct else "ERROR"
    match = re.match(r"\W*((?:not|no)[\s-]+)?([a-z]+)", written)
    if match and match[2] in RIGHT | WRONG:
        return "CORRECT" if (match[2] in RIGHT) != bool(match[1]) else "ERROR"
    raise ValueError(f"{shorten(text)} is no verdict (CORRECT or ERROR, yes or no, 1 or 0, appropriate or not)")


def modality(text: str) -> str:
    """The project's name of a modality that it knows, else the text in lower case."""
    try:
        return _spelling(text, MODALITY_SPELLINGS, "")
    except ValueError:
        return " ".join(plain(text).split())


def split(text: str) -> str:
    """``train``, ``val`` or ``test``."""
    return _spelling(text, SPLITS, "a split (train, val or test)")


def severity(text: str) -> str | None:
    """``none``, ``moderate``, ``high`` or ``critical``."""
    if plain(text) != "none" and is_missing(text):
        return None
    return _spelling(text, SEVERITY_SPELLINGS, "a severity (none, moderate, high or critical)")


def error_type(text: str) -> str | None:
    """One of `medlib.data.cases.ERROR_TYPES`."""
    if plain(text) != "none" and is_missing(text):
        return None
    name = re.sub(r"[\s-]+", "_", plain(text))
    if name not in ERROR_TYPES:
        raise ValueError(f"{shorten(text)} is none of {', '.join(ERROR_TYPES)}")
    return name


def dollars(text: str) -> int | None:
    """Whole US dollars, of ``$5,000``, ``5000.00`` or ``USD 5000``."""
    if is_missing(text):
        return None
    match = re.fullmatch(
        r"(?:us)?\s*(?:\$|usd)?\s*(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d*)?\s*(?:\$|usd)?", plain(text)
    )
    if not match:
        raise ValueError(f"{shorten(text)} is no amount in US dollars")
    return int(match[1].replace(",", ""))


def _spelling(text: str, spellings: dict[str, set[str]], what: str) -> str:
    for name, written in spellings.items():
        if plain(text) in written:
            return name
    raise ValueError(f"{shorten(text)} is not {what}")
