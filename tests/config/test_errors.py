"""Messages: what a data set holds can neither move a terminal's cursor nor fill its memory."""

import pytest

from medlib.config import ConfigError, DataError, ModelError, NotRun
from medlib.config.errors import printable


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, NotRun])
def test_control_characters_are_written_out(kind):
    assert str(kind("row 1 (\x1b[2J\x07evil\u202e): bad\r\nnext\tline")) == (
        r"row 1 (\x1b[2J\x07evil\u202e): bad\r" + "\nnext\tline"
    )


def test_ordinary_text_stays_as_it_is():
    text = "naïve – “quoted” 90\u00a0% 日本語 é"
    assert printable(text) == text == str(DataError(text))


def test_a_message_of_many_rows_is_short():
    message = str(DataError("\n".join(f"cases.csv, row {n}: bad" for n in range(300_000))))
    assert message.startswith("cases.csv, row 0: bad\n") and message.endswith("\n… and 299,900 more")
    assert len(message) < 5_000 and len(str(DataError("x" * 1_000_000))) < 21_000
