"""Ollama's Modelfile: which file to run, and how the model wants to be sampled."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.planning.ram import running
from quantcli.report.cards import Card
from quantcli.report.words import plain

# Ollama's parameters by the keys of GGUF's `general.sampling.*`, and whether they are whole
# numbers. The other keys have no counterpart there, or (mirostat) no longer.
PARAMETERS = {
    "temp": ("temperature", False),
    "top_k": ("top_k", True),
    "top_p": ("top_p", False),
    "min_p": ("min_p", False),
    "penalty_repeat": ("repeat_penalty", False),
    "penalty_last_n": ("repeat_last_n", True),
}
_HEAD = """\
# For Ollama, in the folder of the GGUF file: ollama create NAME -f Modelfile
# There is no TEMPLATE here: Ollama takes the chat template from the GGUF file.
"""


def modelfile(card: Card, metadata: Mapping[str, Any]) -> str:
    """The Modelfile that runs the file of `card`, whose GGUF metadata are given.

    The context is the usual one, or less where the model was trained for less; sampling is as the
    makers of the model recommend, where they do.
    """
    paths = [path for path, _ in card.shards] or [card.path]
    lines = [f"FROM ./{plain(Path(path).name)}" for path in paths]
    lines.append(f"PARAMETER num_ctx {running(dict(metadata)).context}")
    for key, (name, whole) in PARAMETERS.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float | np.number) and math.isfinite(value):
            lines.append(f"PARAMETER {name} {int(value) if whole else np.float32(value)!s}")
    return _HEAD + "\n".join(lines) + "\n"
