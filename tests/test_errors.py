"""What any failure becomes: an exit code and one line."""

import pytest

from quantcli.errors import BadInputError, explain


def wrapped(cause: BaseException) -> RuntimeError:
    """As Python does with what strikes while a class is made."""
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (wrapped(KeyboardInterrupt()), 130),
        (wrapped(SystemExit(143)), 143),
        (MemoryError(), 7),
        (BadInputError("two\nlines"), 3),
        (wrapped(ValueError("x")), 1),
    ],
)
def test_every_failure_has_its_code_and_one_line(error: BaseException, code: int) -> None:
    found, message = explain(error)
    assert found == code
    assert message.isprintable()
    assert ("bug" in message) == (code == 1)
