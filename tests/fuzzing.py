"""What must hold for any input: our errors only, and what is accepted is read as others read it.

`Trial` makes input `number` of a reader and a seed, writes it, and checks it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import gguf
import mutated_gguf
import mutated_safetensors
import numpy as np
import safetensors

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import QuantcliError, UnsupportedError
from quantcli.gguf_file import read_header, read_tensor

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# What gguf-py raises for files that it cannot read, among them some that llama.cpp can.
NOT_READ = (ValueError, KeyError, IndexError, TypeError, OverflowError)


@dataclass(frozen=True)
class Trial:
    """One input of one reader."""

    reader: str
    seed: int
    number: int

    def write(self, folder: Path) -> Path:
        """Put the input into the empty `folder`; return what is to be opened."""
        return WRITERS[self.reader](Random(f"{self.seed} {self.reader} {self.number}"), folder)

    def accepted(self, folder: Path) -> bool:
        """Write the input, try it, remove it unless it offends; tell whether the reader took it.

        Raises whatever a reader must not raise, AssertionError where it reads something wrong.
        """
        folder.mkdir()
        path = self.write(folder)
        taken = True
        try:
            CHECKS[self.reader](path)
        except QuantcliError as error:
            line = str(error)
            assert line.isprintable(), "not one printable line"
            assert len(line) < 400 + 2 * len(str(path)), "a line too long to read"
            taken = False
        shutil.rmtree(folder)
        return taken


def write_checkpoint(rng: Random, folder: Path) -> Path:
    """The files of a checkpoint."""
    for name, content in mutated_safetensors.checkpoint(rng).items():
        (folder / name).write_bytes(content)
    return folder


def write_gguf(rng: Random, folder: Path) -> Path:
    """One GGUF file."""
    path = folder / "x.gguf"
    path.write_bytes(mutated_gguf.gguf(rng))
    return path


def check_checkpoint(folder: Path) -> None:
    """Open it and read every tensor; compare with a JSON parser, and with safetensors."""
    checkpoint = open_checkpoint(str(folder))
    expected: dict[str, tuple[str, list[int], bytes]] = {}
    for name in opened(folder):
        expected |= described((folder / name).read_bytes())
    assert expected.keys() == checkpoint.tensors.keys(), "other tensors than in the header"
    for name, tensor in checkpoint.tensors.items():
        dtype, shape, data = expected[name]
        assert (tensor.dtype, list(tensor.shape), tensor.nbytes) == (dtype, shape, len(data))
        if dtype not in FLOATS:
            refuse_to_read(lambda name=name: checkpoint.raw(name))
            continue
        raw = checkpoint.raw(name)
        assert (raw.dtype, list(raw.shape), raw.tobytes()) == (FLOATS[dtype], shape, data)
        values = checkpoint.float32(name)
        assert (values.dtype, values.shape) == (np.float32, raw.shape)


def opened(folder: Path) -> set[str]:
    """The files of weights: those that the index names, if there is one, and no others."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return set(json.loads(index.read_text())["weight_map"].values())
    return {path.name for path in folder.glob("*.safetensors")}


def described(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor, by the json module; checked by safetensors' reader."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert 0 <= begin <= end <= len(data), "a tensor outside the file"
        found[name] = entry["dtype"], entry["shape"], data[begin:end]
    try:
        theirs = safetensors.deserialize(content)
    except safetensors.SafetensorError:  # it refuses some types and blanks before the header
        return found
    assert {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in theirs} == found
    return found


def refuse_to_read(read: Callable[[], object]) -> None:
    """A tensor of a type that is no weight is refused when asked for."""
    try:
        read()
    except UnsupportedError:
        return
    raise AssertionError("a tensor was read that is no weight")


def check_gguf(path: Path) -> None:
    """Read header and tensors; compare with gguf-py where that reads the file."""
    header = read_header(path)
    content = path.read_bytes()
    ours = {}
    for name, entry in header.tensors.items():
        assert header.data_start <= entry.offset, "a tensor in the header"
        assert entry.offset + entry.nbytes <= len(content), "a tensor outside the file"
        ours[name] = read_tensor(entry).tobytes()
        assert ours[name] == content[entry.offset : entry.offset + entry.nbytes]
    try:
        reader = gguf.GGUFReader(path)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
    except NOT_READ:
        return
    theirs = {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    assert theirs == ours, "other tensors than gguf-py's"
    assert fields.keys() == header.metadata.keys()
    for name, value in fields.items():
        mine = header.metadata[name]
        assert np.array_equal(np.array(mine), np.array(value), equal_nan=is_float(mine)), name


def is_float(value: object) -> bool:
    """Whether a metadata value may hold NaN."""
    return isinstance(value, np.generic | np.ndarray) and value.dtype.kind == "f"


WRITERS: dict[str, Callable[[Random, Path], Path]] = {
    "safetensors": write_checkpoint,
    "gguf": write_gguf,
}
CHECKS: dict[str, Callable[[Path], None]] = {"safetensors": check_checkpoint, "gguf": check_gguf}
