"""Streaming writer of GGUF files: header first, then every tensor by name, in plan order."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from quantcli.errors import IntegrityError
from quantcli.gguf_file.atomic import AtomicFile, WrittenFile, publish
from quantcli.gguf_file.layout import Metadata, Slot, encode_header
from quantcli.gguf_file.part_file import PartFile, Run
from quantcli.gguf_file.reader import read_header
from quantcli.gguf_file.shards import Shard, plan_shards


class Writer:
    """Writes a model to `path`, or to its shards, as a context manager.

        with Writer(path, metadata, slots) as out:
            out.write("token_embd.weight", rows)    # once or in several calls, in slot order
            files = out.commit()

    Nothing is left behind unless `commit` returned. Equal arguments and data give equal bytes.
    Creating one raises like plan_shards, entering it like AtomicFile, `write` ResourceError for
    a full disk. Data that does not follow `slots` is a bug of the caller: RuntimeError.
    """

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        slots: Sequence[Slot],
        *,
        split_max_bytes: int | None = None,
        split_max_tensors: int | None = None,
        split_counts: Sequence[int] | None = None,
        force: bool = False,
    ) -> None:
        self.shards: list[Shard] = plan_shards(
            path,
            metadata,
            slots,
            max_bytes=split_max_bytes,
            max_tensors=split_max_tensors,
            counts=split_counts,
        )
        self._files = [AtomicFile(shard.path, force=force) for shard in self.shards]
        self._todo = [
            (file, entry)
            for file, shard in zip(self._files, self.shards, strict=True)
            for entry in shard.tensors
        ][::-1]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for file, shard in zip(self._files, self.shards, strict=True):
                stack.enter_context(file)
                file.write(shard.head)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, name: str, data: bytes | np.ndarray) -> None:
        """Append bytes (C-contiguous) to tensor `name`, which must be the first unfinished one."""
        file = self._due(name)
        self.add(name, file.content.write(file.size, data))

    def add(self, name: str, run: Run) -> None:
        """As `write`, of bytes that are already at their place (see `places`)."""
        file = self._due(name)
        file.add(run)
        end = self._todo[-1][1].offset + self._todo[-1][1].nbytes
        if file.size > end:
            raise RuntimeError(f"tensor {name!r}: {file.size - end} bytes too many")
        if file.size == end:
            self._todo.pop()

    def places(self) -> dict[str, tuple[PartFile, int]]:
        """Where each unfinished tensor begins, for other processes to write there."""
        return {entry.name: (file.content, entry.offset) for file, entry in reversed(self._todo)}

    def _due(self, name: str) -> AtomicFile:
        """The file of tensor `name`, filled up to where its next bytes go."""
        if not self._todo or self._todo[-1][1].name != name:
            expected = self._todo[-1][1].name if self._todo else "nothing"
            raise RuntimeError(f"tensor {name!r} written where {expected!r} is due")
        file, entry = self._todo[-1]
        if file.size < entry.offset:
            file.write(bytes(entry.offset - file.size))  # the padding of the tensor before
        return file

    def commit(self, advance: Callable[[int], object] = abs) -> list[WrittenFile]:
        """See the function `commit`, for several writers."""
        return commit([self], advance)[0]

    def verify(self, advance: Callable[[int], object]) -> list[AtomicFile]:
        """All files, compared on disk with what was written. Raises IntegrityError."""
        if self._todo:
            raise RuntimeError(f"tensor {self._todo[-1][1].name!r} is incomplete")
        for file, shard in zip(self._files, self.shards, strict=True):
            file.write(bytes(shard.size - file.size))
            file.verify(advance)
            header = read_header(file.part)
            if encode_header(header.metadata, list(header.tensors.values())) != shard.head:
                raise IntegrityError(f"{shard.path}: the header reads back differently")
        return self._files


def commit(
    writers: Sequence[Writer], advance: Callable[[int], object] = abs
) -> list[list[WrittenFile]]:
    """Verify what is on disk, then make the files of all writers, in one directory, final together.

    `advance` hears of bytes verified. Raises IntegrityError if the disk returns anything else than
    what was written.
    """
    files = [writer.verify(advance) for writer in writers]
    written = iter(publish([file for group in files for file in group]))
    return [[next(written) for _ in group] for group in files]
