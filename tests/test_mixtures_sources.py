"""Mixtures of experts from every kind of source: quantized, GGUF files, adapters, the hub."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from hub_client import Start
from packers import CASES
from packing import write_pair
from tiny_adapters import ADAPTERS, Spec, build_adapter, delta_of, safetensors
from tiny_models import MIXTURES, build

import quantcli
from quantcli import encoding
from quantcli.checkpoint import AdapterRef
from quantcli.model import open_model

pytest_plugins = ["hub_fixtures"]

TEXT = Path(__file__).parent.parent / "README.md"
SMALL = {"head_dim": 16, "moe_intermediate_size": 96, "num_local_experts": 3}
DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"


def converted(source: str | Path, output: Path, kind: str = "F32", **more: Any) -> dict[str, Any]:
    quantcli.convert(quantcli.Job(str(source), types=(kind,), output=output, **more))
    return contents(output)


@pytest.mark.parametrize("name", ["fp8 block cut off", "gptq 4 bits", "awq", "bnb nf4 nested"])
def test_quantized_experts_are_stacked_like_their_values(name: str, tmp_path: Path) -> None:
    packed, plain = write_pair(tmp_path, CASES[name], 3, model=("qwen3moe", "odd"), **SMALL)
    found = converted(packed, tmp_path / "packed.gguf")
    assert found["tensors"] == converted(plain, tmp_path / "plain.gguf")["tensors"]


AUTO: dict[str, Any] = {"calibrate": str(TEXT), "calibration_tokens": 1024}


@pytest.mark.parametrize(
    ("family", "variant", "more"),
    [
        *((*key, {"kind": "Q4_K_M"}) for key in MIXTURES if key[1] != "odd"),
        ("qwen2moe", "shared", {"kind": "Q3_K_M", **AUTO}),
        ("qwen3moe", "eight", {"kind": "Q4_0", "method": "awq", **AUTO}),
    ],
)
def test_a_checkpoint_and_its_gguf_give_the_same_tensors(
    tmp_path: Path, family: str, variant: str, more: dict[str, Any]
) -> None:
    source, exact = build(tmp_path / "source", family, variant), tmp_path / "exact.gguf"
    converted(source, exact)
    direct = converted(source, tmp_path / "direct.gguf", **more)
    assert converted(exact, tmp_path / "by-gguf.gguf", **more)["tensors"] == direct["tensors"]


def test_adapters_of_experts_are_merged_and_never_apart(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "moe", Spec("qwen3moe", "odd", ("q_proj", "down_proj")))
    source, lora = (
        build(tmp_path / "source", "qwen3moe", "odd"),
        build_adapter(tmp_path / "l", "moe"),
    )
    base, merged = tmp_path / "base.gguf", tmp_path / "merged.gguf"
    converted(source, base)
    converted(source, merged, lora=(AdapterRef(str(lora)),))
    before, after = (open_model(str(path)) for path in (base, merged))
    for expert in (0, 3):
        delta = delta_of("moe", DOWN.replace("3", str(expert)))
        assert delta is not None
        rows = slice(expert * len(delta), (expert + 1) * len(delta))
        w, changed = (m.rows("blk.1.ffn_down_exps.weight", rows) for m in (before, after))
        np.testing.assert_allclose(changed, w + delta, atol=1e-6)
    name = "blk.1.ffn_up_exps.weight"
    np.testing.assert_array_equal(after.rows(name), before.rows(name))
    done = call("convert", source, "--lora", lora, "--lora-only", "-t", "F16", "-o", "x.gguf")
    assert done.failed_with(4, "experts.0.down_proj.weight", "--lora-only")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_gathers_stacks_from_several_files(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Experts come out of order, and those of a stack in several files."""
    monkeypatch.setattr(encoding, "WORTH_PROCESSES", 1 if processes > 1 else 1 << 60)
    source = build(tmp_path / "source", "mixtral", "odd")
    disorder(source)
    hub({"org/name": source})
    streamed, local = (
        converted(name, tmp_path / f"{n}.gguf", "Q4_0", threads=processes, **more)
        for n, (name, more) in enumerate((("org/name", {"stream": True}), (source, {})))
    )
    assert streamed["tensors"] == local["tensors"]
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def disorder(folder: Path) -> None:
    """Put the tensors of a checkpoint into its files in no order at all."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    stored = {k: v for name in files for k, v in load(folder / name).items()}
    names = [str(name) for name in np.random.default_rng(5).permutation(list(stored))]
    for n, file in enumerate(files):
        part = {name: stored[name] for name in names[n :: len(files)]}
        (folder / file).write_bytes(safetensors(part))
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of F16."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    del header["__metadata__"]
    return {
        name: np.frombuffer(data[start:], "<f2")[
            slice(*(o // 2 for o in t["data_offsets"]))
        ].reshape(t["shape"])
        for name, t in header.items()
    }


@pytest.mark.parametrize(("family", "variant"), [("qwen3moe", "eight"), ("qwen2moe", "odd")])
def test_a_stream_is_a_download(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, variant: str
) -> None:
    monkeypatch.setitem(ADAPTERS, "moe", Spec(family, variant, ("q_proj", "down_proj")))
    hub({"org/name": build(tmp_path / "source", family, variant)})
    lora = (AdapterRef(str(build_adapter(tmp_path / "l", "moe"))),)
    streamed = converted("org/name", tmp_path / "x.gguf", "Q4_K_M", stream=True, lora=lora)
    assert converted("org/name", tmp_path / "y.gguf", "Q4_K_M", lora=lora) == streamed


def test_files_leave_the_cache_after_their_last_expert(hub: Start, tmp_path: Path) -> None:
    """Experts of a stack are in several files."""
    source = build(tmp_path / "source", "mixtral", "odd")
    hub({"org/name": source})
    output = tmp_path / "x.gguf"
    found = converted("org/name", output, "Q8_0", delete_source=True)
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert found["tensors"] == converted(source, tmp_path / "y.gguf", "Q8_0")["tensors"]
