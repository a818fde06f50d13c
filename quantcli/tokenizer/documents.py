"""Reading a repository's tokenizer files: bounded, and only as data."""

import json
import re
from typing import Any, Protocol, TypeGuard

from quantcli.checkpoint.files import parse_json_object
from quantcli.errors import BadInputError

# The largest tokenizer.json in use (Gemma 3) has 33 MB and 2 million values.
FILE_LIMIT = 64 << 20
VALUE_LIMIT = 4_000_000
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
LFS_POINTER = b"version https://git-lfs"


class Source(Protocol):
    """What the tokenizer needs of a checkpoint; `source_files` names them."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def source_files(self) -> tuple[str, ...]: ...

    def file(self, name: str, limit: int = ...) -> bytes | None: ...


def show(value: object, limit: int = 60) -> str:
    """`repr` of an untrusted value, shortened: control codes never reach a terminal."""
    text = repr(value[: 2 * limit] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def read_bytes(source: Source, name: str) -> bytes | None:
    """The content of a side file; None when there is no such file.

    Raises: BadInputError (too large, a Git-LFS pointer).
    """
    data = source.file(name, limit=FILE_LIMIT)
    if data is not None and data.startswith(LFS_POINTER):
        raise BadInputError(f"{name} is a Git-LFS pointer: fetch the file itself (git lfs pull)")
    return data


def read_text(source: Source, name: str) -> str | None:
    """The text of a side file with Unix line ends; None when there is no such file.

    Raises: BadInputError (too large, not UTF-8).
    """
    data = read_bytes(source, name)
    if data is None:
        return None
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name} is not UTF-8 at byte {error.start}") from error


def read_object(source: Source, name: str) -> dict[str, Any] | None:
    """The JSON object in a side file; None when there is no such file.

    Raises: BadInputError (too large, not JSON, no object, a key given twice).
    """
    data = read_bytes(source, name)
    if data is None:
        return None
    value = parse_json_object(data, name, VALUE_LIMIT)
    # Lone surrogates are legal JSON escapes, but no text that could be written.
    if SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInputError(f"{name} holds half a surrogate pair in a text") from error
    return value


def is_id(value: object) -> TypeGuard[int]:
    """Tell whether `value` is an integer that can be a token id (JSON's true is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
