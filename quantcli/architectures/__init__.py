"""Model families: which checkpoints can be converted, and what becomes of their tensors.

To add a family, write one `Architecture` literal and name it in FAMILIES.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.config import show
from quantcli.architectures.gemma import GEMMA2, GEMMA3
from quantcli.architectures.llama import LLAMA, MISTRAL
from quantcli.architectures.qwen import QWEN2, QWEN3
from quantcli.architectures.tensors import OutputTensor
from quantcli.errors import UnsupportedError

__all__ = ["Architecture", "OutputTensor", "find", "supported"]

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)

_BY_CLASS = {name: family for family in FAMILIES for name in family.classes}


def find(config: Mapping[str, Any]) -> Architecture:
    """The family of a config.json, by the first class name in `architectures`.

    Raises UnsupportedError naming the class and the nearest supported ones.
    """
    name = _class_name(config)
    if name in _BY_CLASS:
        return _BY_CLASS[name]
    folded = {known.lower(): known for known in reversed(_BY_CLASS)}
    near = [folded[match] for match in get_close_matches(name.lower()[:100], folded, 3)]
    hint = f"nearest supported: {', '.join(near)}" if near else "none is near"
    raise UnsupportedError(
        f"config.json: architecture {show(name)} is not supported ({hint};"
        " `quantcli list architectures` names all)"
    )


def supported() -> list[Architecture]:
    """All families, in the order in which they are listed to people."""
    return list(FAMILIES)


def _class_name(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    for source in (text if isinstance(text, Mapping) else {}, config):
        classes = source.get("architectures")
        if isinstance(classes, list) and classes and isinstance(classes[0], str):
            return classes[0]
    raise UnsupportedError("config.json: no class name in `architectures`")
