"""Bad inputs 1 to 25, end to end: the file of weights."""

import json
from pathlib import Path

from bad_inputs import (
    WEIGHTS,
    Case,
    Cases,
    Q,
    assert_refused,
    copy,
    cut,
    each,
    header_text,
    renamed,
    tensor,
    weights,
    with_tensors,
)
from broken import with_header
from conftest import Call

from quantcli.checkpoint.safetensors import HEADER_LIMIT

K = Q.replace("q_proj", "k_proj")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SHORT_NAMES = (a + b + c + d for a in DIGITS for b in DIGITS for c in DIGITS for d in DIGITS)
EMPTY = '"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


def many_empty_tensors(folder: Path) -> None:
    """600,000 of them, in a header just below the limit on headers."""
    text = ",".join(EMPTY % name for name, _ in zip(SHORT_NAMES, range(600_000), strict=False))
    header = b"{%b}" % text.encode()
    assert len(header) < HEADER_LIMIT
    weights(with_header(header))(folder)


def shifted(n: int) -> Case:
    """Move the last tensor `n` bytes: below 0 it overlaps, above there is a hole."""

    def move(header: dict) -> None:
        last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
        header[last]["data_offsets"] = [at + n for at in header[last]["data_offsets"]]

    what = "overlaps" if n < 0 else "follows a hole"
    return Case(with_tensors(move), 3, [WEIGHTS, "tensor 'lm_head.weight'", what])


def twice(header: bytes) -> bytes:
    """The header with its first tensor again at the end."""
    entries = json.loads(header)
    entry = json.dumps({Q: entries[Q]})[1:-1]
    return header[:-1] + b", " + entry.encode() + b"}"


def refused(damage, *words: str, code: int = 3) -> Case:
    """What the file of weights is refused for."""
    return Case(damage, code, [WEIGHTS, *words])


CASES: Cases = {
    (1, "empty file"): refused(weights(b""), "0 bytes"),
    (2, "seven bytes"): refused(weights(b"1234567"), "7 bytes"),
    (3, "header length 2^64-1"): refused(weights(b"\xff" * 8 + b"{}"), "18446744073709551615"),
    (4, "header length over the limit"): refused(
        weights((HEADER_LIMIT + 1).to_bytes(8, "little") + bytes(HEADER_LIMIT + 1)),
        str(HEADER_LIMIT + 1),
        str(HEADER_LIMIT),
    ),
    (5, "header beyond the end"): refused(
        weights((1000).to_bytes(8, "little") + b"{}"), "1000 bytes", "download it again"
    ),
    (6, "not UTF-8"): refused(header_text(lambda h: h.replace(b"q_proj", b"q_\xff", 1)), "UTF-8"),
    (7, "broken JSON"): refused(header_text(lambda h: h.replace(b":", b"", 1)), "not valid JSON"),
    (8, "root is a list"): refused(header_text(lambda h: b"[%b]" % h), "not a JSON object"),
    (9, "nesting 100k deep"): refused(
        header_text(lambda h: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"
    ),
    (9, "objects 100k deep"): refused(
        header_text(lambda h: b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "JSON"
    ),
    (10, "duplicate tensor"): refused(header_text(twice), Q, "twice"),
    (11, "overlap"): shifted(-32),
    (12, "hole"): shifted(32),
    (13, "trailing bytes"): refused(cut(-5), "5 bytes after the last tensor"),
    (14, "two bytes short"): refused(cut(2), "2 bytes short"),
    (15, "shape x dtype"): refused(tensor(shape=[256, 255]), Q, "[256, 255]", "131072"),
    (16, "negative axis"): refused(tensor(shape=[-256, -256]), Q, "[-256, -256]"),
    (17, "product beyond 64 bits"): refused(tensor(shape=[1 << 35, 1 << 35]), Q, "needs"),
    (18, "0 x 2^63"): refused(tensor(shape=[0, 1 << 63]), Q, "9223372036854775808"),
    (19, "rank 1000"): refused(tensor(shape=[1] * 1000), Q, "up to 8 sizes"),
    (20, "unknown dtype"): refused(tensor(dtype="F13"), Q, "'F13'"),
    (21, "integer weight"): Case(tensor(dtype="I16"), 4, [Q, "I16"]),
    (22, "metadata with a number"): refused(
        with_tensors(lambda h: h.update(__metadata__={"format": 1})), "__metadata__"
    ),
    (23, "empty name"): refused(renamed(""), "''"),
    (23, "escape codes in a name"): refused(renamed("\x1b[2J"), r"\x1b[2J"),
    (23, "path as a name"): refused(renamed("../../etc/passwd"), "../../etc/passwd"),
    (23, "name of 600 bytes"): refused(renamed("n" * 600), "name over 512 bytes"),
    # No family maps a name freely: what would be too long for GGUF has no place there at all.
    (23, "name over 63 bytes once mapped"): Case(
        renamed(f"model.layers.{'9' * 60}.self_attn.q_proj.weight"), 3, ["num_hidden_layers"]
    ),
    (24, "no tensors"): refused(header_text(lambda h: b"{}"), "no tensors"),
    (25, "600k empty tensors"): refused(many_empty_tensors, "more than 200000 tensors"),
}


@each(CASES)
def test_one_line_and_nothing_left(tmp_path: Path, call: Call, case: Case) -> None:
    assert_refused(call, copy(tmp_path / "source"), case)


def test_23_the_dull_name_of_a_tensor_too_many(tmp_path: Path, call: Call) -> None:
    """A name of 64 letters that GGUF could not hold is refused as none of the family's."""
    long = "n" * 64
    add = with_tensors(lambda h: h.update({long: dict(h[K], shape=[0], data_offsets=[0, 0])}))
    assert_refused(call, copy(tmp_path / "source"), Case(add, 4, [long, "no place"]))
