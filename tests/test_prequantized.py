"""Quantized checkpoints as sources: every format, exactly as it defines its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from hub_client import Start
from packers import CASES, with_bias
from packing import (
    Packed,
    opened,
    packed_rows,
    read_metadata,
    read_stored,
    write_pair,
    write_parts,
    write_safetensors,
)

from quantcli.checkpoint import open_checkpoint
from quantcli.checkpoint.prequantized import weights

pytest_plugins = ["hub_fixtures"]

RECORDS = sorted((Path(__file__).parent / "data" / "prequantized").iterdir())

# Of which whole models are converted: one per layout.
WHOLE = ["fp8 tensor", "fp8 block cut off", "gptq act-order 3 bits", "gptq 4 bits", "awq"]
WHOLE += ["gptq of zero biases"]
WHOLE += ["bnb nf4 nested", "bnb int8", "ct packed asymmetric", "ct fp8 rows", "modelopt nvfp4"]

# Whose headers do not tell all.
ONCE = ["gptq of zero biases", "bnb nf4 nested", "ct packed asymmetric"]


@pytest.mark.parametrize("name", CASES)
def test_weights_are_exact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_WEIGHTS", 200)  # several, and one that is not full
    case = CASES[name]
    packed = case.packer(np.random.default_rng(3), *case.shape)
    checkpoint = opened(tmp_path / "m", case, packed)
    assert list(checkpoint.tensors) == ["a.weight"]
    tensor = checkpoint.weight("a.weight")
    assert (tensor.dtype, tensor.shape) == ("F32", case.shape)
    assert checkpoint.quantized == case.title
    for rows in (None, slice(3, 6), slice(0, 0), np.array([5, 1, 1, 0])):
        found = checkpoint.float32("a.weight", rows)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, packed.w if rows is None else packed.w[rows])


@pytest.mark.parametrize("name", WHOLE)
def test_converted_like_the_values(name: str, tmp_path: Path, call: Call) -> None:
    """Parts in several files; a GGUF file of F32 equals that of the dequantized checkpoint."""
    packed, plain = write_pair(tmp_path, CASES[name], shards=3)
    told = call("convert", packed, "--type", "F32", "-o", tmp_path / "packed.gguf")
    assert told.code == 0, told.stderr
    assert "quantized already (" + CASES[name].title in told.stderr
    assert call("convert", plain, "--type", "F32", "-o", tmp_path / "plain.gguf").code == 0
    found, expected = (contents(tmp_path / f"{which}.gguf") for which in ("packed", "plain"))
    assert found["tensors"] == expected["tensors"]


@pytest.mark.parametrize("name", WHOLE)
def test_planned_by_headers_alone(name: str, tmp_path: Path, hub: Start) -> None:
    packed, _ = write_pair(tmp_path, CASES[name])
    server = hub({"org/tiny": packed})
    remote, local = open_checkpoint("org/tiny", weights=False), open_checkpoint(str(packed))
    assert dict(remote.tensors) == dict(local.tensors)
    assert (remote.quantized, remote.weights) == (local.quantized, None)
    asked = [rng for method, path, rng in server.requests if method == "GET" and "model.s" in path]
    assert asked[0].startswith("bytes=0-")
    # What headers do not tell is read once for all blocks.
    assert len(asked) == (8 if name in ONCE else 1)
    assert not [rng for rng in asked[1:] if _length(rng) > 4096]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_weights_are_those_of_the_libraries(record: Path, tmp_path: Path) -> None:
    """scripts/record/prequantized.py: torch, transformers, bitsandbytes, compressed-tensors."""
    stored = read_stored(record)
    _, expected = stored.pop("expected")
    parts = {name.removeprefix("a."): part for name, part in stored.items()}
    settings = json.loads(read_metadata(record)["quantization_config"])
    checkpoint = open_checkpoint(str(write_parts(tmp_path / "m", settings, parts)))
    np.testing.assert_array_equal(checkpoint.float32("a.weight"), expected)


def _length(asked: str) -> int:
    begin, end = asked.removeprefix("bytes=").split("-")
    return int(end) - int(begin) + 1


def test_the_plan_warns_and_inspect_counts_what_is_stored(tmp_path: Path, call: Call) -> None:
    packed, _ = write_pair(tmp_path, CASES["fp8 row"])
    plan = json.loads(call("plan", packed, "--type", "Q8_0", "--json").stdout)
    assert [line for line in plan["warnings"] if "quantized already (FP8)" in line]
    tensors = json.loads(call("inspect", packed, "--json").stdout)["tensors"]
    (q,) = (t for t in tensors if t["name"] == "model.layers.0.self_attn.q_proj.weight")
    assert (q["type"], q["size_bytes"]) == ("F32", 64 * 64 + 4 * 64)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_zeros_of_0_borrow_within_their_word(bits: int, tmp_path: Path) -> None:
    """Version 1 subtracts one from every code of a word at once, modulo 2^32."""
    case = CASES[f"gptq {bits} bits"]
    random = np.random.default_rng(11)
    parts = dict(case.packer(random, 64, 32).parts)
    zeros = random.integers(0, 2, (1, 64)) * random.integers(0, 1 << bits, (1, 64))
    one = sum(1 << at for at in range(0, 32, bits))
    words = [(int(word) - one) % 2**32 for word in packed_rows(zeros, bits).view(np.uint32)[0]]
    parts["qzeros"] = "I32", np.array([words], np.uint32).view(np.int32)
    parts["qweight"] = "I32", np.zeros((bits, 64), np.int32)
    expected = -zeros.T * parts["scales"][1].T.astype(np.float64)
    checkpoint = opened(tmp_path / "m", case, Packed(parts, expected))
    found = checkpoint.float32("a.weight")
    np.testing.assert_array_equal(found, np.repeat(expected, 32, axis=1).astype(np.float32))


def test_a_gptq_bias_that_is_not_zero_stays(tmp_path: Path) -> None:
    case = CASES["gptq of zero biases"]
    packed = with_bias(case.packer, 0.5)(np.random.default_rng(1), 8, 32)
    checkpoint = opened(tmp_path / "m", case, packed)
    assert sorted(checkpoint.tensors) == ["a.bias", "a.weight"]
    np.testing.assert_array_equal(checkpoint.float32("a.bias"), np.full(8, 0.5, np.float32))
    np.testing.assert_array_equal(checkpoint.float32("a.weight"), packed.w)


def test_a_gptq_bias_that_is_zero_only_in_other_blocks(tmp_path: Path, call: Call) -> None:
    packed, _ = write_pair(tmp_path, CASES["gptq of zero biases"])
    stored = read_stored(packed / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.bias"
    ones = "F16", np.ones_like(stored[name][1])
    write_safetensors(packed / "model.safetensors", stored | {name: ones})
    done = call("convert", packed, "--type", "Q8_0")
    assert done.failed_with(3, name, "is not 0 as in other blocks")
