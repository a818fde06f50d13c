"""The types of every architecture's tensors, of a GGUF source, against llama-quantize's record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_recipes import data_bytes, recorded_types

from quantcli.recipes import Recipe, choose_types

DATA = Path(__file__).parent / "data/recipes/architectures.json"
RECORD = json.loads(DATA.read_text())["models"]


def ungrouped(groups: dict[str, str]) -> list[list[Any]]:
    """[[name, shape, type]] as in mixes.json."""
    found = []
    for key, names in groups.items():
        dtype, _, shape = key.partition(" ")
        found += [[name, [int(n) for n in shape.split("x")], dtype] for name in names.split()]
    return found


def in_gguf(value: Any) -> Any:
    kinds = {int: np.uint32, float: np.float32, bool: bool, str: str, list: np.array}
    return kinds[type(value)](value)


@pytest.mark.parametrize("model", RECORD)
def test_every_type_is_llama_quantizes_choice(model: str) -> None:
    spec = RECORD[model] | {"tensors": ungrouped(RECORD[model]["tensors"])}
    metadata = {key: in_gguf(value) for key, value in spec["metadata"].items()}
    blocks = spec["metadata"][spec["metadata"]["general.architecture"] + ".block_count"]
    tensors, stored = [], {}
    for name, shape, dtype in spec["tensors"]:
        for number in range(blocks) if "{}" in name else [0]:
            tensors.append((name.format(number), tuple(shape)))
            stored[name.format(number)] = dtype
    assert spec["runs"]
    for run in spec["runs"]:
        recipe = Recipe(run["file_type"])
        imatrix = run.get("imatrix", False)
        choices = choose_types(tensors, metadata, recipe, has_imatrix=imatrix, stored=stored)
        assert {c.name: c.type for c in choices} == recorded_types(spec, run), run["file_type"]
        assert data_bytes(choices, dict(tensors)) == run["bytes"]
