"""GGUF files and flags that cannot be converted: one line, a documented code, nothing left."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from gguf_sources import metadata, tensors, write
from test_gguf_file_hostile import BAD

from quantcli.errors import (
    AccessError,
    BadInputError,
    QuantcliError,
    UnsupportedError,
    UsageError,
)
from quantcli.gguf_file import read_header
from quantcli.planning import Job
from quantcli.planning.survey import survey


@pytest.mark.parametrize("name", BAD)
def test_broken_headers(tmp_path: Path, call: Call, name: str) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(BAD[name][0])
    done = call("convert", source)
    assert done.code in (BadInputError.exit_code, UnsupportedError.exit_code)
    assert done.failed_with(done.code, "x.gguf")


def keys(**changes: Any) -> Callable[[Path], Path]:
    """A file with other metadata; "__" stands for a dot, None takes a key away."""

    def make(folder: Path) -> Path:
        found = metadata() | {key.replace("__", "."): value for key, value in changes.items()}
        known = {key: value for key, value in found.items() if value is not None}
        return write(folder / "x.gguf", known, tensors())

    return make


def weights(name: str, value: float, kind: str = "F16") -> Callable[[Path], Path]:
    """A file with another value in one tensor."""

    def make(folder: Path) -> Path:
        path = write(folder / "x.gguf", metadata(), tensors(kind))
        data = bytearray(path.read_bytes())
        entry = read_header(path).tensors[name]
        stored = np.array([value], np.float16 if entry.type_id == 1 else np.float32).tobytes()
        data[entry.offset : entry.offset + len(stored)] = stored
        path.write_bytes(data)
        return path

    return make


def part(number: int, *, lose: int | None = None) -> Callable[[Path], Path]:
    """One of three parts, of which another is lost."""

    def make(folder: Path) -> Path:
        write(folder / "x.gguf", metadata(), tensors(), [13, 13, 13])
        if lose is not None:
            (folder / f"x-{lose:05}-of-00003.gguf").unlink()
        return folder / f"x-{number:05}-of-00003.gguf"

    return make


def no_tensors(folder: Path) -> Path:
    return write(folder / "x.gguf", metadata(), {})


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.gguf")
    return folder / "x.gguf"


BAD_INPUT, UNSUPPORTED = BadInputError.exit_code, UnsupportedError.exit_code
CASES: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "nothing there": (lambda folder: folder / "x.gguf", AccessError.exit_code, "cannot open"),
    "a pipe": (fifo, BAD_INPUT, "not a regular file"),
    "no tensors": (no_tensors, BAD_INPUT, "no tensors"),
    "no architecture": (keys(general__architecture=None), BAD_INPUT, "general.architecture"),
    "architecture a number": (keys(general__architecture=np.uint32(1)), BAD_INPUT, "not a name"),
    "an adapter": (keys(general__type="adapter"), UNSUPPORTED, "'adapter'"),
    "an imatrix": (keys(general__type="imatrix"), UNSUPPORTED, "'imatrix'"),
    "a projector": (keys(general__architecture="clip"), UNSUPPORTED, "not a language model"),
    "no blocks": (keys(olmoe__block_count=None), BAD_INPUT, "olmoe.block_count"),
    "blocks in words": (keys(olmoe__block_count="four"), BAD_INPUT, "olmoe.block_count"),
    "heads in words": (
        keys(olmoe__attention__head_count="eight"),
        BAD_INPUT,
        "olmoe.attention.head_count",
    ),
    "not the first part": (part(2), BAD_INPUT, "give the one named -00001-of-00003.gguf"),
    "a part is lost": (part(1, lose=3), AccessError.exit_code, "x-00003-of-00003.gguf"),
    "NaN": (weights("blk.1.attn_q.weight", np.nan), BAD_INPUT, "'blk.1.attn_q.weight'"),
    "NaN in a norm": (weights("output_norm.weight", np.nan), BAD_INPUT, "'output_norm.weight'"),
    "Inf in an expert": (
        weights("blk.0.ffn_up_exps.weight", np.inf),
        BAD_INPUT,
        "'blk.0.ffn_up_exps.weight'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_files(tmp_path: Path, call: Call, name: str) -> None:
    make, code, words = CASES[name]
    source = make(tmp_path)
    assert call("convert", source).failed_with(code, words)


def test_a_scale_that_is_not_finite_is_not_copied(tmp_path: Path, call: Call) -> None:
    damage = weights("blk.1.attn_q.weight", 0, "Q8_0")
    path = damage(tmp_path)
    data = bytearray(path.read_bytes())
    offset = read_header(path).tensors["blk.1.attn_q.weight"].offset
    data[offset : offset + 2] = np.array([np.inf], np.float16).tobytes()
    path.write_bytes(data)
    done = call("convert", path, "--type", "Q8_0")
    assert done.failed_with(BAD_INPUT, "blk.1.attn_q.weight", "not finite")


@pytest.mark.parametrize("odd", ["a text", np.float32(2.5), np.array([1, 2], np.int8), True])
def test_odd_values_of_other_keys_do_no_harm(tmp_path: Path, call: Call, odd: Any) -> None:
    source = keys(
        general__name=odd,
        general__size_label=odd,
        general__license=odd,
        general__tags=odd,
        tokenizer__ggml__tokens=odd,
        olmoe__context_length=odd,
        olmoe__embedding_length=odd,
        olmoe__attention__key_length=odd,
        general__file_type=odd,
    )(tmp_path)
    assert call("convert", source, "-t", "Q4_0", "--card", "-o", ".").code == 0
    assert call("plan", source, "--ram", "8GB").code == 0


def test_heads_per_block_and_no_heads_at_all(tmp_path: Path, call: Call) -> None:
    """As hybrid and recurrent architectures have them."""
    per_block = np.array([0, 8, 8, 0], np.uint32)
    source = keys(olmoe__attention__head_count_kv=per_block)(tmp_path)
    assert call("plan", source, "--ram", "8GB", "--json").code == 0
    source.unlink()
    no_heads = {"olmoe__attention__head_count": None, "olmoe__attention__head_count_kv": None}
    assert call("convert", keys(**no_heads)(tmp_path), "-o", "y.gguf").code == 0


def test_the_output_is_not_the_input(tmp_path: Path, call: Call) -> None:
    source = keys()(tmp_path)
    before = source.read_bytes()
    done = call("convert", source, "-o", source, "--force")
    assert done.failed_with(UsageError.exit_code, "x.gguf")
    assert source.read_bytes() == before


def test_no_output_is_one_of_the_parts(tmp_path: Path, call: Call) -> None:
    first = part(1)(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("x-*")}
    output = tmp_path / "x.gguf"  # whose parts have the names of the source's
    done = call("convert", first, "--keep-split", "-o", output, "--force")
    assert done.failed_with(UsageError.exit_code, "x-00001-of-00003.gguf")
    assert {path: path.read_bytes() for path in tmp_path.glob("x-*")} == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep-split", "--split-max-size", "1M"], "--split-max-size excludes --keep-split"),
        (["--keep-split", "--method", "gptq"], "--keep-split excludes --method gptq"),
        (["--pre-tokenizer", "llama-bpe"], "--override-kv tokenizer.ggml.pre=str:NAME"),
        (["--revision", "main"], "--revision is for hub models"),
        (["--delete-source"], "local file"),
    ],
)
def test_flags_that_do_not_suit_a_gguf(
    tmp_path: Path, call: Call, flags: list[str], words: str
) -> None:
    assert call("convert", keys()(tmp_path), *flags).failed_with(UsageError.exit_code, words)


@pytest.mark.parametrize("flag", ["--keep-split", "--allow-requantize"])
def test_flags_that_are_for_gguf_only(call: Call, demo: Path, flag: str) -> None:
    done = call("convert", demo, flag)
    assert done.failed_with(UsageError.exit_code, f"{flag} is for GGUF files")


def test_quantized_already(tmp_path: Path, call: Call) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors("Q4_0"))
    for command in ("convert", "plan"):
        assert call(command, source).failed_with(UNSUPPORTED, "Q4_0 already", "--allow-requantize")
    done = call("plan", source, "--allow-requantize")
    assert done.code == 0
    assert "quantized twice" in done.stderr


def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever a header says, planning ends in a plan or in an error for the user."""
    good = write(tmp_path / "x.gguf", metadata(), tensors()).read_bytes()
    length = read_header(tmp_path / "x.gguf").data_start
    rng = np.random.default_rng(3)
    outcomes = []
    for _ in range(60):
        data = bytearray(good)
        data[int(rng.integers(length))] = int(rng.integers(256))
        (tmp_path / "x.gguf").write_bytes(data)
        try:
            survey(Job(str(tmp_path / "x.gguf"), output=tmp_path), budget=10**9)
            outcomes.append("planned")
        except QuantcliError as error:
            outcomes.append(type(error).__name__)
    assert {"planned", "BadInputError"} <= set(outcomes)
