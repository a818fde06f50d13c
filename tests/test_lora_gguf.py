"""Adapters as GGUF files: as llama.cpp's converter writes them, and in llama.cpp as merged."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from llama_cpp import Runtime
from test_lora import sources
from tiny_adapters import ADAPTERS, LINEARS

import quantcli
from quantcli.checkpoint import AdapterRef
from quantcli.gguf_file import read_header, read_tensor
from quantcli.model import open_model
from quantcli.tensor_types import by_id
from quantcli.transformer import Transformer

RECORDS = Path(__file__).parent / "data" / "lora"
GGUF_TYPES = {np.uint32: "UINT32", np.float32: "FLOAT32", str: "STRING"}
CONVERTED = ("llama", "llama-embedding", "mistral-bf16")
KEPT = (0, 1, 40, 79)


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata {key: [type, value]} without our own keys, and tensors, as in the records."""
    header = read_header(path)
    metadata = {
        key: ["ARRAY STRING" if isinstance(value, list) else GGUF_TYPES[type(value)], value]
        for key, value in header.metadata.items()
        if not key.startswith("quantcli.")
    }
    tensors = {
        name: [
            by_id(entry.type_id).name,
            list(entry.shape),
            hashlib.sha256(np.asarray(read_tensor(entry)).tobytes()).hexdigest(),
        ]
        for name, entry in header.tensors.items()
    }
    return metadata, tensors


@pytest.mark.parametrize("name", CONVERTED)
def test_files_equal_the_converters(tmp_path: Path, name: str) -> None:
    base, lora = sources(tmp_path, name)
    lora = lora.rename(tmp_path / f"tiny-{name}")
    record = json.loads((RECORDS / f"{name}.json").read_text())
    job = quantcli.Job(
        str(base),
        types=("F32", "F16", "BF16", "Q8_0"),
        output=tmp_path / "x-{type}.gguf",
        lora=(AdapterRef(str(lora)),),
    )
    for output in quantcli.convert_adapter(job).outputs:
        metadata, tensors = contents(Path(output.paths[0]))
        expected = record[output.file_type.lower()]
        del expected["metadata"]["general.quantization_version"]
        del metadata["general.quantization_version"]
        assert tensors == expected["tensors"]
        assert metadata == expected["metadata"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_logits_are_pefts(tmp_path: Path, name: str) -> None:
    base, lora = sources(tmp_path, name)
    with np.load(RECORDS / "logits.npz") as record:
        ids, rows, plain = (record[f"{name}/{part}"] for part in ("ids", "rows", "base"))
    path = tmp_path / "x.gguf"
    refs = (AdapterRef(str(lora)),)
    quantcli.convert(quantcli.Job(str(base), types=("F32",), output=path, lora=refs))
    model = Transformer(open_model(str(path)))
    found = model.logits(model.hidden(ids[None])[0])[list(KEPT)]
    largest = np.abs(rows).max()
    assert np.abs(found - rows).max() < 2e-5 * largest
    assert np.abs(plain - rows).max() > 1e-2 * largest


def normalised(logits: np.ndarray) -> np.ndarray:
    """Log probabilities."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, 1.0) for name, spec in ADAPTERS.items() if not spec.saved] + [("llama", -0.5)],
)
def test_in_llama_cpp_the_adapter_does_what_merging_does(
    tmp_path: Path, name: str, scale: float
) -> None:
    base, lora = sources(tmp_path, name)
    refs = (AdapterRef(str(lora), scale),)
    job = quantcli.Job(str(base), types=("F32",))
    paths = {part: tmp_path / f"{part}.gguf" for part in ("base", "merged", "adapter")}

    def to(part: str, lora: tuple[AdapterRef, ...] = ()) -> quantcli.Job:
        return quantcli.Job(job.source, types=job.types, output=paths[part], lora=lora)

    quantcli.convert(to("base"))
    quantcli.convert(to("merged", refs))
    quantcli.convert_adapter(to("adapter", refs))
    with np.load(RECORDS / "logits.npz") as record:
        ids = record[f"{name}/ids"][:41].tolist()
        expected, plain = (normalised(record[f"{name}/{key}"][2]) for key in ("rows", "base"))
    merged = Runtime(paths["merged"]).next_log_probabilities(ids, len(plain))
    applied = Runtime(paths["base"], lora=paths["adapter"])
    found = applied.next_log_probabilities(ids, len(plain))
    atol = 5e-3 if name.startswith("gemma") else 1e-3  # ggml's GELU is a table of F16
    np.testing.assert_allclose(found, merged, atol=atol)
    assert np.abs(plain - merged).max() > 40 * atol
    if scale == 1:
        np.testing.assert_allclose(found, expected, atol=2 * atol)


def test_the_command(call: Call, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama")
    done = call("convert", base, "--lora", f"{lora}:0.5", "--lora-only", "--json")
    assert done.code == 0, done.stderr
    assert done.left == ["Adapter-F32-LoRA.gguf"]
    header = read_header(call.work / done.left[0])
    assert header.metadata["general.type"] == "adapter"
    assert header.metadata["adapter.lora.alpha"] == 4
    assert header.metadata["quantcli.lora.0.scale"] == 0.5
    assert len(header.tensors) == 2 * 2 * len(LINEARS)
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["file_type"] == "F32"
    again = call("convert", base, "--lora", lora, "--lora-only")
    assert again.code == 9
    shown = call("convert", base, "--lora", lora, "--lora-only", "-t", "q8_0")
    assert "LoRA adapter of Llama" in shown.stdout


def test_q8_0_falls_back_as_the_converter_does(tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "mistral-bf16")
    refs = (AdapterRef(str(lora)),)
    job = quantcli.Job(str(base), types=("Q8_0",), output=tmp_path / "x.gguf", lora=refs)
    (output,) = quantcli.convert_adapter(job).outputs
    reasons = {tensor.name[-6:]: (tensor.type, tensor.fallback) for tensor in output.tensors}
    assert reasons == {
        "lora_a": ("Q8_0", None),
        "lora_b": ("F16", "8 columns, not a multiple of 32"),
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--type", "Q4_K_M"], 2, ["Q4_K_M", "Q8_0"]),
        (["--method", "gptq"], 2, ["the method"]),
        (["--evaluate", "builtin"], 2, ["evaluate"]),
        (["--dry-run"], 2, ["--dry-run"]),
        (["--pure"], 2, ["recipe"]),
        (["--lora", "other"], 2, ["one adapter, not 2"]),
        (["--delete-source"], 2, ["delete-source"]),
        (["--type", "Q9"], 2, ["Q9"]),
    ],
)
def test_what_is_about_models_is_refused(
    call: Call, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    base, lora = sources(tmp_path, "llama")
    done = call("convert", base, "--lora-only", "--lora", lora, *arguments)
    assert done.failed_with(code, *words)


def test_what_a_gguf_adapter_cannot_hold(call: Call, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama-saved")
    done = call("convert", base, "--lora", lora, "--lora-only")
    assert done.failed_with(4, "lm_head.weight", "without --lora-only")
    assert call("convert", base, "--lora-only").failed_with(2, "one --lora")


def test_values_beyond_f16(call: Call, tmp_path: Path) -> None:
    """Patterns put their scales into lora_b."""
    base, lora = sources(tmp_path, "llama")
    path = lora / "adapter_config.json"
    changed = json.loads(path.read_text()) | {"alpha_pattern": {"layers.1.mlp.up_proj": 5e8}}
    path.write_text(json.dumps(changed))
    done = call("convert", base, "--lora", lora, "--lora-only", "-t", "F16")
    assert done.failed_with(3, "layers.1.mlp.up_proj.lora_B.weight")
    done = call("convert", base, "--lora", lora, "-t", "F16")
    assert done.failed_with(3, "layers.1.mlp.up_proj.weight")
