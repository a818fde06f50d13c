"""What the tests of the sixty bad inputs share: cases, and ways to damage a good checkpoint."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from broken import with_header
from conftest import Call
from tiny_models import build

Damage = Callable[[Path], object]
WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"


class Case(NamedTuple):
    """What is done to a good checkpoint, the exit code, and words of the one line that follows."""

    damage: Damage
    code: int
    words: list[str]


# By number in the list of sixty (test_bad_inputs.py) and a few words.
Cases = dict[tuple[int, str], Case]


def each(cases: Cases) -> pytest.MarkDecorator:
    """Parametrize `case` with every case, its number first in the test's name."""
    names = [f"{number} {words}" for number, words in cases]
    return pytest.mark.parametrize("case", cases.values(), ids=names)


@cache
def _whole(variant: str) -> TemporaryDirectory[str]:
    folder = TemporaryDirectory(prefix="checkpoint-")
    build(Path(folder.name), "llama", variant)
    return folder


def copy(folder: Path, variant: str = "gqa") -> Path:
    """A good tiny Llama; "gqa" is one BF16 file, "tied" three shards, "odd" has rows of 96."""
    shutil.copytree(_whole(variant).name, folder)
    return folder


def assert_refused(call: Call, source: Path, case: Case, *arguments: str | Path) -> None:
    """Convert `source` after its damage: one line, and nothing left anywhere."""
    case.damage(source)
    before = sorted(source.rglob("*"))
    found = call("convert", source, *(arguments or ("--type", "Q4_0,Q8_0")))
    assert found.failed_with(case.code, *case.words)
    assert sorted(source.rglob("*")) == before


# --- damage --------------------------------------------------------------------------------------


def replace_file(name: str, content: bytes) -> Damage:
    """Write a file."""
    return lambda folder: (folder / name).write_bytes(content)


def weights(content: bytes) -> Damage:
    """Put other bytes in the place of the weights."""
    return replace_file(WEIGHTS, content)


def remove(*names: str) -> Damage:
    """Delete files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def in_place_of(name: str, make: Callable[[Path], object]) -> Damage:
    """Put something in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def link_outside(path: Path) -> None:
    """A symbolic link to a whole file in another folder."""
    target = path.parent.parent / "elsewhere"
    target.write_bytes(b"elsewhere")
    path.symlink_to(target)


NO_FILES = {"symlink": link_outside, "FIFO": os.mkfifo, "directory": os.mkdir}


def edit_json(name: str, **changes: object) -> Damage:
    """Set keys of a JSON side file; None removes a key."""

    def damage(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text()) if path.exists() else {}
        document |= {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            document.pop(key, None)
        path.write_text(json.dumps(document))

    return damage


def config(**changes: object) -> Damage:
    """Set keys of config.json."""
    return edit_json("config.json", **changes)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_tensors(change: Callable[[dict], object], name: str = WEIGHTS) -> Damage:
    """Change the header of a safetensors file, keeping the data."""

    def damage(folder: Path) -> None:
        header, data = parts(folder / name)
        change(header)
        (folder / name).write_bytes(with_header(json.dumps(header).encode(), data))

    return damage


def tensor(**fields: object) -> Damage:
    """Change the description of one tensor."""
    return with_tensors(lambda header: header[Q].update(fields))


def renamed(name: str) -> Damage:
    """Give one tensor another name."""
    return with_tensors(lambda header: header.update({name: header.pop(Q)}))


def header_text(change: Callable[[bytes], bytes]) -> Damage:
    """Change the header of the weights as text."""

    def damage(folder: Path) -> None:
        header, data = parts(folder / WEIGHTS)
        (folder / WEIGHTS).write_bytes(with_header(change(json.dumps(header).encode()), data))

    return damage


def cut(n: int, name: str = WEIGHTS) -> Damage:
    """Take bytes off the end of a file, or put some there if negative."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-n] if n > 0 else data + bytes(-n))

    return damage


def put_weight(name: str, bits: int, at: int = 3) -> Damage:
    """Overwrite one BF16 weight of a tensor."""

    def damage(folder: Path) -> None:
        header, data = parts(folder / WEIGHTS)
        changed = bytearray(data)
        struct.pack_into("<H", changed, header[name]["data_offsets"][0] + 2 * at, bits)
        (folder / WEIGHTS).write_bytes(with_header(json.dumps(header).encode(), bytes(changed)))

    return damage


def remap(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the weight_map of the index."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index: Mapping[str, Any] = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage
