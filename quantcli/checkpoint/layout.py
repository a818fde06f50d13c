"""Which files of a folder or repository hold the weights, and whether they fit together."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.checkpoint.files import show
from quantcli.checkpoint.safetensors import TENSOR_LIMIT, Header
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError, UnsupportedError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_LIMIT = 1000

_WEIGHT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class GgufOnlyError(UnsupportedError):
    """There are GGUF files and no other weights."""


@dataclass(frozen=True)
class Layout:
    """The weight files in order and, if there is an index, its map from tensor to file."""

    files: tuple[str, ...]
    weight_map: dict[str, str] | None = None


def find_layout(names: Collection[str], index: dict[str, Any] | None) -> Layout:
    """Choose the weight files among `names`; `index` is the content of the index, if there is one.

    As in transformers, model.safetensors comes first and everything else is left alone
    (consolidated.safetensors, for instance, holds the same weights again).

    Raises: BadInputError (broken index, missing shards, nothing), UnsupportedError (other formats).
    """
    if SINGLE in names:
        return Layout((SINGLE,))
    if index is not None:
        weight_map = _weight_map(index)
        return Layout(tuple(sorted(set(weight_map.values()))), weight_map)
    shards = [match for match in map(_SHARD.fullmatch, sorted(names)) if match]
    if not shards:
        raise _nothing_found(names)
    count = int(shards[0][2])
    wanted = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    missing = [name for name in wanted[:SHARD_LIMIT] if name not in names]
    if missing or not 0 < count <= SHARD_LIMIT or len(shards) != count:
        first = f"; {missing[0]!r} is missing" if missing else ""
        raise BadInputError(f"{len(shards)} of {count} shards are here and no {INDEX}{first}")
    return Layout(tuple(wanted))


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{INDEX} has no `weight_map` from tensors to files")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _WEIGHT_FILE.fullmatch(file):
            raise BadInputError(
                f"{INDEX} puts tensor {show(tensor)} into {show(file)}:"
                " only plain names of .safetensors files are allowed"
            )
    if len(set(weight_map.values())) > SHARD_LIMIT:
        raise BadInputError(f"{INDEX} names over {SHARD_LIMIT} shards")
    return weight_map


def _nothing_found(names: Collection[str]) -> Exception:
    """Return the error that says what is there instead of safetensors weights."""

    def first(*endings: str) -> str | None:
        return min((name for name in names if name.endswith(endings)), default=None)

    if "adapter_config.json" in names:
        return UnsupportedError("this is an adapter: give its base, and the adapter with --lora")
    if other := first(".safetensors"):
        return BadInputError(f"there is no {SINGLE} and no {INDEX}, only {show(other)}")
    if pickle := first(*_PICKLES):
        return UnsupportedError(
            f"only pickled weights ({show(pickle)}), never loaded because they may run code:"
            " save the model as safetensors first, or look for a revision that has them"
        )
    if gguf := first(".gguf"):
        return GgufOnlyError(f"only GGUF files ({show(gguf)}): give one of them as the source")
    return BadInputError(f"there is no {SINGLE} and no {INDEX}")


def join_headers(headers: Mapping[str, Header], layout: Layout) -> dict[str, str]:
    """Return the file of each tensor, given the header of each file.

    Raises: BadInputError if a tensor is in two files, or the index and the files disagree.
    """
    homes: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.tensors:
            if name in homes:
                raise BadInputError(
                    f"tensor {show(name)} is in {show(homes[name])} and again in {show(file)}"
                )
            if layout.weight_map is not None and layout.weight_map.get(name) != file:
                raise BadInputError(
                    f"tensor {show(name)} of {show(file)} is not so listed in {INDEX}"
                )
            homes[name] = file
        if len(homes) > TENSOR_LIMIT:
            raise BadInputError(f"the shards hold more than {TENSOR_LIMIT} tensors")
    for name, file in (layout.weight_map or {}).items():
        if name not in homes:
            raise BadInputError(f"{show(file)} lacks tensor {show(name)}, listed in {INDEX}")
    return homes


def all_tensors(headers: Mapping[str, Header]) -> dict[str, SourceTensor]:
    """Return the tensors of all files by name."""
    return {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
