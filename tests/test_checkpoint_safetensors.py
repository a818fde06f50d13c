"""Broken and hostile safetensors files: one line, the right class, and bounded cost."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from broken import describe, refusal, safetensors, two_tensors, with_header, write_single
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli.checkpoint import open_checkpoint
from quantcli.checkpoint.safetensors import HEADER_LIMIT, parse_header
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError

HEADER, DATA = describe(two_tensors())


def header_with(**changes: object) -> bytes:
    """The valid file, but tensor a.weight described with `changes`."""
    header = {**HEADER, "a.weight": HEADER["a.weight"] | changes}
    return with_header(json.dumps(header).encode(), DATA)


def named(name: str) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return with_header(json.dumps({name: entry}).encode(), bytes(4))


def one(text: str) -> bytes:
    return with_header(text.encode(), bytes(4))


F32_1 = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BROKEN = {
    "empty": (b"", "only 0 bytes"),
    "seven bytes": (b"1234567", "only 7 bytes"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", "18446744073709551615"),
    "length over the limit": ((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}", "is the limit"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b"{}", "ends inside its header"),
    "not UTF-8, name": (with_header(b'{"a\xff":' + F32_1.encode() + b"}", bytes(4)), "not UTF-8"),
    "not UTF-8, metadata": (with_header(b'{"__metadata__":{"a":"\xff"}}'), "not UTF-8"),
    "broken JSON": (one('{"a":' + F32_1), "not valid JSON"),
    "trailing comma": (one('{"a":' + F32_1 + ",}"), "not valid JSON"),
    "two objects": (one('{"a":' + F32_1 + "}{}"), "goes on after its end"),
    "a list": (one("[1,2]"), "not a JSON object"),
    "empty header": (with_header(b""), "not a JSON object"),
    "deep": (with_header(b'{"a":' + b"[" * 100_000), "describes a tensor by no object"),
    "deep objects": (with_header(b'{"a":' * 100_000), "describes a tensor by no object"),
    "deep shape": (
        one('{"a":{"dtype":"F32","shape":' + "[" * 4000 + ',"data_offsets":[0,4]}}'),
        "not valid JSON",
    ),
    "duplicate tensor": (one('{"a":' + F32_1 + ',"a":' + F32_1 + "}"), "'a' twice"),
    "duplicate, escaped": (one('{"a":' + F32_1 + ',"\\u0061":' + F32_1 + "}"), "'a' twice"),
    "duplicate field": (
        one('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        "duplicate key",
    ),
    "overlap": (
        with_header(
            json.dumps(HEADER | {"c": {**HEADER["b.weight"], "data_offsets": [24, 44]}}).encode(),
            DATA,
        ),
        "overlaps",
    ),
    "hole": (
        with_header(
            json.dumps(
                HEADER | {"b.weight": {**HEADER["b.weight"], "data_offsets": [28, 48]}}
            ).encode(),
            DATA + bytes(4),
        ),
        "'b.weight' follows a hole",
    ),
    "hole at the start": (one('{"a":' + F32_1.replace("[0,4]", "[4,8]") + "}"), "follows a hole"),
    "trailing bytes": (safetensors(two_tensors()) + b"xyz", "3 bytes after the last tensor"),
    "two bytes short": (safetensors(two_tensors())[:-2], "2 bytes short"),
    "shape x dtype": (header_with(shape=[3, 5]), "needs 30 bytes, not 24"),
    "negative size": (header_with(shape=[-3, -4]), "[-3, -4]"),
    "product overflows": (header_with(shape=[1 << 33, 1 << 33]), "needs"),
    "0 x 2^63": (header_with(shape=[0, 1 << 63]), "9223372036854775808"),
    "rank 1000": (header_with(shape=[1] * 1000), "up to 8 sizes"),
    "rank 9": (header_with(shape=[3, 4, 1, 1, 1, 1, 1, 1, 1]), "up to 8 sizes"),
    "size is a bool": (header_with(shape=[True, 12]), "[True, 12]"),
    "size is a float": (header_with(shape=[3.0, 4]), "[3.0, 4]"),
    "shape is no list": (header_with(shape=12), "shape 12"),
    "huge number": (header_with(shape=[10**4000]), "up to 8 sizes"),
    "offsets reversed": (header_with(data_offsets=[24, 0]), "data_offsets [24, 0]"),
    "offsets negative": (header_with(data_offsets=[-24, 0]), "data_offsets [-24, 0]"),
    "three offsets": (header_with(data_offsets=[0, 24, 24]), "data_offsets"),
    "unknown dtype": (header_with(dtype="F13"), "unknown dtype 'F13'"),
    "dtype is no string": (header_with(dtype=["F32"]), "unknown dtype"),
    "extra field": (header_with(more=1), "needs exactly"),
    "field missing": (one('{"a":{"dtype":"F32","shape":[1]}}'), "needs exactly"),
    "metadata with a number": (one('{"__metadata__":{"a":1},"a":' + F32_1 + "}"), "of strings"),
    "metadata is a list": (one('{"__metadata__":[],"a":' + F32_1 + "}"), "no object"),
    "name empty": (named(""), "''"),
    "name with escape codes": (named("\x1b[2Ja"), "'\\x1b[2Ja'"),
    "name with a lone surrogate": (named("\ud800"), "'\\ud800'"),
    "name is a path": (named("../../etc/passwd"), "'../../etc/passwd'"),
    "name too long": (named("n" * 600), "name over 512 bytes"),
    "no tensors": (with_header(b"{}"), "no tensors"),
    "metadata only": (with_header(b'{"__metadata__":{"format":"pt"}}'), "no tensors"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "ZIP": (b"PK\x03\x04" + bytes(40), "ZIP archive"),
    "pickle": (b"\x80\x02}q\x00X\x05\x00\x00\x00", "pickle"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(16), "GGUF file"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_refused_with_one_line(case: str, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    message = refusal(write_single(tmp_path / "model", content), BadInputError)
    assert "'model.safetensors'" in message
    assert words in message


def test_valid_file_is_accepted_whatever_its_spacing_and_order(tmp_path: Path) -> None:
    entries = list(HEADER.items())
    header = json.dumps({"__metadata__": {"k": '"}{'}, **dict(reversed(entries))}, indent=3)
    content = with_header(f" {header}  \n ".encode(), DATA)
    checkpoint = open_checkpoint(str(write_single(tmp_path / "model", content)))
    assert checkpoint.tensors["a.weight"].shape == (3, 4)
    np.testing.assert_array_equal(checkpoint.raw("a.weight"), two_tensors()["a.weight"])


def test_scalar_and_empty_tensors_are_accepted(tmp_path: Path) -> None:
    tensors = {"e": np.zeros((0, 3), np.float32), "s": np.float32(2.5).reshape(())}
    checkpoint = open_checkpoint(str(write_single(tmp_path / "m", safetensors(tensors))))
    assert checkpoint.float32("e").shape == (0, 3)
    assert checkpoint.float32("s") == 2.5


@pytest.mark.parametrize(
    ("dtype", "hint"), [("I8", True), ("F8_E4M3", True), ("F64", False), ("BOOL", True)]
)
def test_dtypes_that_are_no_weights_open_but_cannot_be_used(
    dtype: str, hint: bool, tmp_path: Path
) -> None:
    size = 8 if dtype == "F64" else 1
    entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}
    content = with_header(json.dumps({"q": entry}).encode(), bytes(2 * size))
    checkpoint = open_checkpoint(str(write_single(tmp_path / "m", content)))
    for use in (checkpoint.weight, checkpoint.raw, checkpoint.float32):
        with pytest.raises(UnsupportedError, match=f"'q': {dtype} is not supported") as caught:
            use("q")
        assert ("quantized checkpoint?" in str(caught.value)) is hint


_FRAGMENTS = st.sampled_from(
    [*'{}[]",:\\abé04 \x00', "-1", "1e9", "null", "\\u00", F32_1, '"a":' + F32_1]
    + [f'"{word}"' for word in ("dtype", "F32", "shape", "data_offsets", "__metadata__")]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_FRAGMENTS, max_size=30).map("".join), st.integers(0, 12))
def test_any_header_is_parsed_or_refused(text: str, data_bytes: int) -> None:
    header = text.encode()
    try:
        parsed = parse_header(header, 8 + len(header) + data_bytes, "'f'")
    except QuantcliError:
        return
    # Whatever is accepted means the same to a real JSON parser.
    expected = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
    assert {name: list(t.shape) for name, t in parsed.tensors.items()} == {
        name: entry["shape"] for name, entry in expected.items()
    }
    assert sum(tensor.nbytes for tensor in parsed.tensors.values()) == data_bytes


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_any_damage_to_a_valid_header_is_survived(at: int, patch: bytes) -> None:
    header = bytearray(json.dumps(HEADER).encode())
    header[at % len(header) : at % len(header) + len(patch)] = patch
    with suppress(QuantcliError):
        parse_header(bytes(header), 8 + len(header) + len(DATA), "'f'")


HOSTILE = {
    "600k empty tensors": """b'{' + b','.join(
        b'"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(600000))""",
    "deep": "b'{\"a\":' + b'[' * LIMIT",
    "wide metadata": 'b\'{"__metadata__":{"a":"\' + b\'\\\\n\' * (LIMIT // 2)',
    "blanks": "b'{' + b' ' * LIMIT",
    "escapes": "b'{\"' + b'\\\\n' * (LIMIT // 2)",
    "wide text": "'{\"__metadata__\":{\"a\":\"'.encode() + b'a' * LIMIT + '\\U0001f600'.encode()",
}
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from quantcli.checkpoint.safetensors import HEADER_LIMIT, SafetensorsFile
from quantcli.errors import BadInputError
from pathlib import Path
try:
    SafetensorsFile(Path(sys.argv[1]), "f.safetensors")
except BadInputError:
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
    print(peak.split()[1])
"""


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_costs_little_memory(case: str, tmp_path: Path) -> None:
    header = eval(HOSTILE[case], {"LIMIT": HEADER_LIMIT - 100})[:HEADER_LIMIT]
    (tmp_path / "f.safetensors").write_bytes(with_header(header))
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 256 << 10
