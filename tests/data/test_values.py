"""Cells as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlib.data import values


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("62", 62),
        ("62Y", 62),
        ("062Y", 62),
        ("62.0", 62),
        (" 62 years ", 62),
        ("62 yo", 62),
        ("018M", 1),
        ("6 months", 0),
        ("104W", 1),
        ("400D", 1),
        ("<1", 0),
        ("< 1 year", 0),
        (">89", 90),
        ("≥90".replace("≥", ">="), 90),
        ("90+", 90),
        ("40-49", 44),
        ("40–49 years", 44),
        ("", None),
        ("N/A", None),
        ("unknown", None),
    ],
)
def test_ages(text, years):
    assert values.age(text) == years


@pytest.mark.parametrize("text", ["abc", "-3", "300", "62 miles", "12.5.2001", ">120"])
def test_what_is_no_age(text):
    with pytest.raises(ValueError, match="no age"):
        values.age(text)


@given(st.integers(0, 120))
def test_every_age_is_read_in_every_form(years):
    for form in ("{}", "{:03d}Y", "{} years", "{}y"):
        assert values.age(form.format(years)) == years
    assert values.age(f"{12 * years + 11}M") == years


@pytest.mark.parametrize(
    ("text", "sex"),
    [
        ("F", "female"),
        ("Female", "female"),
        ("M", "male"),
        ("O", "other"),
        ("U", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_sexes(text, sex):
    assert values.sex(text) == sex


def test_what_is_no_sex():
    with pytest.raises(ValueError, match="'fe' is not a sex"):
        values.sex("fe")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", "CORRECT"),
        ("1", "CORRECT"),
        ("1.0", "CORRECT"),
        ("TRUE", "CORRECT"),
        ("Appropriate", "CORRECT"),
        ("CORRECT - Treatment matches imaging findings", "CORRECT"),
        ("**CORRECT**", "CORRECT"),
        ("no error found", "CORRECT"),
        ("no", "ERROR"),
        ("0", "ERROR"),
        ("inappropriate", "ERROR"),
        ("not appropriate", "ERROR"),
        ("ERROR - Advanced imaging not indicated", "ERROR"),
        ("Incorrect.", "ERROR"),
    ],
)
def test_verdicts(text, verdict):
    assert values.verdict(text) == verdict


def test_a_column_that_asks_for_an_error_turns_yes_and_no_alone():
    assert values.verdict("yes", yes_is_correct=False) == "ERROR"
    assert values.verdict("0", yes_is_correct=False) == "CORRECT"
    assert values.verdict("error", yes_is_correct=False) == "ERROR"


@pytest.mark.parametrize("text", ["", "maybe", "2", "nothing", "correctional"])
def test_what_is_no_verdict(text):
    with pytest.raises(ValueError, match="no verdict"):
        values.verdict(text)


def test_modalities_keep_any_name():
    assert [values.modality(t) for t in ("CXR", "MR", "US", "CT", "Fundus  photo")] == [
        "xray", "mri", "ultrasound", "ct", "fundus photo",
    ]  # fmt: skip


def test_money_severity_error_type_and_split():
    assert [values.dollars(t) for t in ("$5,000", "5000.00", "USD 5000", "", "unknown")] == [5000] * 3 + [None] * 2
    for text in ("-3", "5,00", "many"):
        with pytest.raises(ValueError, match="no amount"):
            values.dollars(text)
    assert [values.severity(t) for t in ("Severe", "none", "")] == ["high", "none", None]
    assert values.error_type("Unnecessary procedure") == "unnecessary_procedure"
    assert [values.split(t) for t in ("Training", "dev", "holdout")] == ["train", "val", "test"]
    with pytest.raises(ValueError, match="'7' is not a split"):
        values.split("7")


def test_a_message_shows_no_long_text():
    assert len(values.shorten("x" * 500)) < 45


@pytest.mark.parametrize("read", [values.age, values.dollars])
@pytest.mark.parametrize("text", ["9" * 5_000, "9" * 400, "9" * 5_000 + "-" + "9" * 5_000])
def test_a_number_of_thousands_of_digits_is_refused_in_words(read, text):
    with pytest.raises(ValueError, match="is no a") as error:
        read(text)
    assert len(str(error.value)) < 200
