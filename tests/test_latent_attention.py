"""Latent attention: what its heads see, the tensors it is read from, and every kind of source."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from slow_twins import slow_twin
from tiny_adapters import ADAPTERS, Spec, build_adapter, delta_of
from tiny_latent import VARIANTS, shapes_of
from tiny_models import build

import quantcli
from quantcli.architectures import find
from quantcli.calibration import calibrate, read_imatrix, read_text, unreached, write_imatrix
from quantcli.checkpoint import AdapterRef
from quantcli.methods import awq
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.experts import Matrices, Passing, quantize_mixture
from quantcli.methods.latent import attend
from quantcli.methods.streams import Stream
from quantcli.model import Model, open_model
from quantcli.planning import Job, make_plan
from quantcli.planning.memory import sequence_memory
from quantcli.recipes.unquantized import is_quantizable
from quantcli.transformer import Site, Transformer
from quantcli.transformer.block import rest_of
from quantcli.transformer.hyperparameters import read_hyperparameters
from quantcli.transformer.latent_sizes import Latent
from quantcli.transformer.sites import matrix

TEXT = Path(__file__).parent / "data" / "tokenizer" / "text.txt"
SPLIT = "model.layers.1.self_attn.kv_b_proj.weight"

each = pytest.mark.parametrize(
    ("family", "variant"), [pytest.param(*key, marks=slow_twin(key)) for key in VARIANTS]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 heads; latent vectors of 48, keys of 24 that stay and 8 that turn, values of 16."""
    return build(tmp_path_factory.mktemp("latent") / "tiny", "deepseek2", "odd")


def inputs(model: Model, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What each site sees, by its name."""
    seen: dict[str, list[np.ndarray]] = {}
    Transformer(model).hidden(
        tokens, tap=lambda site, x: seen.setdefault(site.name, []).append(x.copy())
    )
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def test_keys_and_values_are_those_of_the_checkpoint(folder: Path) -> None:
    """Of each head: its queries times attn_k_b meet latent vectors as its keys would queries."""
    model = open_model(str(folder))
    source = read_source(folder, SPLIT).reshape(3, 24 + 16, 48)
    key, value = (model.rows(f"blk.1.attn_{name}_b.weight") for name in ("k", "v"))
    np.testing.assert_array_equal(key.reshape(3, 48, 24), source[:, :24].swapaxes(1, 2))
    np.testing.assert_array_equal(value.reshape(3, 16, 48), source[:, 24:])
    for rows in (slice(40, 100), slice(47, 49), np.array([143, 0, 47, 48, 95, 96, 3])):
        np.testing.assert_array_equal(model.rows("blk.1.attn_k_b.weight", rows), key[rows])


def read_source(folder: Path, name: str) -> np.ndarray:
    from quantcli.checkpoint import open_checkpoint

    return open_checkpoint(str(folder)).float32(name)


def test_heads_see_their_queries_and_mixed_latents(folder: Path) -> None:
    model, tokens = open_model(str(folder)), np.arange(60, dtype=np.int32).reshape(3, 20)
    seen = inputs(model, tokens)
    inner = seen["blk.1.attn"] @ model.rows("blk.1.attn_q_a.weight").T
    norm = model.rows("blk.1.attn_q_a_norm.weight")
    expected = inner / np.sqrt((inner**2).mean(axis=1, keepdims=True) + 1e-6) * norm
    np.testing.assert_allclose(seen["blk.1.attn_q_b"], expected, rtol=1e-4, atol=1e-5)
    q = (expected @ model.rows("blk.1.attn_q_b.weight").T).reshape(60, 3, 32)
    for head in range(3):
        still = seen[f"blk.1.attn_k_b.{head}"]
        np.testing.assert_allclose(still, q[:, head, :24], rtol=1e-3, atol=1e-5)
        assert seen[f"blk.1.attn_v_b.{head}"].shape == (60, 48)
    # The first token of a window sees itself only: the mixture is its own latent vector.
    made = seen["blk.1.attn"] @ model.rows("blk.1.attn_kv_a_mqa.weight")[:48].T
    norm = model.rows("blk.1.attn_kv_a_norm.weight")
    latent = made / np.sqrt((made**2).mean(axis=1, keepdims=True) + 1e-6) * norm
    for head in range(3):
        first = seen[f"blk.1.attn_v_b.{head}"][::20]
        np.testing.assert_allclose(first, latent[::20], rtol=1e-3, atol=1e-5)


def test_threads_change_no_bit(folder: Path) -> None:
    model, tokens = open_model(str(folder)), np.arange(96, dtype=np.int32).reshape(3, 32)
    one, other = (Transformer(model, threads=n).hidden(tokens) for n in (1, 3))
    np.testing.assert_array_equal(one, other)


@each
def test_the_way_of_methods_is_the_transformers(tmp_path: Path, family: str, variant: str) -> None:
    """With matrices that stay as they are, both models see the same and arrive where it does."""
    model = open_model(str(build(tmp_path / "source", family, variant)))
    run = Transformer(model)
    tokens = np.random.default_rng(0).integers(0, run.n_vocab, (3, 20))
    seen, names = inputs(model, tokens), list[str]()

    def quantize(
        _: int, linears: Matrices, reference: np.ndarray, x: np.ndarray
    ) -> tuple[dict[str, Encoded], Matrices]:
        return {n: Encoded(w.view(np.uint8), Cost(w.size)) for n, w in linears.items()}, linears

    streams = [Stream((*tokens.shape, run.n_embd)) for _ in range(2)]
    with run.pool() as pool:
        for stream in streams:
            run.embed(tokens, slice(0, run.n_vocab), model.rows("token_embd.weight"), stream.x)
        for number in range(run.n_block):
            block = run.load(number, 20, pool)

            def visit(site: Site, x: list[np.ndarray], block: Any = block) -> list[Matrices]:
                names.append(site.name)
                for one in x:
                    np.testing.assert_allclose(one, seen[site.name], rtol=1e-3, atol=2e-4)
                return [{n: matrix(block.weights, n, site) for n in site.weights}] * 2

            for stream in streams:
                stream.enter(block, pool)
            attend(block, streams, visit, pool)
            for short in rest_of(block):
                if block.experts and short == "ffn":
                    passing = [Passing.of(stream, block, pool) for stream in streams]
                    quantize_mixture(block, passing, quantize, pool)
                    break
                for stream in streams:
                    np.testing.assert_allclose(
                        stream.y, seen[block.sites[short].name], rtol=1e-3, atol=2e-4
                    )
                    stream.leave(short, block, pool)
    expected = run.hidden(tokens)
    for stream in streams:
        found = run.normalize(stream.x, model.rows("output_norm.weight"))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-4)
    wanted = [site.name for site in run.sites if ".attn" in site.name]
    assert names == [name for name in wanted if not name.endswith("attn_output")]


def test_every_half_of_a_fold_is_needed(folder: Path) -> None:
    """The logits would tell: of what is scaled and of what stands before it."""
    from test_awq import Loaded, random_scales, relative_change

    model = Loaded.of(open_model(str(folder)))
    before, original = model.logits(), dict(model.tensors)
    folds = [fold for fold in model.folds() if fold.site.name.startswith("blk.1.attn")]
    assert len(folds) == 2 + 3 + 1
    for fold in folds:
        for left in (*fold.site.weights, f"{fold.producer}.weight"):
            model.tensors = dict(original)
            awq.apply_fold(model.tensors, fold, random_scales(fold))
            model.tensors[left] = original[left]
            assert relative_change(before, model.logits()) > 1e-3, (fold.site.name, left)


def test_plain_queries_take_the_scales_of_the_lite_model(tmp_path: Path) -> None:
    sizes = Transformer(open_model(str(build(tmp_path / "lite", "deepseek2", "lite")))).sizes
    folds = {fold.site.name: fold for fold in awq.block_folds(sizes, 3)}
    assert "blk.3.attn_q_b" not in folds
    fold = folds["blk.3.attn_k_b.1"]
    assert (fold.producer, fold.site.expert) == ("blk.3.attn_q", 1)
    np.testing.assert_array_equal(fold.sources, np.arange(48, 48 + 32))


# What DeepSeek-V2-Lite says (and DeepSeek-Coder-V2-Lite).
LITE = {
    **VARIANTS["deepseek2", "lite"][0],
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1408,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "vocab_size": 102400,
}


def test_the_published_lite_model_fits() -> None:
    family = find(LITE)
    metadata = family.metadata(LITE)
    tensors = family.tensors(LITE, shapes_of("deepseek2", LITE))
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 15_706_484_224
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    assert shapes["blk.26.attn_k_b.weight"] == (16, 512, 128)
    assert shapes["blk.1.ffn_down_exps.weight"] == (64, 2048, 1408)
    sizes = read_hyperparameters(metadata, shapes)
    assert sizes.latent == Latent(n=512, n_query=0, n_still=128, n_value=128)
    magnitude = 1 + 0.1 * 0.707 * math.log(40)
    assert sizes.attention_scale == pytest.approx(magnitude**2 / math.sqrt(192), rel=1e-6)
    assert (sizes.experts_of(0), sizes.rope.magnitude) == (None, 1)


# -- importance ---------------------------------------------------------------------------------


def test_importance_is_summed_for_each_head_and_counted_once(tmp_path: Path, folder: Path) -> None:
    """As llama-imatrix does of matrices that see all tokens."""
    model = open_model(str(folder))
    made = calibrate(model, read_text(str(TEXT)), tokens=256, context=128, threads=2)
    entry = made.entries["blk.1.attn_k_b.weight"]
    assert (entry.sums.shape, entry.counts.tolist()) == ((3, 24), [256])
    assert made.entries["blk.1.attn_v_b.weight"].sums.shape == (3, 48)
    assert set(made.entries) == {
        name
        for name, shape in model.shapes.items()
        if (is_quantizable(name, shape) and name.startswith("blk.")) or "ffn_gate_inp" in name
    }
    write_imatrix(tmp_path / "im.gguf", made)
    again = read_imatrix(tmp_path / "im.gguf")
    for name, n in (("k", 24), ("v", 48)):
        name = f"blk.1.attn_{name}_b.weight"
        found, expected = (one.importance(name, n, 3) for one in (again, made))
        assert found is not None
        assert expected is not None
        assert found.shape == (3, n)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found, made.entries[name].sums / 256, rtol=1e-6)
    short = {n: replace(e, counts=np.minimum(e.counts, 8)) for n, e in made.entries.items()}
    (line,) = unreached(replace(made, entries=short), "more text")
    assert "of 15 matrices of experts" in line  # not of heads


# -- sources and outputs --------------------------------------------------------------------------


def converted(source: str | Path, output: Path, kind: str = "F32", **more: Any) -> dict[str, Any]:
    quantcli.convert(Job(str(source), types=(kind,), output=output, **more))
    return contents(output)


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "Q4_0"},
        {"kind": "Q3_K_M", "calibrate": str(TEXT), "calibration_tokens": 512},
        pytest.param(
            {"kind": "Q4_0", "method": "awq+gptq", "calibration_tokens": 1024},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rtn", "imatrix", "awq+gptq"],
)
def test_a_checkpoint_and_its_gguf_give_the_same_tensors(
    tmp_path: Path, folder: Path, more: dict[str, Any]
) -> None:
    exact = tmp_path / "exact.gguf"
    converted(folder, exact)
    one, other = (
        converted(source, tmp_path / f"{name}.gguf", **more)
        for name, source in (("direct", folder), ("by-gguf", exact))
    )
    assert one["tensors"] == other["tensors"]
    tokens = np.arange(80, dtype=np.int32).reshape(2, 40)
    hidden = [Transformer(open_model(str(source))).hidden(tokens) for source in (folder, exact)]
    np.testing.assert_array_equal(*hidden)


def test_adapters_of_what_is_split_are_merged_and_never_apart(
    tmp_path: Path, folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "latent", Spec("deepseek2", "odd", ("kv_b_proj",)))
    lora = build_adapter(tmp_path / "lora", "latent")
    merged = tmp_path / "merged.gguf"
    converted(folder, merged, lora=(AdapterRef(str(lora)),))
    delta = delta_of("latent", SPLIT)
    assert delta is not None
    expected = (read_source(folder, SPLIT) + delta).reshape(3, 40, 48)
    model = open_model(str(merged))
    key, value = (model.rows(f"blk.1.attn_{name}_b.weight") for name in ("k", "v"))
    np.testing.assert_allclose(key.reshape(3, 48, 24), expected[:, :24].swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(value.reshape(3, 16, 48), expected[:, 24:], atol=1e-6)
    done = call("convert", folder, "--lora", lora, "--lora-only", "-t", "F16", "-o", "x.gguf")
    assert done.failed_with(4, "kv_b_proj.weight", "two tensors", "--lora-only")


def test_experts_with_few_tokens_are_reported_and_inputs_not_scaled_named(
    call: Call, tmp_path: Path
) -> None:
    sizes = {"n_routed_experts": 12, "num_experts_per_tok": 1}
    folder = build(tmp_path / "source", "deepseek2", "odd", **sizes)
    options = ["--method", "awq+gptq", "--calibration-tokens", "512", "-t", "Q4_0", "-o", "x.gguf"]
    done = call("convert", folder, *options)
    assert done.code == 0
    lines = done.stderr.splitlines()
    (line,) = (line for line in lines if "rounded to nearest" in line)
    assert "matrices of experts" in line
    assert [line.split("'")[1] for line in lines if "is not scaled" in line] == [
        *("attn_v_b", "ffn", "ffn_down", "output")
    ]


# -- planning -----------------------------------------------------------------------------------


def test_the_size_label_counts_experts_and_not_heads(folder: Path) -> None:
    metadata = make_plan(Job(str(folder), ("F32",))).files[0].metadata
    assert metadata["general.size_label"].startswith("5x")


def test_the_plan_looks_at_the_block_that_needs_most() -> None:
    """As in DeepSeek-V2-Lite, whose first block has no experts."""
    common = {"token_embd.weight": (102400, 2048)}
    dense = {"ffn_up.weight": (10944, 2048), "ffn_down.weight": (2048, 10944)}
    sparse = {f"ffn_{role}_exps.weight": (64, 1408, 2048) for role in ("gate", "up")}

    def planned(*blocks: dict[str, tuple[int, ...]]) -> int:
        shapes = {f"blk.{i}.{name}": s for i, made in enumerate(blocks) for name, s in made.items()}
        return sequence_memory({**common, **shapes}, 512, 1, 1)

    assert planned(dense) != planned(sparse)
    assert planned(dense, sparse) == max(planned(dense), planned(sparse)) == planned(sparse, dense)


@pytest.mark.slow
def test_gptq_needs_no_more_than_planned(tmp_path: Path) -> None:
    from test_memory import peak

    sizes = {
        **{"num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 16},
        **{"num_experts_per_tok": 4, "moe_intermediate_size": 512},
    }
    source = build(tmp_path / "big", "deepseek2", "queries", **sizes)
    job = Job(str(source), ("Q4_0",), tmp_path, method="awq+gptq", calibration_tokens=4096)
    options = ["--method", "awq+gptq", "--calibration-tokens", "4096", "--threads", "2"]
    found = peak("convert", source, "-t", "Q4_0", "-o", tmp_path, *options)
    assert found < make_plan(replace(job, threads=2)).peak_memory_bytes
