"""A hub model's weights as they come over the network: hashed, handed on, and stored nowhere.

Each weight file is read once, whole and in its own order, so that its SHA-256 can be compared with
what the hub announces. Where the connection breaks, it goes on by a Range request.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from quantcli.checkpoint.files import show
from quantcli.checkpoint.hub_calls import call, host
from quantcli.checkpoint.remote_file import RemoteFile, hasher
from quantcli.checkpoint.safetensors import Header, parse_header, to_float32
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import IntegrityError, NetworkError

_CHUNK = 1 << 20

Read = Callable[[int], bytes]  # so many next bytes


class Rows:
    """What a process has of the tensor in work: the rows of a piece, as stored."""

    value: np.ndarray | None = None


class StreamedWeights:
    """Weights of which no more is here than `rows` holds."""

    def __init__(
        self, tensors: Mapping[str, SourceTensor], homes: Mapping[str, str], rows: Rows
    ) -> None:
        self._tensors, self.homes, self._rows = tensors, homes, rows

    def raw(self, name: str) -> np.ndarray:
        """Not to be had: the tensor is not here as a whole."""
        raise RuntimeError(f"{name!r} is streamed")

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """The rows that were put into `rows` before, which are those asked for."""
        if self._rows.value is None:
            raise RuntimeError(f"{name!r} is streamed")
        return to_float32(self._rows.value, self._tensors[name].dtype)


class HubStream:
    """All weight files of one commit, to be read once."""

    def __init__(
        self, repo_id: str, commit: str, shards: Sequence[tuple[RemoteFile, Header]]
    ) -> None:
        self.rows = Rows()
        self._repo_id, self._commit, self._shards = repo_id, commit, shards

    def tensors(self) -> Iterator[tuple[SourceTensor, Read]]:
        """Every tensor in stored order, and what reads its bytes until the next one is asked for.

        What is left unread is skipped. After the last tensor all files are verified.

        Raises: AccessError, NetworkError, IntegrityError.
        """
        for file, header in self._shards:
            with ExitStack() as connection:
                remote = _RemoteStream(self._repo_id, self._commit, file, connection)
                label = show(file.name)
                begin = file.size - sum(tensor.nbytes for tensor in header.tensors.values())
                if parse_header(remote.read(begin)[8:], file.size, label) != header:
                    raise IntegrityError(f"{label} changed while it was read: run again")
                for name in sorted(header.tensors, key=header.begins.__getitem__):
                    tensor = header.tensors[name]
                    end = header.begins[name] + tensor.nbytes
                    yield tensor, remote.read
                    while remote.position < end:
                        remote.read(min(_CHUNK, end - remote.position))
                remote.verify()


class _RemoteStream:
    """One file, read from its begin to its end, whatever happens to the connection."""

    def __init__(self, repo_id: str, commit: str, file: RemoteFile, connection: ExitStack) -> None:
        self.position = 0  # of the next byte that `read` returns
        self._repo_id, self._file, self._connection = repo_id, file, connection
        self._url = hf_hub_url(repo_id, file.name, revision=commit)
        self._sha = hasher(file) if file.digest is not None else hashlib.sha256()
        self._chunks: Iterator[bytes] | None = None
        self._buffer = bytearray()

    def read(self, count: int) -> bytes:
        """The next `count` bytes of the file. Raises AccessError, NetworkError."""
        call(self._repo_id, partial(self._receive, count))
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        self.position += count
        return data

    def verify(self) -> None:
        """Compare the hash of all that came with what the hub announces. Raises IntegrityError."""
        found = self._sha.hexdigest()
        if self._file.digest not in (None, found):
            raise IntegrityError(
                f"{show(self._file.name)} was damaged on its way: its hash is {found}, the hub"
                f" announces {self._file.digest}; no output was kept, run again"
            )

    def _receive(self, count: int) -> None:
        """Fill the buffer; what came before a failure stays for the next attempt."""
        try:
            while len(self._buffer) < count:
                received = self.position + len(self._buffer)
                if self._chunks is None:
                    self._chunks = self._open(received)
                chunk = next(self._chunks, b"")[: self._file.size - received]
                if not chunk:
                    raise ConnectionError("the answer is short")
                self._sha.update(chunk)
                self._buffer += chunk
        except BaseException:
            self._chunks = None
            self._connection.close()
            raise

    def _open(self, start: int) -> Iterator[bytes]:
        wanted = {"range": f"bytes={start}-{self._file.size - 1}", "accept-encoding": "identity"}
        response = self._connection.enter_context(
            http_stream_backoff(
                "GET",
                self._url,
                headers=build_hf_headers() | wanted,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                max_retries=0,
            )
        )
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            raise NetworkError(
                f"{host()} does not go on within {show(self._file.name)}: leave --stream out"
            )
        return iter(response.iter_bytes())  # as they come: what breaks off loses none
