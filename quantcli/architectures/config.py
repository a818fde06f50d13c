"""A checkpoint's config.json, read through checks that fail early and in one line.

Keys that a file leaves out take the default of the Hugging Face configuration class: many
published files rely on it. A key that is present but null has no value, as in transformers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quantcli.errors import BadInputError

UINT32_MAX = 2**32 - 1

# What the configuration classes compute for a key without value: another key, or a division.
_DERIVED = {
    "num_key_value_heads": "num_attention_heads",
    "num_global_key_value_heads": "num_key_value_heads",
    "head_dim": "hidden_size/num_attention_heads",
    "num_experts": "num_local_experts",
}


class Config:
    """Checked view of one config.json."""

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        aliases: Mapping[str, str] | None = None,
        derived: Mapping[str, Callable[["Config"], Any]] | None = None,
    ) -> None:
        """defaults: values of keys the file leaves out; aliases: other names that come first;
        derived: what the file's other keys make of a key, whatever it says.

        Raises BadInputError, from `derived`.
        """
        text = values.get("text_config")  # multimodal files keep the language model's keys inside
        given = {**values, **(text if isinstance(text, Mapping) else {})}
        for key, other in (aliases or {}).items():
            if given.get(other) is not None:
                given[key] = given[other]
        self._values = {**defaults, **given}
        self._values |= {key: make(self) for key, make in (derived or {}).items()}

    def get(self, key: str) -> Any:
        """The value as the file or the defaults have it, else None. Unchecked."""
        return self._values.get(key)

    def count(self, key: str, least: int = 1) -> int:
        """A whole number from 1 (or 0, the `least`) to 2^32-1.

        Raises BadInputError when the key is missing or its value is anything else.
        """
        if self.get(key) is None and key in _DERIVED:
            return self._derived(key, _DERIVED[key])
        value = self._required(key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= UINT32_MAX:
            above = " above zero" if least else ""
            raise bad(f"{key} = {show(value)}, expected a whole number{above}")
        return value

    def number(self, key: str) -> float:
        """A positive number that float32 can hold. Raises BadInputError otherwise."""
        return positive(key, self._required(key))

    def flag(self, key: str) -> bool:
        """True or false; a key without value is false. Raises BadInputError."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise bad(f"{key} = {show(value)}, expected true or false")
        return bool(value)

    def size(self, expression: str) -> int:
        """Sum of products of counts: "2*intermediate_size". Raises BadInputError."""
        total = 0
        for term in expression.split("+"):
            parts = term.split("*")
            total += math.prod(int(p) if p.isdecimal() else self.count(p) for p in parts)
        return total

    def _required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise bad(f"no value for {key}")
        return value

    def _derived(self, key: str, rule: str) -> int:
        numerator, _, denominator = rule.partition("/")
        if not denominator:
            return self.count(numerator)
        top, bottom = self.count(numerator), self.count(denominator)
        if top % bottom:
            raise bad(
                f"{numerator} = {top} is not a multiple of {denominator} = {bottom}"
                f" and there is no {key}"
            )
        return top // bottom


def positive(key: str, value: Any) -> float:
    """`value` as a float. Raises BadInputError unless it is positive and finite in float32."""
    if not isinstance(value, bool) and isinstance(value, int | float):
        limits = np.finfo(np.float32)
        if float(limits.tiny) <= value <= float(limits.max):
            return float(value)
    raise bad(f"{key} = {show(value)}, expected a number above zero")


def show(value: object) -> str:
    """An untrusted value for an error message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bad(message: str) -> BadInputError:
    """The error for a config.json that contradicts itself."""
    return BadInputError(f"config.json: {message}")
