"""`--override-kv KEY=TYPE:VALUE`, with llama-quantize's syntax: int, float, bool, str."""

from typing import Any

import numpy as np

from quantcli.errors import UsageError

Metadata = dict[str, Any]
KINDS = "int, float, bool, str"


def apply_overrides(metadata: Metadata, overrides: tuple[str, ...]) -> Metadata:
    """A copy of metadata with each override set.

    An integer keeps the width of the value it replaces; a new one is stored as uint32, as
    llama-quantize does, or as int32/int64 where it does not fit.

    Raises:
        UsageError: when an override does not parse, does not fit, or is not overridable.
    """
    changed = dict(metadata)
    for text in overrides:
        key, equals, rest = text.partition("=")
        kind, colon, value = rest.partition(":")
        if not (key and equals and colon):
            raise UsageError(
                f"--override-kv {text!r}: expected KEY=TYPE:VALUE, TYPE one of {KINDS}"
            )
        if key == "general.architecture":
            raise UsageError(
                f"--override-kv {text!r}: the architecture decides the tensors' meaning"
            )
        changed[key] = _parse(text, kind, value, changed.get(key))
    return changed


def _parse(text: str, kind: str, value: str, old: Any) -> Any:
    try:
        if kind == "int":
            return _integer(int(value, 0), old)
        if kind == "float":
            return np.float32(value)
    except (ValueError, OverflowError):
        raise UsageError(f"--override-kv {text!r}: {value!r} is not a fitting {kind}") from None
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise UsageError(f"--override-kv {text!r}: a bool is true or false")
        return value.lower() == "true"
    if kind == "str":
        return value
    raise UsageError(f"--override-kv {text!r}: unknown type {kind!r}; one of {KINDS}")


def _integer(value: int, old: Any) -> Any:
    kinds: list[type[np.integer]] = [np.uint32, np.int32, np.int64]
    if isinstance(old, np.integer):
        kinds = [type(old)]
    for kind in kinds:
        if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            return kind(value)
    raise OverflowError
