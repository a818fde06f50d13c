"""Checkpoints that are nearly right: weights, their index, or both damaged (see mutations)."""

import json
from math import prod
from random import Random
from typing import Any

from broken import CONFIG, shard_name, with_header
from mutations import NAMES, damaged_bytes, odd_number, several

from quantcli.checkpoint.safetensors import DTYPE_BITS

VALUES = [None, True, 1.5, -0.0, 1e300, "F32", [], {}, [[]], [0], [0, 0], 10**30, [None], {"a": []}]
FRAGMENTS = [
    b"{",
    b"}",
    b"[" * 50_000,
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u0061",
    b"\xff",
    b" " * 99,
]
FRAGMENTS += [
    b'{"a":' * 20_000,
    b"1e999",
    b"9" * 5000,
    b"NaN",
    b'"__metadata__":{}',
    b"\xef\xbb\xbf",
]


def checkpoint(rng: Random) -> dict[str, bytes]:
    """The files of a checkpoint: one of weights, or some and their index."""
    count = rng.choice([1, 1, 2, 3])
    names = (
        ["model.safetensors"] if count == 1 else [shard_name(i + 1, count) for i in range(count)]
    )
    files = {"config.json": json.dumps(CONFIG).encode()}
    homes = {}
    for number, name in enumerate(names):
        tensors, data = _tensors(rng, f"{'abc'[number]}.t")
        homes |= dict.fromkeys(tensors, name)
        files[name] = _safetensors(rng, tensors, data)
    if count > 1:
        files["model.safetensors.index.json"] = _index(rng, homes)
    if rng.random() < 0.1:
        name = rng.choice(list(files))
        files[name] = damaged_bytes(rng, files[name])
    if rng.random() < 0.05:
        del files[rng.choice(list(files))]
    return files


def _tensors(rng: Random, prefix: str) -> tuple[dict[str, Any], bytes]:
    """Valid descriptions, contiguous from 0, and as many bytes."""
    found: dict[str, Any] = {}
    end = 0
    for number in range(rng.randrange(1, 5)):
        dtype = rng.choice(["F32", "F16", "BF16", rng.choice(list(DTYPE_BITS))])
        shape = [rng.choice([1, 2, 3, 8]) for _ in range(rng.randrange(5))]
        if rng.random() < 0.1:
            shape.append(0)
        if DTYPE_BITS[dtype] % 8:
            shape.append(8)
        begin, end = end, end + prod(shape) * DTYPE_BITS[dtype] // 8
        found[f"{prefix}{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return found, rng.randbytes(end)


def _safetensors(rng: Random, tensors: dict[str, Any], data: bytes) -> bytes:
    """A file, its header damaged as a structure, then as text, or only written unusually."""
    entries: list[tuple[str, Any]] = list(tensors.items())
    if rng.random() < 0.3:
        entries.insert(
            rng.randrange(len(entries) + 1), ("__metadata__", {"format": "pt", "a": '"}'})
        )
    if rng.random() < 0.3:
        rng.shuffle(entries)
    if rng.random() < 0.5:
        for _ in several(rng):
            _damage_entries(rng, entries)
    parts = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries]
    text = "{" + rng.choice([", ", ",", " ,\n\t"]).join(parts) + "}" + " " * rng.choice([0, 0, 7])
    header = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        at = rng.randrange(len(header))
        header = rng.choice(
            [damaged_bytes(rng, header), header[:at] + rng.choice(FRAGMENTS) + header[at:]]
        )
    if rng.random() < 0.05:
        length = odd_number(rng, len(header)) % 2**64
        return length.to_bytes(8, "little") + header + data
    if rng.random() < 0.05:
        data = damaged_bytes(rng, data)
    return with_header(header, data)


def _damage_entries(rng: Random, entries: list[tuple[str, Any]]) -> None:
    at = rng.randrange(len(entries))
    name, entry = entries[at]
    what = rng.choice(["name", "twice", "drop", "field", "field", "number", "number", "shape"])
    if what == "name":
        entries[at] = rng.choice(NAMES), entry
    elif what == "twice":
        entries.append((name, entry))
    elif what == "drop" and len(entries) > 1:
        del entries[at]
    elif "shape" not in entry:
        entries[at] = name, {**entry, "b": rng.choice(VALUES)}
    elif what == "field":
        key = rng.choice(["dtype", "shape", "data_offsets", "more"])
        entries[at] = name, {**entry, key: rng.choice([*VALUES, *DTYPE_BITS])}
        if rng.random() < 0.2:
            del entries[at][1][key]
    elif what == "shape" and isinstance(entry["shape"], list):
        # Another shape of as many elements.
        shape = [*entry["shape"], *[1] * rng.choice([0, 1, 3, 9])]
        entries[at] = name, {**entry, "shape": rng.sample(shape, len(shape))}
    else:
        key = rng.choice(["shape", "data_offsets"])
        if isinstance(entry.get(key), list) and entry[key]:
            numbers = list(entry[key])
            place = rng.randrange(len(numbers))
            near = numbers[place] if isinstance(numbers[place], int) else 0
            numbers[place] = odd_number(rng, near)
            entries[at] = name, {**entry, key: numbers}


def _index(rng: Random, homes: dict[str, str]) -> bytes:
    weight_map: dict[str, Any] = dict(homes)
    if rng.random() < 0.4:
        name = rng.choice(list(weight_map))
        kind = rng.choice(["drop", "home", "name", "value", "more"])
        home = weight_map.pop(name)
        if kind == "home":
            weight_map[name] = rng.choice(list(homes.values()))
        elif kind == "name":
            weight_map[rng.choice(NAMES)] = home
        elif kind == "value":
            weight_map[name] = rng.choice([*VALUES, *NAMES, "/etc/passwd", "x.safetensors"])
        elif kind == "more":
            weight_map |= {name: home, "ghost": home}
    document: Any = {"metadata": {"total_size": odd_number(rng)}, "weight_map": weight_map}
    if rng.random() < 0.05:
        document = rng.choice([{"weight_map": rng.choice(VALUES)}, *VALUES])
    data = json.dumps(document).encode()
    return damaged_bytes(rng, data) if rng.random() < 0.1 else data
