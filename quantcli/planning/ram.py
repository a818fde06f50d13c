"""How much memory a finished file needs to run, and which file type suits a machine."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.errors import UsageError

Metadata = dict[str, Any]

CACHE_BYTES = 2  # llama.cpp's default KV cache is F16
USUAL_CONTEXT = 8192
UBATCH = 512  # tokens that llama.cpp computes at once by default
RUNTIME_BYTES = 150 << 20  # the program, its small buffers and the tokenizer; generous

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str, option: str) -> int:
    """Bytes in "16GB", "16GiB", "500M" or "1024".

    Raises:
        UsageError: naming the option when the text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{option} {text!r} is not a size; write it like 16GB, 500M or 4GiB")
    unit = match[2].upper()
    scale = 1024 ** " KMGT".index(unit or " ") if match[3] else UNITS[unit]
    return int(float(match[1]) * scale)


def vocabulary_size(metadata: Metadata) -> int:
    """Number of tokens, 0 where the file has no tokenizer."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else 0


@dataclass(frozen=True)
class Running:
    """Bytes needed beside the weights, for one context length."""

    context: int
    kv_cache: int
    compute: int

    @property
    def overhead(self) -> int:
        """All that is not weights."""
        return self.kv_cache + self.compute + RUNTIME_BYTES


def running(metadata: Metadata, context: int | None = None) -> Running:
    """Memory for the KV cache and compute buffers of llama.cpp at a context length in tokens.

    None stands for the usual 8192 tokens, or less where the model was trained for less.

    Counted without sliding windows, flash attention or a quantized cache, all of which need less.

    Raises:
        UsageError: when the model was not made for so long a context.
    """
    arch = metadata["general.architecture"]

    def number(key: str, default: int = 0) -> int:
        """Of a value per block the largest; the default for what is no whole number."""
        value = metadata.get(f"{arch}.{key}")
        if not isinstance(value, np.integer | np.ndarray) or not value.size:
            return default
        return max(0, int(np.max(value))) if np.issubdtype(value.dtype, np.integer) else default

    trained = number("context_length") or USUAL_CONTEXT
    if context is None:
        context = min(USUAL_CONTEXT, trained)
    if context > trained:
        raise UsageError(f"--context {context}: the model was trained for at most {trained} tokens")
    heads, n_embd = number("attention.head_count", 1), number("embedding_length")
    head_size = n_embd // heads if heads else 0
    per_token = number("attention.head_count_kv", heads) * (
        number("attention.key_length", head_size) + number("attention.value_length", head_size)
    )
    widest = max(vocabulary_size(metadata), 2 * number("feed_forward_length"), heads * context)
    # Where tokens see those that follow, nothing can be kept.
    kept = number("block_count") * context if metadata.get(f"{arch}.attention.causal", True) else 0
    return Running(
        context=context,
        kv_cache=kept * per_token * CACHE_BYTES,
        compute=4 * min(UBATCH, context) * (widest + 4 * n_embd),
    )
