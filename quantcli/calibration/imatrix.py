"""Importance-matrix files: how strongly each input column of a weight is used.

Two formats, told apart by their first bytes (llama.cpp, tools/imatrix and common/imatrix-loader):

    GGUF    general.type "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size;
            per weight <name>.in_sum2 f32[n_expert, n] and <name>.counts f32[n_expert, 1]
    legacy  i32 n_entries; per entry i32 len, name, i32 ncall, i32 nval, f32[nval];
            then, optionally, i32 chunks, i32 len, data set name

Importance is the mean of x^2 over the tokens seen: in_sum2 / count. An expert that saw none gets
ones, so that its weights are quantized as without an imatrix.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from quantcli.errors import BadInputError
from quantcli.gguf_file import (
    Metadata,
    Slot,
    Writer,
    open_regular,
    parse_header,
    write_file,
)

MAX_FILE_BYTES = 2 << 30  # the largest mixtures of experts need about 1 GiB
MAX_ENTRIES = 200_000
FEW_TOKENS = 32  # say little about what an expert sees
MAX_EXPERTS = 1 << 16
_F32 = 0
_I32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Entry:
    """Statistics of one weight: sums of x^2, f32[n_expert, n], over `counts` tokens, f32[n_expert].

    Matrices of a stack that see all tokens have one count; their file's sums are in one row.
    The legacy format counts calls instead of tokens and has one row for all experts.
    """

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix; `name` is the file's name, without its folder."""

    entries: dict[str, Entry]
    datasets: list[str]
    chunks: int
    chunk_size: int
    name: str

    def importance(self, name: str, n: int, n_expert: int = 1) -> np.ndarray | None:
        """Importance of the columns of weight `name`, f32[n] or, for experts, f32[n_expert, n].

        None if the file has no entry for it. Raises BadInputError for an entry of another length.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.sums.size != n * n_expert:
            raise BadInputError(
                f"{self.name}: {entry.sums.size} values for {name!r:.80}, whose rows need "
                f"{n * n_expert}; use an imatrix made from this very model"
            )
        seen = entry.counts[:, None] > 0
        values = np.divide(
            entry.sums, entry.counts[:, None], out=np.ones_like(entry.sums), where=seen
        )
        return values.reshape(n) if n_expert == 1 else values.reshape(n_expert, n)


def unreached(imatrix: Imatrix, remedy: str) -> list[str]:
    """A warning, if the text of an imatrix reached some experts never or hardly."""
    stacks = {n: e.counts for n, e in imatrix.entries.items() if len(e.counts) > 1}
    hardly = sum(int((counts < FEW_TOKENS).sum()) for counts in stacks.values())
    if not hardly:
        return []
    never = sum(int((counts == 0).sum()) for counts in stacks.values())
    name, counts = min(stacks.items(), key=lambda item: item[1].min())
    return [
        f"{imatrix.name}: {hardly} of {sum(map(len, stacks.values()))} matrices of experts have "
        f"seen fewer than {FEW_TOKENS} tokens, {never} none at all (first expert "
        f"{int(counts.argmin())} of {name!r}), whose weights are rounded without importance: "
        + remedy
    ]


def read_imatrix(path: Path) -> Imatrix:
    """Read an imatrix file of either format; its values stay on disk until asked for.

    Raises AccessError (missing), BadInputError (truncated, not an imatrix, a value that is
    negative or not finite), UnsupportedError (a GGUF version we do not read).
    """
    with open_regular(path) as fd:
        size = os.fstat(fd).st_size
        if not 8 <= size <= MAX_FILE_BYTES:
            raise BadInputError(
                f"{path}: {size} bytes cannot be an imatrix (limit {MAX_FILE_BYTES})"
            )
        data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    return _read_gguf(path, data) if data[:4] == b"GGUF" else _Legacy(path, data).read()


def write_imatrix(
    path: Path, imatrix: Imatrix, *, legacy: bool = False, force: bool = False
) -> None:
    """Write an imatrix file, complete or not at all. Raises like gguf_file.AtomicFile."""
    if legacy:
        write_file(path, _encode_legacy(imatrix), force=force)
        return
    metadata: Metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": imatrix.datasets,
        "imatrix.chunk_count": np.uint32(imatrix.chunks),
        "imatrix.chunk_size": np.uint32(imatrix.chunk_size),
    }
    tensors = {}
    for name, entry in sorted(imatrix.entries.items()):
        # ggml does not store trailing axes of length 1.
        one = len(entry.counts) == 1
        tensors[f"{name}.in_sum2"] = entry.sums.reshape(-1) if one else entry.sums
        tensors[f"{name}.counts"] = entry.counts if one else entry.counts[:, None]
    slots = [Slot(name, data.shape, _F32) for name, data in tensors.items()]
    with Writer(path, metadata, slots, force=force) as out:
        for name, data in tensors.items():
            out.write(name, data.astype("<f4"))
        out.commit()


def _entry(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> Entry:
    """A checked entry; `sums` is flat, one equal share per count."""
    for what, values in (("value", sums), ("count", counts)):
        for start in range(0, values.size, 1 << 20):
            chunk = values[start : start + (1 << 20)]
            with np.errstate(invalid="ignore"):
                bad = ~((chunk >= 0) & (chunk < np.inf))  # a NaN is bad, too
            if bad.any():
                raise BadInputError(
                    f"{path}: {what} {chunk[bad][0]} in the entry of {name!r:.80}; "
                    "make the imatrix again"
                )
    if counts.size > MAX_EXPERTS or sums.size % counts.size:
        raise BadInputError(
            f"{path}: {sums.size} values with {counts.size} counts in the entry of {name!r:.80}"
        )
    return Entry(sums.reshape(counts.size, -1), np.rint(counts))


def _read_gguf(path: Path, data: mmap.mmap) -> Imatrix:
    header = parse_header(data, len(data), path)

    def floats(name: str) -> np.ndarray:
        tensor = header.tensors.get(name)
        if tensor is None or tensor.type_id != _F32:
            why = "missing" if tensor is None else "not of type F32"
            raise BadInputError(f"{path}: tensor {name!r:.80} is {why}; make the imatrix again")
        return np.frombuffer(data, "<f4", tensor.nbytes // 4, tensor.offset)

    entries: dict[str, Entry] = {}
    for tensor_name in header.tensors:
        name, _, what = tensor_name.rpartition(".")
        if what in ("in_sum2", "counts") and name not in entries:
            entries[name] = _entry(path, name, floats(f"{name}.in_sum2"), floats(f"{name}.counts"))
    if not entries:
        raise BadInputError(f"{path}: a GGUF file without importance entries; is it a model?")
    datasets = header.metadata.get("imatrix.datasets", [])
    chunks = header.metadata.get("imatrix.chunk_count", np.uint32(0))
    chunk_size = header.metadata.get("imatrix.chunk_size", np.uint32(0))
    if not isinstance(datasets, list):
        raise BadInputError(f"{path}: imatrix.datasets is not an array of texts")
    if not isinstance(chunks, np.uint32) or not isinstance(chunk_size, np.uint32):
        raise BadInputError(f"{path}: imatrix.chunk_count or imatrix.chunk_size is not of type u32")
    return Imatrix(entries, datasets, int(chunks), int(chunk_size), path.name)


class _Legacy:
    """Bounded reads from a legacy file, front to back; arrays are views of the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.pos = path, data, 0

    def read(self) -> Imatrix:
        entries: dict[str, Entry] = {}
        for _ in range(self.count("entries", 17, 1, MAX_ENTRIES)):
            name = self.text(self.count("bytes of a name", 1, 1, 1 << 10))
            if name in entries:
                self.fail(f"entry {name!r:.80} appears twice")
            ncall = self.i32()
            n = self.count(f"values for {name!r:.80}", 4, 1)
            sums = np.frombuffer(self.data, "<f4", n, self.take(4 * n))
            # Without a call count the values are means already.
            entries[name] = _entry(self.path, name, sums, np.array([max(ncall, 1)], np.float32))
        chunks, datasets = 0, []
        if self.pos < len(self.data):
            chunks = self.i32()
            if length := self.count("bytes of a data set name", 1, 0, 1 << 16):
                datasets = [self.text(length)]
        if self.pos < len(self.data):
            self.fail(f"{len(self.data) - self.pos} bytes after the end")
        return Imatrix(entries, datasets, max(chunks, 0), 0, self.path.name)

    def fail(self, why: str) -> NoReturn:
        raise BadInputError(f"{self.path}: not a whole imatrix: {why}; make it again")

    def take(self, n: int) -> int:
        start, self.pos = self.pos, self.pos + n
        if self.pos > len(self.data):
            self.fail(f"truncated at byte {len(self.data)}")
        return start

    def i32(self) -> int:
        return struct.unpack_from("<i", self.data, self.take(4))[0]

    def count(self, what: str, nbytes: int, least: int, most: int = _I32_MAX) -> int:
        n = self.i32()
        if not least <= n <= most or n * nbytes > len(self.data) - self.pos:
            self.fail(f"{n} {what} with {len(self.data) - self.pos} bytes left")
        return n

    def text(self, n: int) -> str:
        start = self.take(n)
        try:
            return self.data[start : self.pos].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"the text at byte {start} is not UTF-8")


def _encode_legacy(imatrix: Imatrix) -> bytes:
    """Calls are the tokens of the busiest expert in chunks, rounded up, as llama.cpp does."""
    out = [struct.pack("<i", len(imatrix.entries))]
    for name, entry in sorted(imatrix.entries.items()):
        tokens_per_call = max(imatrix.chunk_size, 1)
        ncall = min(max(1, -(-int(entry.counts.max()) // tokens_per_call)), _I32_MAX)
        counts = entry.counts.astype(np.float64)[:, None]
        scaled = np.divide(ncall, counts, out=np.zeros_like(counts), where=counts > 0)
        values = np.where(counts > 0, entry.sums * scaled, ncall).astype("<f4")
        encoded = name.encode("utf-8")
        out.append(struct.pack(f"<i{len(encoded)}sii", len(encoded), encoded, ncall, values.size))
        out.append(values.tobytes())
    dataset = imatrix.datasets[-1].encode("utf-8") if imatrix.datasets else b""
    out.append(
        struct.pack(f"<ii{len(dataset)}s", min(imatrix.chunks, _I32_MAX), len(dataset), dataset)
    )
    return b"".join(out)
