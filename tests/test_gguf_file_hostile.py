"""Broken and hostile GGUF headers: one line, one documented error, bounded cost."""

import os
import struct
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError
from quantcli.gguf_file import Slot, parse_header, read_header, reader
from quantcli.gguf_file.layout import encode_header

F32, Q4_K = 0, 12
U8, U32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9
HUGE = 2**63


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def kv(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, n: int, values: bytes = b"") -> bytes:
    return kv(key, ARRAY, struct.pack("<IQ", kind, n) + values)


def tensor(name: str | bytes, ne: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def gguf(
    keys: list[bytes] = (), tensors: list[bytes] = (), data: int = 0, align: int = 32, **counts: int
) -> bytes:
    n_tensors, n_keys = counts.get("n_tensors", len(tensors)), counts.get("n_keys", len(keys))
    head = b"GGUF" + struct.pack("<IQQ", counts.get("version", 3), n_tensors, n_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head.ljust(-(-len(head) // align) * align, b"\0") + bytes(data)


ALIGNMENT = "general.alignment"
BAD = {
    "seven bytes": (b"GGUF\3\0\0", "7 bytes are too few"),
    "other magic": (b"PK\3\4" + bytes(40), "not a GGUF file"),
    "tensor count": (gguf(n_tensors=2**40), "1099511627776 tensors are more than"),
    "tensors beyond the end": (gguf(n_tensors=9999), "9999 tensors do not fit"),
    "key count": (gguf(n_keys=HUGE), "metadata keys are more than"),
    "keys beyond the end": (gguf(n_keys=60000), "60000 metadata keys do not fit"),
    "key length": (gguf([struct.pack("<Q", HUGE) + bytes(60)]), "text of 9223372036854775808"),
    "empty key": (gguf([kv("", U8, b"1")]), "metadata key '' is empty"),
    "escape codes in a key": (gguf([kv("a\x1b[2J", U8, b"1")]), r"metadata key 'a\x1b[2J'"),
    "duplicate key": (gguf([kv("k", U8, b"1")] * 2), "'k' appears twice"),
    "key not UTF-8": (gguf([kv(b"\xff", U8, b"1")]), "not UTF-8"),
    "text not UTF-8": (gguf([kv("k", STRING, text(b"\xc3"))]), "not UTF-8"),
    "item not UTF-8": (gguf([array("k", STRING, 2, text("a") + text(b"\xff"))]), "not UTF-8"),
    "item beyond the end": (
        gguf([array("k", STRING, 1, struct.pack("<Q", 99) + bytes(40))]),
        "truncated",
    ),
    "text beyond the end": (gguf([kv("k", STRING, struct.pack("<Q", 999))]), "truncated"),
    "value type": (gguf([kv("k", 13, bytes(8))]), "'k': unknown value type 13"),
    "bool of 2": (gguf([kv("k", BOOL, b"\2")]), "'k': a bool is neither 0 nor 1"),
    "bools of 2": (gguf([array("k", BOOL, 2, b"\1\2")]), "'k': a bool is neither 0 nor 1"),
    "nested array": (gguf([array("k", ARRAY, 1, bytes(12))]), "'k': an array of arrays"),
    "array type": (gguf([array("k", 99, 1, bytes(12))]), "'k': unknown value type 99"),
    "array length": (gguf([array("k", U8, 2**40)]), "1099511627776 items of 'k' are more than"),
    "array beyond the end": (gguf([array("k", U32, 99, bytes(40))]), "99 items of 'k' do not fit"),
    "the 49 bytes": (
        gguf(n_keys=1, align=1) + array("k", STRING, 2**56),
        "72057594037927936 items of 'k' are more than",
    ),
    "alignment type": (gguf([kv(ALIGNMENT, U8, b"\x20")]), "general.alignment is not of type u32"),
    "alignment 0": (gguf([kv(ALIGNMENT, U32, bytes(4))]), "general.alignment 0 is not a power"),
    "alignment 48": (gguf([kv(ALIGNMENT, U32, struct.pack("<I", 48))]), "48 is not a power"),
    "alignment 2^17": (gguf([kv(ALIGNMENT, U32, struct.pack("<I", 2**17))]), "is not a power"),
    "empty name": (gguf([], [tensor("", (1,))], 4), "tensor name '' is empty"),
    "escape codes in a name": (gguf([], [tensor("a\x1b", (1,))], 4), r"name 'a\x1b'"),
    "NUL in a name": (gguf([], [tensor("a\0b", (1,))], 4), r"name 'a\x00b'"),
    "name of 64 bytes": (gguf([], [tensor("n" * 64, (1,))], 4), "text of 64 bytes"),
    "five axes": (gguf([], [tensor("t", (1,) * 5)], 4), "'t': 5 axes"),
    "2^32-1 axes": (gguf([], [text("t") + b"\xff" * 4 + bytes(9)]), "'t': 4294967295 axes"),
    "empty axis": (gguf([], [tensor("t", (HUGE, 0))]), "'t': an axis of length 0"),
    "overflowing shape": (gguf([], [tensor("t", (2**63, 2**63))], 4), "'t' ends at byte"),
    "row not divisible": (gguf([], [tensor("t", (100,), Q4_K)], 144), "'t': shape (100,) cannot"),
    "no axes for a block type": (gguf([], [tensor("t", (), Q4_K)], 144), "'t': shape () cannot"),
    "duplicate tensor": (
        gguf([], [tensor("t", (8,)), tensor("t", (8,), F32, 32)], 64),
        "'t' appears twice",
    ),
    "first offset": (gguf([], [tensor("t", (8,), F32, 32)], 64), "'t': offset 32, expected 0"),
    "overlap": (
        gguf([], [tensor("t", (8,)), tensor("u", (8,), F32, 0)], 64),
        "'u': offset 0, expected 32",
    ),
    "hole": (
        gguf([], [tensor("t", (8,)), tensor("u", (8,), F32, 64)], 96),
        "'u': offset 64, expected 32",
    ),
    "unaligned": (
        gguf([], [tensor("t", (9,)), tensor("u", (8,), F32, 36)], 96),
        "'u': offset 36, expected 64",
    ),
    "data beyond the end": (gguf([], [tensor("t", (9,))], 32), "'t' ends at byte"),
    "no data": (gguf([], [tensor("t", (1,))]), "truncated?"),
}
UNSUPPORTED = {
    "version 1": (gguf(version=1), "version 1 is not supported"),
    "version 4": (gguf(version=4), "version 4 is not supported"),
    "big-endian": (gguf(version=3 << 24), "big-endian byte order is not supported"),
    "tensor type": (gguf([], [tensor("t", (32,), 4)], 99), "'t': unknown ggml type 4"),
    "huge tensor type": (gguf([], [tensor("t", (1,), 2**32 - 1)], 99), "unknown ggml type 429"),
}


def assert_one_line(error: QuantcliError, path: Path, message: str) -> None:
    line = str(error)
    assert line.startswith(f"{path}: ")
    assert message in line
    assert line.isprintable()  # no line breaks, no escape codes
    assert len(line) < 300 + len(str(path))


@pytest.mark.parametrize("name", [*BAD, *UNSUPPORTED])
def test_one_line_that_names_the_fault(tmp_path, name):
    data, message = (BAD | UNSUPPORTED)[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(BadInputError if name in BAD else UnsupportedError) as caught:
        read_header(path)
    assert_one_line(caught.value, path, message)


def test_the_bytes_around_the_faults_are_fine(tmp_path):
    """The builder makes valid files, so that each fault above is the only one."""
    keys = [array("k", STRING, 2, text("a") + text("")), kv("b", BOOL, b"\1")]
    tensors = [tensor("n" * 63, (9,)), tensor("u", (256, 2), Q4_K, 64), tensor("s", (), F32, 352)]
    path = tmp_path / "good.gguf"
    path.write_bytes(gguf(keys, tensors, 352 + 4))
    header = read_header(path)
    assert header.metadata == {"k": ["a", ""], "b": True}
    assert [entry.shape for entry in header.tensors.values()] == [(9,), (2, 256), ()]


def test_every_cut_of_a_good_header_is_refused():
    slots = [Slot("a", (3, 5), F32), Slot("b", (2, 256), Q4_K)]
    metadata = {"k": ["x", "yy"], "n": np.arange(3, dtype=np.uint64), "f": True}
    head = encode_header(metadata, slots)
    size = len(head) + 64 + 288
    parse_header(head, size, Path("whole"))
    content = head.rstrip(b"\0")
    for cut in range(len(content) - 8):  # the last offset may end in zeros
        with pytest.raises(BadInputError):
            parse_header(head[:cut], cut, Path("cut"))
    with pytest.raises(BadInputError, match="'b' ends at byte"):
        parse_header(head, size - 1, Path("cut"))


def test_limits_on_lengths(monkeypatch):
    monkeypatch.setattr(reader, "MAX_STRING_BYTES", 10)
    monkeypatch.setattr(reader, "MAX_ARRAY", 5)
    monkeypatch.setattr(reader, "MAX_STRINGS", 4)
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 200)

    def parse(*keys: bytes):
        data = gguf(list(keys))
        return parse_header(data, len(data), Path("f")).metadata

    assert parse(kv("k", STRING, text("x" * 10))) == {"k": "x" * 10}
    with pytest.raises(BadInputError, match="text of 11 bytes"):
        parse(kv("k", STRING, text("x" * 11)))
    assert len(parse(array("k", U8, 5, bytes(5)))["k"]) == 5
    with pytest.raises(BadInputError, match="6 items of 'k' are more than the limit of 5"):
        parse(array("k", U8, 6, bytes(6)))
    assert parse(array("k", STRING, 4, text("") * 4)) == {"k": [""] * 4}
    with pytest.raises(BadInputError, match="text of 11 bytes"):
        parse(array("k", STRING, 1, text("x" * 11)))
    with pytest.raises(BadInputError, match="'l': more than 4 texts"):
        parse(array("k", STRING, 3, text("") * 3), array("l", STRING, 2, text("") * 2))
    with pytest.raises(BadInputError, match="header longer than 200 bytes"):
        parse(*[kv(f"k{i}", U8, b"1") for i in range(20)])


def test_fifo_device_and_socket_are_refused_without_blocking(tmp_path):
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(BadInputError, match="not a regular file"):
            read_header(path)


def test_greedy_files_stay_within_256_mb(tmp_path):
    """The dearest headers the limits allow, parsed under a memory limit."""
    full = reader.MAX_STRINGS
    many = gguf([array("k", STRING, full, text("xy") * full)])
    wide = gguf([kv("k", STRING, text("x" * (16 * 2**20 - 4) + "🦙"))])
    keys = gguf([kv(f"k{i}", U8, b"1") for i in range(reader.MAX_KEYS)])
    n = reader.MAX_TENSORS
    tensors = gguf([], [tensor(f"t{i}", (8,), F32, 32 * i) for i in range(n)], 32 * n)
    files = []
    for name, data in {"many": many, "wide": wide, "keys": keys, "tensors": tensors}.items():
        files.append(tmp_path / name)
        files[-1].write_bytes(data)
    code = """
        import resource, sys
        from pathlib import Path
        from quantcli.gguf_file import read_header
        limit = int(sys.argv[1])
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
        for path in sys.argv[2:]:
            header = read_header(Path(path))
            print(len(header.metadata) + len(header.tensors))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(256 * 2**20), *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1", "1", str(reader.MAX_KEYS), str(n)]


GOOD = encode_header(
    {"a": "text", "b": ["x", "y"], "c": np.arange(4, dtype=np.int32), "d": True},
    [Slot("t", (2, 256), Q4_K), Slot("u", (3, 4), F32)],
)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic(body):
    data = b"GGUF\3\0\0\0" + body
    with suppress(QuantcliError):
        parse_header(data, len(data), Path("fuzz"))


@settings(max_examples=800, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_flipped_bytes_of_a_good_header(changes, tail):
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    size = len(GOOD) + tail
    with suppress(QuantcliError):
        header = parse_header(bytes(data), size, Path("fuzz"))
        for entry in header.tensors.values():
            assert header.data_start <= entry.offset
            assert entry.offset + entry.nbytes <= size
