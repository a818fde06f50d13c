"""LoRA adapters in a plan: opened on their base, placed in the output, named in its metadata."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantcli.architectures import OutputTensor
from quantcli.checkpoint import Adapter, AdapterRef, Checkpoint, open_adapter
from quantcli.errors import UnsupportedError, UsageError
from quantcli.progress import Progress

Metadata = dict[str, Any]


def parse_lora(text: str) -> AdapterRef:
    """PATH or PATH:SCALE of --lora.

    Raises:
        UsageError: for a scale that changes nothing or is no number.
    """
    source, colon, factor = text.rpartition(":")
    if not colon:
        return AdapterRef(text)
    try:
        scale = float(factor)
    except ValueError:
        return AdapterRef(text)  # a path may hold a colon
    if not source or scale == 0 or not abs(scale) < 1e6:
        raise UsageError(f"--lora {text!r}: expected PATH or PATH:SCALE, a scale other than 0")
    return AdapterRef(source, scale)


def open_adapters(
    refs: Sequence[AdapterRef], base: Checkpoint, progress: Progress | None
) -> list[Adapter]:
    """All adapters, in order. Raises: see open_adapter."""
    return [open_adapter(ref, base, progress) for ref in refs]


def check_places(adapters: Sequence[Adapter], origins: Sequence[OutputTensor]) -> None:
    """Each tensor that an adapter changes needs one place in the output, and only one.

    Raises:
        UnsupportedError: naming the adapter and the tensor.
    """
    places = {name for origin in origins for name in origin.sources}
    transposed = {o.source for o in origins if o.transposed}
    shared = {name for o in origins if o.must_equal for name in (o.source, o.must_equal)}
    if not any(origin.name == "output.weight" for origin in origins):
        shared |= {o.source for o in origins if o.name == "token_embd.weight"}
    for adapter in adapters:
        for name in sorted(adapter.changed):
            if name in shared:
                raise UnsupportedError(
                    f"{adapter.id}: changes {name!r}, which is embedding and output head in one:"
                    " an adapter of one of them cannot be merged; save the merged model instead"
                )
            if name in transposed:
                raise UnsupportedError(
                    f"{adapter.id}: changes {name!r}, which the base stores transposed: merge the"
                    " adapter with PEFT"
                )
            if name not in places:
                raise UnsupportedError(
                    f"{adapter.id}: changes {name!r}, which has no place in the GGUF file"
                )


def lora_warnings(adapters: Sequence[Adapter], base: Checkpoint) -> list[str]:
    """Adapters that say they were made for another model on the hub."""
    return [
        f"{adapter.id}: made for {adapter.config.base!r}, not for {base.id!r}; its shapes fit"
        for adapter in adapters
        if base.revision is not None and adapter.config.base not in ("", base.id)
    ]


def lora_metadata(adapters: Sequence[Adapter]) -> Metadata:
    """Which adapters are in the file: quantcli.lora.<n>.*"""
    found: Metadata = {}
    for n, adapter in enumerate(adapters):
        found[f"quantcli.lora.{n}.sha256"] = adapter.sha256
        found[f"quantcli.lora.{n}.scale"] = np.float32(adapter.scale)
        if adapter.revision is not None:
            found[f"quantcli.lora.{n}.repo"] = adapter.id
            found[f"quantcli.lora.{n}.commit"] = adapter.revision
    return found


def lora_memory(adapters: Sequence[Adapter], threads: int) -> int:
    """Upper estimate of the private bytes of merging: the largest pair of factors, per thread."""
    tensors = [(a.file.header.tensors, u) for a in adapters for u in a.updates.values()]
    pairs = [math.prod(t[u.a].shape) + math.prod(t[u.b].shape) for t, u in tensors]
    # Factors of embeddings are turned around, so that they are there twice for a moment.
    return threads * 2 * 4 * max(pairs, default=0)
