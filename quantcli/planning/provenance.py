"""`general.*` metadata: who made the model, from its model card, config and name.

The rules are gguf-py's (`gguf.Metadata`), so the keys are those that llama.cpp's converter writes.
"""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.checkpoint import Adapter, Checkpoint
from quantcli.checkpoint.files import Folder

Metadata = dict[str, Any]
HUB = "https://huggingface.co/"
_BROKEN_CARD = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


def general_metadata(
    checkpoint: Checkpoint, parameters: int, experts: tuple[int, int] = (0, 0)
) -> tuple[Metadata, list[str]]:
    """`general.*` (without file type and architecture), and warnings in plain words.

    `parameters` is the number of weights; it names the size ("8B") where the name does not, with
    `experts` (how many, weights of one) as "8x7B".
    """
    import gguf

    warnings: list[str] = []
    # gguf-py logs what it does not understand; the warning below says it in one line.
    logging.getLogger("metadata").setLevel(logging.CRITICAL)
    try:
        known = _describe(checkpoint, _card(checkpoint.side_files), parameters)
    except _BROKEN_CARD:
        warnings.append("README.md: front matter is not a valid model card; ignored")
        known = _describe(checkpoint, {}, parameters)
    if known.size_label is None:
        count, weights = experts
        rest = parameters - count * weights
        known.size_label = gguf.utility.size_label(parameters, rest, weights, count)
    if checkpoint.revision is not None and known.source_repo_url is None:
        known.source_repo_url = HUB + checkpoint.id
    return {"general.type": "model", **_as_metadata(known)}, warnings


def adapter_metadata(adapter: Adapter, parameters: int) -> tuple[Metadata, list[str]]:
    """The same of an adapter; `parameters` is the number of weights that it updates.

    Where its model card names no base model, its config does.
    """
    import gguf

    def describe(card: dict[str, Any]) -> Any:
        if re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", adapter.config.base):
            card = {"base_model": adapter.config.base} | card
        # gguf-py takes a negative number for one that says little about the size.
        known = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), card, {}, Path(adapter.id), -parameters
        )
        known.name = known.name or Path(adapter.id).name
        _as_metadata(known)
        return known

    warnings: list[str] = []
    logging.getLogger("metadata").setLevel(logging.CRITICAL)
    try:
        known = describe(_card(adapter.side_files))
    except _BROKEN_CARD:
        warnings.append(f"{adapter.id}: README.md is not a valid model card; ignored")
        known = describe({})
    if adapter.revision is not None and known.source_repo_url is None:
        known.source_repo_url = HUB + adapter.id
    return {"general.type": "adapter", **_as_metadata(known)}, warnings


def _card(side_files: Folder) -> dict[str, Any]:
    import gguf
    import yaml

    try:
        return gguf.Metadata.load_model_card(side_files.root)
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(str(error)) from error


def _describe(checkpoint: Checkpoint, card: dict[str, Any], parameters: int) -> Any:
    """gguf-py's description of the model; raises what a broken model card makes it raise."""
    import gguf

    known = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), card, checkpoint.config, Path(checkpoint.id), parameters
    )
    sampling = checkpoint.json("generation_config.json") or {}
    for field, key in SAMPLING.items():
        if isinstance(sampling.get(key), int | float) and not isinstance(sampling[key], bool):
            setattr(known, f"sampling_{field}", sampling[key])
    known.name = known.name or Path(checkpoint.id).name
    _as_metadata(known)  # fails here, not later, when the card holds values of a wrong type
    return known


SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


def _as_metadata(known: Any) -> Metadata:
    """gguf-py's key-value list, in our representation (numpy scalars carry the GGUF type)."""
    import gguf

    collector = gguf.GGUFWriter(None, "")
    collector.kv_data[0].clear()
    known.set_gguf_meta_model(collector)
    kinds = gguf.GGUFValueType
    numbers: dict[Any, Any] = {
        kinds.INT32: np.int32,
        kinds.UINT32: np.uint32,
        kinds.FLOAT32: np.float32,
    }
    found: Metadata = {}
    for key, entry in collector.kv_data[0].items():
        if entry.type in numbers:
            found[key] = numbers[entry.type](entry.value)
        elif entry.type == kinds.STRING and isinstance(entry.value, str):
            found[key] = entry.value
        elif entry.type == kinds.ARRAY and all(isinstance(item, str) for item in entry.value):
            found[key] = list(entry.value)
        else:
            raise TypeError(f"{key} is not text")
    return found
