"""A recipe: a file type with per-tensor overrides, from a TOML file, flags, or both."""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantcli.errors import UsageError
from quantcli.recipes.file_types import file_type, tensor_type

MAX_BYTES = 1 << 20
FLAGS = ("pure", "leave_output_tensor")
KEYS = (
    *("description", "type", "output_tensor_type", "token_embedding_type", "tensors"),
    *FLAGS,
)


@dataclass(frozen=True)
class Recipe:
    """Which types the tensors of a file get.

    `tensors` are (regular expression, tensor type): the type of the tensors in whose GGUF name the
    expression is found, in any case; the first that matches counts. For output.weight and
    token_embd.weight, `output_tensor_type` and `token_embedding_type` come before the patterns,
    and `leave_output_tensor` before all. A tied token_embd.weight follows the output tensor's
    type, after the patterns, unless `pure`. Build one with `read_recipe` or `recipe_from_flags`,
    which check and normalise.
    """

    file_type: str | None = None
    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    tensors: tuple[tuple[str, str], ...] = ()
    description: str = ""

    def merged_with(self, flags: "Recipe") -> "Recipe":
        """This recipe with the command line's flags over it: their patterns are tried first."""
        return replace(
            self,
            file_type=flags.file_type or self.file_type,
            pure=flags.pure or self.pure,
            leave_output_tensor=flags.leave_output_tensor
            or (self.leave_output_tensor and flags.output_tensor_type is None),
            output_tensor_type=flags.output_tensor_type or self.output_tensor_type,
            token_embedding_type=flags.token_embedding_type or self.token_embedding_type,
            tensors=flags.tensors + self.tensors,
        )


def recipe_from_flags(
    *,
    pure: bool = False,
    leave_output_tensor: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_types: Iterable[str] = (),
) -> Recipe:
    """The recipe that llama-quantize's flags mean; each of tensor_types is REGEX=TYPE.

    Raises:
        UsageError: names every flag that does not parse.
    """
    given = {
        "pure": pure,
        "leave_output_tensor": leave_output_tensor,
        "output_tensor_type": output_tensor_type,
        "token_embedding_type": token_embedding_type,
    }
    checked = _Checked(lambda key: "--" + key.replace("_", "-"))
    values = {key: value for key, value in given.items() if value is not None}
    pairs = []
    for text in tensor_types:
        pattern, equals, kind = text.rpartition("=")
        if pattern and equals and kind:
            pairs.append((pattern, kind))
        else:
            checked.problems.append(f"--tensor-type {text[:80]!r}: expected REGEX=TYPE")
    return checked.recipe(values, pairs, "--tensor-type")


def read_recipe(path: Path) -> Recipe:
    """Read and check a TOML recipe.

    Raises:
        UsageError: when it cannot be read, or names every problem that it has.
    """
    document = _parse(path)
    checked = _Checked(lambda key: key)
    for key in document:
        if key not in KEYS:
            known = ", ".join(KEYS)
            checked.problems.append(f"unknown key {key[:40]!r} (known: {known})")
    pairs = document.pop("tensors", {})
    if not isinstance(pairs, dict):
        checked.problems.append("tensors: expected a table [tensors] of 'regex' = \"type\"")
        pairs = {}
    values = {key: value for key, value in document.items() if key in KEYS}
    try:
        return checked.recipe(values, pairs.items(), "[tensors]")
    except UsageError as error:
        raise UsageError(f"{str(path)!r}: {error}") from None


def _parse(path: Path) -> dict[str, Any]:
    name = repr(str(path))
    if not path.is_file():
        raise UsageError(f"{name}: there is no recipe file of that name")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{name}: a recipe has at most {MAX_BYTES} bytes")
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{name}: not valid TOML: {error}") from None


class _Checked:
    """Checks values one by one and collects all problems; `place` says where a key stands."""

    def __init__(self, place: Callable[[str], str]) -> None:
        self.place = place
        self.problems: list[str] = []

    def recipe(self, values: dict[str, Any], pairs: Iterable[tuple[str, Any]], at: str) -> Recipe:
        """The recipe, if there was no problem."""
        fields: dict[str, Any] = {}
        for key, value in values.items():
            field = "file_type" if key == "type" else key
            fields[field] = self._value(key, value)
        tensors = tuple((pattern, self._pair(pattern, kind, at)) for pattern, kind in pairs)
        if fields.get("leave_output_tensor") and "output_tensor_type" in fields:
            both = [self.place(key) for key in ("leave_output_tensor", "output_tensor_type")]
            self.problems.append(f"{both[0]} and {both[1]} exclude each other; keep one")
        if self.problems:
            raise UsageError("; ".join(self.problems))
        return Recipe(**fields, tensors=tensors)

    def _value(self, key: str, value: Any) -> Any:
        if key in FLAGS and isinstance(value, bool):
            return value
        if key not in FLAGS and isinstance(value, str):
            if key == "description":
                return value
            look_up = tensor_type if key != "type" else lambda name: file_type(name).name
            return self._name(self.place(key), look_up, value)
        expected = "true or false" if key in FLAGS else "a string in quotes"
        self.problems.append(f"{self.place(key)}: expected {expected}, not {_short(value)}")
        return None

    def _pair(self, pattern: str, kind: Any, at: str) -> str:
        place = f"{at} {pattern[:80]!r}"
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self.problems.append(f"{place}: not a regular expression: {error}")
        if isinstance(kind, dict):
            self.problems.append(f"{place}: put quotes around a pattern that contains dots")
        elif not isinstance(kind, str):
            self.problems.append(f"{place}: expected a tensor type in quotes, not {_short(kind)}")
        else:
            return self._name(place, tensor_type, kind)
        return ""

    def _name(self, place: str, look_up: Callable[[str], str], name: str) -> str:
        try:
            return look_up(name)
        except UsageError as error:
            self.problems.append(f"{place}: {error}")
            return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
