"""A GGUF file in the form of the converter's records, read by gguf-py (not by our own reader)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# Keys that say who converted, and free text that gguf-py derives from folder names.
OWN = ("quantcli.", "general.name", "general.basename", "general.finetune", "general.source.")


def contents(path: Path) -> dict[str, Any]:
    """Metadata {key: [type, value]} and tensors {name: [type, shape, sha256]}."""
    reader = gguf.GGUFReader(path)
    metadata = {
        field.name: [" ".join(kind.name for kind in field.types), _shortened(field.contents())]
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(n) for n in reversed(tensor.shape)],
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def comparable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the keys in which two converters may differ."""
    return {key: value for key, value in metadata.items() if not key.startswith(OWN)}


def _shortened(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list) or len(value) <= 16:
        return value
    text = json.dumps(value, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"length": len(value), "first": value[:8], "sha256": digest}
