"""Mixtures of experts from every kind of source: quantized, GGUF files, adapters, the hub."""

import json
import shutil
from itertools import product
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
from quantcli.gguf_file import read_header, read_tensor
from quantcli.model import open_model

pytest_plugins = ["hub_fixtures"]

TEXT = Path(__file__).parent.parent / "README.md"
SMALL = {"head_dim": 16, "moe_intermediate_size": 96, "num_local_experts": 3}
LOGITS = Path(__file__).parent / "data" / "transformer" / "logits.npz"
HALF = np.dtype("<f2")
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
        *((*key, {"kind": "Q4_K_M"}) for key in MIXTURES if key[1] not in ("odd", "blocks")),
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


def test_adapters_of_experts_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


EXPERTS_OF = ("gate_proj", "up_proj", "down_proj")


def adapter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[Path, Path]:
    """A checkpoint, and an adapter of all its experts with patterns."""
    monkeypatch.setitem(ADAPTERS, "moe", Spec("qwen3moe", "eight", EXPERTS_OF, config))
    source = build(tmp_path / "source", "qwen3moe", "eight")
    return source, build_adapter(tmp_path / "lora", "moe")


PATTERN = {"alpha_pattern": {"experts.3.down_proj": 40}}


def test_adapters_of_experts_apart_are_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, lora = adapter_alone(tmp_path, monkeypatch, **PATTERN)
    ref, output = AdapterRef(str(lora), 0.5), tmp_path / "x.gguf"
    quantcli.convert_adapter(quantcli.Job(str(source), ("F32",), output, lora=(ref,)))
    header = read_header(output)
    alpha = header.metadata["adapter.lora.alpha"]
    assert len(header.tensors) == 2 * 2 * 3
    for block, (role, part) in product(range(2), (("down", "down_proj"), ("up", "up_proj"))):
        name = f"blk.{block}.ffn_{role}_exps.weight.lora_"
        a, b = (header.tensors[name + x] for x in "ab")
        assert (a.shape, b.shape) == ((8, 8, 256), (8, 256, 8))
        a, b = (read_tensor(t).view(np.float32).reshape(t.shape) for t in (a, b))
        for expert in range(8):
            full = delta_of("moe", f"model.layers.{block}.mlp.experts.{expert}.{part}.weight")
            assert full is not None
            np.testing.assert_allclose(b[expert] @ a[expert] * alpha / 8, full / 2, atol=1e-6)


@pytest.mark.runtime
def test_in_llama_cpp_such_an_adapter_does_what_merging_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cpp import Runtime

    source, lora = adapter_alone(tmp_path, monkeypatch, r=32, **PATTERN)
    refs, paths = (
        (AdapterRef(str(lora)),),
        {part: tmp_path / f"{part}.gguf" for part in ("base", "merged", "adapter")},
    )
    converted(source, paths["base"])
    converted(source, paths["merged"], lora=refs)
    job = quantcli.Job(str(source), ("F32",), paths["adapter"], lora=refs)
    quantcli.convert_adapter(job)
    with np.load(LOGITS) as record:
        ids, n = record["qwen3moe-eight/ids"].tolist(), record["qwen3moe-eight/rows"].shape[-1]
    plain, merged, applied = (
        runtime.next_log_probabilities(ids, n)
        for runtime in (
            Runtime(paths["base"]),
            Runtime(paths["merged"]),
            Runtime(paths["base"], lora=paths["adapter"]),
        )
    )
    np.testing.assert_allclose(applied, merged, atol=1e-3)
    assert np.abs(plain - merged).max() > 0.04


@pytest.mark.parametrize("config", [{"rank_pattern": {"experts.2.up_proj": 4}}, None])
def test_adapters_of_some_experts_are_not_apart(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] | None
) -> None:
    source, lora = adapter_alone(tmp_path, monkeypatch, **(config or {}))
    if config is None:
        path = lora / "adapter_model.safetensors"
        stored = load(path, np.dtype("<f4"))
        path.write_bytes(safetensors({n: w for n, w in stored.items() if "experts.5.up" not in n}))
    done = call("convert", source, "--lora", lora, "--lora-only", "-t", "F16", "-o", "x.gguf")
    assert done.failed_with(4, "8 experts of 'blk.0.ffn_up_exps.weight'", "--lora-only")


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


def load(path: Path, dtype: np.dtype[Any] = HALF) -> dict[str, np.ndarray]:
    """The tensors of a file, all of that type."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[start:], dtype)[
            slice(*(o // dtype.itemsize for o in t["data_offsets"]))
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


# -- experts stored together ----------------------------------------------------------------------


def fused(folder: Path, target: Path, ending: str = "") -> Path:
    """The checkpoint with the experts of a block in two tensors, as transformers has them."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    files = sorted(folder.glob("*.safetensors"))
    stored = {name: w for file in files for name, w in load(file, np.dtype("<u2")).items()}
    kept = {name: w for name, w in stored.items() if ".experts." not in name}
    for prefix in sorted({n.partition(".experts.")[0] for n in stored if ".experts." in n}):
        count = sum(n.startswith(f"{prefix}.experts.") for n in stored) // 3
        single = [
            {r: stored[f"{prefix}.experts.{e}.{r}_proj.weight"] for r in ("gate", "up", "down")}
            for e in range(count)
        ]
        both = np.stack([np.concatenate([each["gate"], each["up"]]) for each in single])
        kept[f"{prefix}.experts.gate_up_proj{ending}"] = both
        kept[f"{prefix}.experts.down_proj{ending}"] = np.stack([each["down"] for each in single])
    (target / "model.safetensors").write_bytes(safetensors(kept))
    return target


@pytest.mark.parametrize(
    ("family", "variant", "ending"),
    [("qwen3moe", "eight", ""), ("qwen2moe", "shared", ".weight")],
)
def test_experts_that_are_stored_together(
    hub: Start, tmp_path: Path, call: Call, family: str, variant: str, ending: str
) -> None:
    """Read like single ones: from a folder, downloaded, streamed, and in a plan."""
    plain = build(tmp_path / "plain", family, variant)
    together = fused(plain, tmp_path / "together", ending)
    hub({"org/name": together})
    expected = converted(plain, tmp_path / "plain.gguf", "Q4_K_M")["tensors"]
    assert converted(together, tmp_path / "a.gguf", "Q4_K_M")["tensors"] == expected
    streamed = converted("org/name", tmp_path / "b.gguf", "Q4_K_M", stream=True)
    assert streamed["tensors"] == expected
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    sizes = [
        json.loads(call("plan", source, "--json").stdout)["types"] for source in (plain, together)
    ]
    assert sizes[0] == sizes[1]
    assert call("plan", "org/name").code == 0
    done = converted("org/name", tmp_path / "c.gguf", "Q4_K_M", delete_source=True)
    assert done["tensors"] == expected
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


@pytest.mark.parametrize("kind", ["F32", "Q4_K_M"])
def test_granites_experts_are_streamed(hub: Start, tmp_path: Path, kind: str) -> None:
    source = build(tmp_path / "source", "granitemoe", "eight")
    hub({"org/name": source})
    streamed = converted("org/name", tmp_path / "a.gguf", kind, stream=True)
    assert streamed["tensors"] == converted(source, tmp_path / "b.gguf", kind)["tensors"]
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_granites_shared_expert_is_not_streamed(hub: Start, tmp_path: Path, call: Call) -> None:
    """Its gate and up are rows of one tensor."""
    hub({"org/name": build(tmp_path / "source", "granitemoeshared", "shared")})
    done = call("convert", "org/name", "--stream", "-o", "x.gguf")
    assert done.failed_with(4, "--stream", "split", "leave it out")


def test_granites_halves_that_do_not_fit(tmp_path: Path, call: Call) -> None:
    source = build(tmp_path / "source", "granitemoe", "eight")
    path = source / "model.safetensors"
    stored, name = load(path), "model.layers.1.block_sparse_moe.input_linear.weight"
    path.write_bytes(safetensors({**stored, name: stored[name][:, 1:]}))
    assert call("convert", source, "-o", "x.gguf").failed_with(3, name, "(8, 511, 256)")


def test_experts_that_are_stored_twice_or_by_halves(tmp_path: Path, call: Call) -> None:
    together = fused(build(tmp_path / "plain", "qwen3moe", "eight"), tmp_path / "together")
    path = together / "model.safetensors"
    stored = load(path, np.dtype("<u2"))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    path.write_bytes(safetensors({**stored, name: np.zeros((256, 256), np.uint16)}))
    words = (name, "alone and among others")
    assert call("convert", together, "-o", "x.gguf").failed_with(3, *words)
    whole = "model.layers.1.mlp.experts.gate_up_proj"
    path.write_bytes(safetensors({**stored, whole: stored[whole][:, 1:]}))
    assert call("convert", together, "-o", "x.gguf").failed_with(3, whole, "(8, 511, 256)")
    path.write_bytes(safetensors({**stored, whole: stored[whole][:, :-2]}))
    assert call("convert", together, "-o", "x.gguf").failed_with(3, "(255, 256)", "moe_intermed")
