"""LoRA adapters merged into a checkpoint: against PEFT's definition, in every portion of rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Call, Cli
from tiny_adapters import ADAPTERS, build_adapter, delta_of
from tiny_models import build

import quantcli
from quantcli.checkpoint import AdapterRef, open_adapter, open_checkpoint
from quantcli.checkpoint.merged import merge
from quantcli.gguf_file import read_header, read_tensor
from quantcli.kernels.low_rank import add_low_rank
from quantcli.planning.lora import parse_lora
from quantcli.tensor_types import get


def sources(folder: Path, name: str) -> tuple[Path, Path]:
    spec = ADAPTERS[name]
    base = build(folder / "base", spec.family, spec.variant)
    return base, build_adapter(folder / "adapter", name)


def short_text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text((Path(__file__).parent.parent / "README.md").read_text()[:3000])
    return path


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_are_pefts(tmp_path: Path, name: str, scale: float) -> None:
    folder, lora = sources(tmp_path, name)
    base = open_checkpoint(str(folder))
    adapter = open_adapter(AdapterRef(str(lora), scale), base)
    merged = merge(base, [adapter])
    assert adapter.changed
    for weight in base.tensors:
        w, delta = base.float32(weight), delta_of(name, weight)
        assert (delta is not None) == (weight in adapter.updates)
        if weight in adapter.replaced:
            assert not np.array_equal(merged.float32(weight), w)
        elif delta is None:
            np.testing.assert_array_equal(merged.float32(weight), w)
        else:
            assert np.abs(delta).max() > 1e-3
            np.testing.assert_allclose(merged.float32(weight), w + scale * delta, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "llama-embedding"])
def test_portions_of_rows_hold_the_same_bits(tmp_path: Path, name: str) -> None:
    folder, lora = sources(tmp_path, name)
    base = open_checkpoint(str(folder))
    merged = merge(base, [open_adapter(AdapterRef(str(lora)), base)])
    weights = ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"]
    for weight in weights:
        whole = merged.float32(weight)
        order = np.random.default_rng(0).permutation(len(whole))
        np.testing.assert_array_equal(merged.float32(weight, order), whole[order])
        for step in (1, 7, 100):
            parts = [merged.float32(weight, slice(i, i + step)) for i in range(0, 200, step)]
            np.testing.assert_array_equal(np.concatenate(parts)[:200], whole[:200])


def test_low_rank_sums_of_wide_rows() -> None:
    rng = np.random.default_rng(1)
    b, a = (rng.standard_normal(s, np.float32) for s in ((3, 5), (5, 70_000)))
    w = np.ones((3, 70_000), np.float32)
    add_low_rank(w, b, a, 0.25)
    np.testing.assert_allclose(w, 1 + 0.25 * (b.astype(np.float64) @ a), atol=3e-6)


def test_two_adapters_add_up_and_the_file_names_them(call: Call, tmp_path: Path) -> None:
    folder, lora = sources(tmp_path, "llama")
    done = call(
        *("convert", folder, "--lora", lora, "--lora", f"{lora}:-0.25"),
        *("-t", "F32", "-o", "x.gguf", "--json"),
    )
    assert done.code == 0, done.stderr
    header = read_header(call.work / "x.gguf")
    digest = open_adapter(AdapterRef(str(lora)), open_checkpoint(str(folder))).sha256
    assert header.metadata["quantcli.lora.0.sha256"] == digest
    assert header.metadata["quantcli.lora.0.scale"] == 1
    assert header.metadata["quantcli.lora.1.sha256"] == digest
    assert header.metadata["quantcli.lora.1.scale"] == -0.25
    assert header.metadata["general.type"] == "model"
    w = get("F32").decode(np.asarray(read_tensor(header.tensors["blk.0.ffn_down.weight"])))
    weight = "model.layers.0.mlp.down_proj.weight"
    delta = delta_of("llama", weight)
    expected = open_checkpoint(str(folder)).float32(weight) + 0.75 * delta
    np.testing.assert_allclose(w, expected, atol=1e-6)


def test_bytes_do_not_depend_on_threads_or_the_cpu(cli: Cli, tmp_path: Path) -> None:
    folder, lora = sources(tmp_path, "gemma3-patterns")
    digests = set()
    for threads, core in (("1", "Haswell"), ("2", "Nehalem")):
        done = cli(
            *("convert", folder, "--lora", lora, "-j", threads, "-t", "Q4_K_M,Q8_0", "--json"),
            *("-f", "-o", "x-{type}.gguf"),
            OPENBLAS_CORETYPE=core,
        )
        assert done.returncode == 0, done.stderr
        digests.add(tuple(output["sha256"] for output in json.loads(done.stdout)["outputs"]))
    assert len(digests) == 1


def test_the_merged_model_is_the_reference(tmp_path: Path) -> None:
    """Its F32 file predicts what the reference does, one of the base does not."""
    folder, lora = sources(tmp_path, "qwen3-rslora")
    text = short_text(tmp_path)
    job = quantcli.Job(
        str(folder),
        types=("F32",),
        output=tmp_path / "merged.gguf",
        lora=(AdapterRef(str(lora)),),
        evaluate=str(text),
    )
    (merged,) = quantcli.convert(job).outputs
    assert merged.quality is not None
    assert merged.quality.kld_mean < 1e-9
    quantcli.convert(replace(job, lora=(), evaluate=None, output=tmp_path / "base.gguf"))
    from quantcli.calibration.text import read_text

    files = [str(tmp_path / "base.gguf")]
    (other,) = quantcli.evaluate(files, str(tmp_path / "merged.gguf"), read_text(str(text)))
    assert other.kld_mean > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_calibrate_see_the_merged_weights(tmp_path: Path, method: str) -> None:
    folder, lora = sources(tmp_path, "llama")
    job = quantcli.Job(
        str(folder),
        types=("Q8_0",),
        output=tmp_path / "x.gguf",
        method=method,
        lora=(AdapterRef(str(lora)),),
        calibration_tokens=512,
        calibrate=str(short_text(tmp_path)),
        evaluate=str(short_text(tmp_path)),
    )
    (output,) = quantcli.convert(job).outputs
    assert output.quality is not None
    assert output.quality.kld_mean < 1e-3
    assert output.cost.relative_error < 0.02


def test_the_plan_counts_the_factors(tmp_path: Path) -> None:
    folder, lora = sources(tmp_path, "llama")
    job = quantcli.Job(str(folder), output=tmp_path, threads=2)
    plain = quantcli.plan(job).peak_memory_bytes
    largest = 32 * (256 + 512)  # of both factors of a feed-forward linear
    planned = quantcli.plan(replace(job, lora=(AdapterRef(str(lora)),)))
    assert planned.peak_memory_bytes == plain + 2 * 2 * 4 * largest
    assert lora / "adapter_model.safetensors" in planned.sources


def test_scales_of_a_path() -> None:
    assert parse_lora("a/b") == AdapterRef("a/b")
    assert parse_lora("a/b:0.5") == AdapterRef("a/b", 0.5)
    assert parse_lora("c:/b") == AdapterRef("c:/b")
    assert parse_lora("a:-2") == AdapterRef("a", -2.0)
