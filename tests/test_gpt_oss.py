"""GPT-OSS: experts that are MXFP4 in the checkpoint stay so, whatever is asked of the rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import Call
from tiny_models import build, describe

import quantcli
from quantcli import architectures
from quantcli.checkpoint import mxfp4
from quantcli.checkpoint.interleaved import InterleavedExperts
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError
from quantcli.model import open_model
from quantcli.planning import Job

NUMBERS = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
EXPERTS = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build(tmp_path / "source", "gpt_oss", "blocks")


def test_blocks_are_the_numbers_of_the_definition() -> None:
    """Weight 2j is in the lower half of byte j, and 127 is the exponent of 1."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (5, 3, 16), dtype=np.uint8)
    scales = rng.integers(100, 150, (5, 3), dtype=np.uint8)
    expected = np.empty((5, 96))
    for place in np.ndindex(5, 3, 32):
        row, group, i = place
        code = int(blocks[row, group, i // 2]) >> (4 * (i % 2)) & 15
        number = NUMBERS[code & 7] * (-1 if code & 8 else 1)
        expected[row, 32 * group + i] = number * 2.0 ** (int(scales[row, group]) - 127)
    packed = mxfp4.repack(blocks, scales)
    np.testing.assert_array_equal(mxfp4.decode(packed), expected)
    found = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_experts_keep_their_bytes_in_every_type(tmp_path: Path, source: Path, method: str) -> None:
    job = Job(str(source), ("Q2_K", "Q8_0"), tmp_path, method=method, calibration_tokens=1024)
    plain = quantcli.convert(Job(str(source), ("F32",), tmp_path / "plain.gguf"))
    kept = {
        tensor.name: tensor.data.tobytes()
        for tensor in gguf.GGUFReader(plain.outputs[0].paths[0]).tensors
        if tensor.name.endswith(EXPERTS)
    }
    report = quantcli.convert(job if method != "rtn" else replace(job, calibration_tokens=None))
    assert any(line.startswith("kept: 9 tensors") for line in report.warnings)
    for output in report.outputs:
        tensors = {t.name: t for t in gguf.GGUFReader(output.paths[0]).tensors}
        assert {name: tensors[name].data.tobytes() for name in kept} == kept
        assert {tensors[name].tensor_type.name for name in kept} == {"MXFP4"}
        assert tensors["blk.0.attn_q.weight"].tensor_type.name != "BF16"


def test_a_file_gives_the_weights_of_its_checkpoint(tmp_path: Path, source: Path) -> None:
    output = quantcli.convert(Job(str(source), ("BF16",), tmp_path)).outputs[0]
    file, checkpoint = open_model(output.paths[0]), open_model(str(source))
    for name in checkpoint.shapes:
        np.testing.assert_array_equal(file.rows(name), checkpoint.rows(name))


def test_targets_are_refused(call: Call, source: Path) -> None:
    done = call("convert", source, "--target-bpw", "4.5", "-o", "o.gguf")
    assert done.failed_with(4, "--target-bpw", "stay MXFP4")


REFUSED: list[tuple[dict[str, Any], type[QuantcliError], str]] = [
    ({"swiglu_limit": 5.0}, UnsupportedError, "swiglu_limit = 5"),
    ({"layer_types": ["full_attention"] * 3}, BadInputError, "layer_types"),
    ({"attention_bias": False}, UnsupportedError, "attention_bias"),
    ({"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings"),
    ({"num_experts_per_tok": 5}, BadInputError, "num_experts_per_tok = 5"),
    ({"num_local_experts": 3}, BadInputError, "num_experts = 3"),
    ({"num_local_experts": 5}, BadInputError, "num_experts = 5"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, UnsupportedError, "linear"),
]


@pytest.mark.parametrize(("changes", "kind", "named"), REFUSED)
def test_refused(changes: dict[str, Any], kind: type[QuantcliError], named: str) -> None:
    config, shapes = describe("gpt_oss", "blocks", **changes)
    if "num_local_experts" in changes:
        _, shapes = describe("gpt_oss", "blocks")
    stored = {
        name: SourceTensor(name, "U8" if name.endswith(("_blocks", "_scales")) else "BF16", s, 1)
        for name, s in shapes.items()
    }
    found = InterleavedExperts(stored, None).tensors
    family = architectures.find(config)

    def entered() -> None:
        family.tensors(config, {name: tensor.shape for name, tensor in found.items()})
        family.metadata(config)

    with pytest.raises(kind, match=named) as failure:
        entered()
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(
    ("part", "shape", "dtype"),
    [
        ("_scales", (4, 320, 7), "U8"),
        ("_blocks", (4, 320, 8, 15), "U8"),
        ("_blocks", (4, 320, 8, 16), "I8"),
        ("_scales", None, "U8"),
        ("_blocks", None, "U8"),
        ("_bias", (4, 321), "BF16"),
    ],
)
def test_damaged_experts_are_one_line(part: str, shape: tuple[int, ...] | None, dtype: str) -> None:
    path = "model.layers.0.mlp.experts.gate_up_proj"
    shapes = {"_blocks": (4, 320, 8, 16), "_scales": (4, 320, 8), "_bias": (4, 320)}
    stored = {
        path + name: SourceTensor(path + name, "BF16" if name == "_bias" else "U8", s, 1)
        for name, s in shapes.items()
    }
    if shape is None:
        del stored[path + part]
    else:
        stored[path + part] = SourceTensor(path + part, dtype, shape, 1)
    with pytest.raises(BadInputError, match="gate_up_proj") as failure:
        InterleavedExperts(stored, None)
    assert str(failure.value).isprintable()
