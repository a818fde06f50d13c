"""Every family against llama.cpp's own converter, as recorded by scripts/record/converter.py."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VARIANTS, build, describe

from quantcli import architectures
from quantcli.architectures import OutputTensor

RECORDS = Path(__file__).parent / "data" / "architectures"
GGUF_TYPES = {np.uint32: "UINT32", np.float32: "FLOAT32", str: "STRING", bool: "BOOL"}


class Tiny:
    """A built variant, read back without the code under test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
        self.arrays: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, array in read_safetensors(path).items():
                self.arrays |= single_experts(name, array)
        self.shapes = {key: array.shape for key, array in self.arrays.items()}

    def outputs(self) -> list[OutputTensor]:
        return architectures.find(self.config).tensors(self.config, self.shapes)


def described(value: Any) -> list[Any]:
    """As in the record: type and value."""
    if isinstance(value, np.ndarray):
        return [f"ARRAY {value.dtype.name.upper()}", value.tolist()]
    return [GGUF_TYPES[type(value)], value]


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        arrays[name] = as_float32(data[begin:end], entry["dtype"]).reshape(entry["shape"])
    return arrays


def single_experts(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Granite stores experts together; architectures see each of them."""
    if array.ndim < 3:
        return {name: array}
    prefix, _, linear = name.removesuffix("_linear.weight").rpartition(".")
    halves = {"input": ("gate_proj", "up_proj"), "output": ("down_proj",)}[linear]
    return {
        f"{prefix}.experts.{number}.{role}.weight": half
        for number, matrix in enumerate(array)
        for role, half in zip(halves, np.split(matrix, len(halves)), strict=True)
    }


def as_float32(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype("<f4")


def as_bf16(values: np.ndarray) -> np.ndarray:
    codes = np.ascontiguousarray(values).view("<u4")
    return ((codes + 0x7FFF + ((codes >> 16) & 1)) >> 16).astype("<u2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Tiny:
    family, variant = request.param
    name = f"{family}-{variant}"
    return Tiny(build(tmp_path_factory.mktemp("models") / name, family, variant), name)


# But for GPT-OSS, whose experts take turns in what is stored: test_convert.py compares the bytes.
every_variant = pytest.mark.parametrize(
    "tiny", [key for key in VARIANTS if key[0] != "gpt_oss"], indirect=True, ids="-".join
)


def only(family: str, variant: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tiny", [(family, variant)], indirect=True, ids="-".join)


@every_variant
def test_the_recorded_checkpoint_is_the_one_that_tests_build(tiny: Tiny) -> None:
    built = {
        str(path.relative_to(tiny.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tiny.folder.rglob("*")
        if path.is_file()
    }
    assert built == tiny.record["source"]


@every_variant
def test_metadata_equals_the_converter(tiny: Tiny) -> None:
    metadata = architectures.find(tiny.config).metadata(tiny.config)
    expected = {
        key: entry
        for key, entry in tiny.record["f32"]["metadata"].items()
        if key == "general.architecture" or not key.startswith(("general.", "tokenizer."))
    }
    assert {key: described(value) for key, value in metadata.items()} == expected
    assert len(expected) > 6


@every_variant
def test_tokenizer_constants_are_among_those_of_the_converter(tiny: Tiny) -> None:
    recorded = tiny.record["f32"]["metadata"]
    for key, value in architectures.find(tiny.config).tokenizer.items():
        assert recorded[key] == [GGUF_TYPES[type(value)], value]


@every_variant
def test_names_and_shapes_equal_the_converter(tiny: Tiny) -> None:
    expected = {name: tuple(entry[1]) for name, entry in tiny.record["f32"]["tensors"].items()}
    outputs = tiny.outputs()
    assert {output.name: output.shape for output in outputs} == expected
    assert len(outputs) == len(expected)


@every_variant
def test_bytes_equal_the_converter(tiny: Tiny) -> None:
    for output in tiny.outputs():
        values = output.data
        if output.source is not None:
            values = tiny.arrays[output.source]
            values = values.T if output.transposed else values
            values = values if output.rows is None else values[output.rows]
            values = values + np.float32(output.add)
            if output.turned:
                values = values.reshape(output.shape[0], output.shape[2], -1).swapaxes(1, 2)
        elif output.stack:
            values = np.stack([tiny.arrays[name] for name in output.stack])
        assert values is not None
        assert values.dtype == np.float32
        stored = {"F32": values.astype("<f4"), "BF16": as_bf16(values)}
        for out_type in ("f32", "bf16"):
            kind, _, sha256 = tiny.record[out_type]["tensors"][output.name]
            found = hashlib.sha256(np.ascontiguousarray(stored[kind]).tobytes()).hexdigest()
            assert found == sha256, f"{output.name} as {kind}"


@only("llama", "tied")
def test_file_order_is_embedding_blocks_norm(tiny: Tiny) -> None:
    names = [output.name for output in tiny.outputs()]
    assert names[:2] == ["token_embd.weight", "rope_freqs.weight"]
    assert [name.split(".")[1] for name in names[2:-1]] == ["0"] * 9 + ["1"] * 9
    assert names[-1] == "output_norm.weight"


def test_a_value_that_the_converter_overlooks_is_the_configs() -> None:
    given = {"max_position_embeddings": 1024, "rms_norm_eps": 1.5625e-07, "rope_theta": 5e6}
    config, _ = describe("glm", "half", **given)
    metadata = architectures.find(config).metadata(config)
    assert metadata["chatglm.context_length"] == 1024
    assert metadata["chatglm.attention.layer_norm_rms_epsilon"] == np.float32(1.5625e-07)
    assert metadata["chatglm.rope.freq_base"] == 5e6


@pytest.mark.parametrize("key", ["layer_norm_epsilon", "rms_norm_eps"])
def test_exaone_has_one_epsilon_under_either_name(key: str) -> None:
    """Published files have the first name alone, transformers writes the second alone."""
    config, _ = describe("exaone", "gqa")
    del config["layer_norm_epsilon"], config["rms_norm_eps"]
    metadata = architectures.find(config).metadata(config | {key: 1.5625e-07})
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        assert metadata[f"exaone.attention.{name}"] == np.float32(1.5625e-07)


def test_the_converter_record_covers_what_families_differ_in() -> None:
    """Guards the comparison above against variants that lose their point."""

    def keys(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        f32 = json.loads((RECORDS / f"{name}.json").read_text())["f32"]
        return f32["metadata"], f32["tensors"]

    metadata, tensors = keys("llama-odd")
    assert metadata["llama.rope.scaling.type"] == ["STRING", "linear"]
    assert {"blk.0.attn_q.bias", "blk.1.attn_output.bias", "blk.1.ffn_down.bias"} <= set(tensors)
    assert "rope_freqs.weight" in keys("llama-tied")[1]
    assert "output.weight" not in keys("llama-tied")[1]
    assert keys("mistral-gqa")[0]["llama.attention.key_length"] == ["UINT32", 32]
    assert keys("qwen2-odd")[0]["qwen2.rope.scaling.yarn_beta_fast"] == ["FLOAT32", 24.0]
    assert "blk.0.attn_k_norm.weight" in keys("qwen3-tied")[1]
    assert keys("gemma3-tied")[0]["gemma3.rope.freq_base_swa"] == ["FLOAT32", 20000.0]
    assert "gemma2.final_logit_softcapping" in keys("gemma2-odd")[0]
