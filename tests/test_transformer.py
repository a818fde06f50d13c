"""The forward pass against transformers' logits, from every kind of source and on any threads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VARIANTS, build, describe

import quantcli
from quantcli.architectures import find
from quantcli.architectures.deepseek import DEEPSEEK2
from quantcli.architectures.falcon import FALCON
from quantcli.architectures.wiring import Mixture
from quantcli.model import open_model
from quantcli.transformer import Site, Transformer, block, hyperparameters, scratch, transformer

RECORDS = Path(__file__).parent / "data" / "transformer"
KEPT = [0, 1, 40, 63, 64, 65, 79]  # as in the record's own description, logits.json
TOLERANCE = 2e-5  # of the largest logit of the token; the forward pass promises 2e-4


def all_logits(model: Transformer, ids: np.ndarray) -> np.ndarray:
    return model.logits(model.hidden(ids[None])[0])


def recorded_error(folder: Path, family: str, variant: str) -> float:
    """Largest difference to the record, relative to each token's largest logit."""
    own = RECORDS / f"logits-{family}.npz"
    with np.load(own if own.exists() else RECORDS / "logits.npz") as record:
        ids, rows, largest, total = (
            record[f"{family}-{variant}/{part}"] for part in ("ids", "rows", "largest", "sum")
        )
    found = all_logits(Transformer(open_model(str(folder))), ids)
    return max(
        (np.abs(found[KEPT] - rows).max(axis=1) / largest[KEPT]).max(),
        np.abs(np.abs(found).max(axis=1) / largest - 1).max(),
        np.abs(np.abs(found).sum(axis=1) / total - 1).max(),
    )


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_logits_equal_transformers(tmp_path: Path, family: str, variant: str) -> None:
    assert recorded_error(build(tmp_path / "source", family, variant), family, variant) < TOLERANCE


assert FALCON.wiring is not None
_FALCON = FALCON.wiring.with_tensor["attn_norm_2"]
assert DEEPSEEK2.wiring is not None
_DEEPSEEK = DEEPSEEK2.wiring.with_tensor["attn_q_a"]
_OPTIONAL = Mixture(normalized=True, shared=True, shared_gate=False, shared_optional=True)
_MIXTURE = Mixture(normalized=False, shared=True, shared_gate=False, scaled=True)

MUTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "gqa", {"rope": "neox"}),
    ("qwen3", "tied", {"rope": "norm"}),
    ("llama", "gqa", {"activation": "gelu"}),
    ("gemma2", "tied", {"activation": "silu"}),
    ("gemma2", "tied", {"scaled_embedding": False}),
    ("gemma2", "tied", {"global_every": 0}),
    ("gemma2", "tied", {"global_every": 1}),
    ("gemma2", "tied", {"post_norms": ("post_ffw_norm", "post_attention_norm")}),
    ("gemma2", "tied", {"attention_cap": None}),
    ("gemma2", "tied", {"logit_cap": None}),
    ("gemma2", "tied", {"wide_blocks": 2, "scaled_embedding": False}),
    ("gemma3", "tied", {"local_rope": False}),
    ("gemma3", "tied", {"global_every": 3}),
    ("gemma3", "odd", {"logit_cap": None}),
    ("smollm3", "tied", {"unturned_every": 0}),
    ("smollm3", "odd", {"unturned_every": 3}),
    ("phi3", "odd", {"rope": "norm"}),
    ("olmo2", "mha", {"post_norms": ("post_ffw_norm", "post_attention_norm")}),
    ("granite", "tied", {"multipliers": False}),
    ("granite", "tied", {"logit_scale": 0}),
    ("cohere", "tied", {"parallel": False}),
    ("cohere", "tied", {"rope": "neox"}),
    ("cohere", "tied", {"logit_scale": -1}),
    ("stablelm", "gqa", {"rope": "norm"}),
    ("stablelm", "gqa", {"parallel": True}),
    ("starcoder2", "tied", {"activation": "silu"}),
    ("starcoder2", "tied", {"activation": "relu2"}),
    ("gpt_neox", "parallel", {"parallel": False}),
    ("gpt_neox", "odd", {"parallel": True}),
    ("nemotron", "gqa", {"activation": "gelu"}),
    ("olmo3", "yarn", {"local_rope": False}),
    ("olmo3", "yarn", {"global_every": 0}),
    ("gpt2", "tied", {"rope": "neox"}),
    ("gpt2", "odd", {"activation": "silu"}),
    ("gpt2", "odd", {"parallel": True}),
    ("falcon", "shared", {"rope": "norm"}),
    ("falcon", "shared", {"parallel": False}),
    ("falcon", "mha", {"activation": "relu2"}),
    (
        "falcon",
        "grouped",
        {"with_tensor": {"attn_norm_2": replace(_FALCON, norms=("attn_norm", "attn_norm_2"))}},
    ),
    ("glm", "half", {"rope": "neox"}),
    ("glm4", "half", {"rope": "neox"}),
    ("glm4", "half", {"post_norms": ("post_ffw_norm", "post_attention_norm")}),
    ("internlm2", "gqa", {"rope": "neox"}),
    ("exaone", "gqa", {"rope": "norm"}),
    ("exaone", "gqa", {"activation": "gelu"}),
    ("gemma4", "tied", {"rope": "norm"}),
    ("gemma4", "tied", {"activation": "silu"}),
    ("gemma4", "tied", {"attention_scale": None}),
    ("gemma4", "tied", {"value_norm": False}),
    ("gemma4", "tied", {"scaled_embedding": False}),
    ("gemma4", "odd", {"logit_cap": None}),
    ("gemma4", "odd", {"post_norms": ("post_ffw_norm", "post_attention_norm")}),
    ("qwen3moe", "eight", {"mixture": Mixture(normalized=False)}),
    ("qwen2moe", "shared", {"mixture": Mixture(normalized=True, shared=True)}),
    ("gpt_oss", "blocks", {"rope": "norm"}),
    ("gpt_oss", "blocks", {"global_every": 0}),
    ("gpt_oss", "plain", {"local_rope": True}),
    ("gpt_oss", "plain", {"activation": "silu"}),
    ("gpt_oss", "odd", {"rope": "norm"}),
    ("gpt_oss", "odd", {"mixture": Mixture(normalized=False, biased=True)}),
    ("granitemoe", "eight", {"rope": "neox"}),
    ("granitemoe", "eight", {"multipliers": False}),
    ("granitemoe", "odd", {"logit_scale": 0}),
    ("granitemoe", "odd", {"mixture": Mixture(normalized=False)}),
    (
        "granitemoeshared",
        "shared",
        {"mixture": replace(_OPTIONAL, normalized=False)},
    ),
    ("deepseek2", "lite", {"rope": "neox"}),
    ("deepseek2", "lite", {"mixture": replace(_MIXTURE, normalized=True)}),
    (
        "deepseek2",
        "queries",
        {"with_tensor": {"attn_q_a": replace(_DEEPSEEK, mixture=replace(_MIXTURE, scaled=False))}},
    ),
]


@pytest.mark.parametrize(("family", "variant", "change"), MUTATIONS)
def test_the_record_tells_every_wiring_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, variant: str, change: Any
) -> None:
    right = find(describe(family, variant)[0]).wiring
    assert right is not None
    wrong = replace(right, **change)
    monkeypatch.setattr(hyperparameters, "find_wiring", lambda name: wrong)
    folder = build(tmp_path / "source", family, variant)
    assert recorded_error(folder, family, variant) > 5 * TOLERANCE


def test_trained_logits_equal_transformers(demo: Path) -> None:
    model = Transformer(open_model(str(demo)))
    recorded = np.load(demo / "reference_logits.npz")
    for prompt in (0, 1):
        expected = recorded[f"logits_{prompt}"]
        error = np.abs(all_logits(model, recorded[f"ids_{prompt}"]) - expected).max(axis=1)
        assert (error / np.abs(expected).max(axis=1)).max() < 5e-6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo checkpoint as GGUF files."""
    demo, folder = Path(__file__).parent / "models" / "demo", tmp_path_factory.mktemp("files")
    job = quantcli.Job(str(demo), types=("F32", "Q8_0", "Q4_K_M", "Q2_K"), output=folder)
    return {made.file_type: Path(made.paths[0]) for made in quantcli.convert(job).outputs}


def windows(n_windows: int, n_ctx: int, vocabulary: int = 2048) -> np.ndarray:
    return np.random.default_rng(7).integers(0, vocabulary, (n_windows, n_ctx)).astype(np.int32)


def test_a_file_computes_what_its_checkpoint_does(demo: Path, files: dict[str, Path]) -> None:
    tokens = windows(3, 70)
    one, other = (
        Transformer(open_model(str(source))).hidden(tokens) for source in (demo, files["F32"])
    )
    np.testing.assert_array_equal(one, other)
    assert one.std() > 0.1


def test_quantized_files_come_nearer_with_more_bits(files: dict[str, Path], demo: Path) -> None:
    ids = np.load(demo / "reference_logits.npz")["ids_1"]
    exact = all_logits(Transformer(open_model(str(files["F32"]))), ids)
    errors = [
        np.abs(all_logits(Transformer(open_model(str(files[name]))), ids) - exact).mean()
        for name in ("Q8_0", "Q4_K_M", "Q2_K")
    ]
    assert 0 < errors[0] < errors[1] / 3 < errors[2] / 6


def test_threads_and_memory_mapping_change_no_bit(
    demo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transformer, "TILE_TOKENS", 128)
    monkeypatch.setattr(transformer, "PIECE_WEIGHTS", 1 << 16)
    tokens = windows(7, 50)
    first = Transformer(open_model(str(demo)))
    hidden = first.hidden(tokens)
    logits = first.logits(hidden[2])
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    mapped = Transformer(open_model(str(demo)), threads=3)
    again = mapped.hidden(tokens)
    assert isinstance(again, np.memmap)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(again, hidden)
    np.testing.assert_array_equal(mapped.logits(again[2]), logits)


def test_tokens_see_neither_the_future_nor_other_windows(demo: Path) -> None:
    model, tokens = Transformer(open_model(str(demo))), windows(2, 60)
    before = model.hidden(tokens)
    changed = tokens.copy()
    changed[0, 40] = (changed[0, 40] + 1) % 2048
    after = model.hidden(changed)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_allclose(after[0, :40], before[0, :40], atol=1e-5)
    assert np.abs(after[0, 40:] - before[0, 40:]).max(axis=1).min() > 1e-3


def test_long_windows_run_in_pieces(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, seen = Transformer(open_model(str(demo))), windows(1, 70), []
    whole = model.hidden(tokens)
    monkeypatch.setattr(block, "TILE_TOKENS", 32)
    pieces = model.hidden(tokens, tap=lambda site, x: seen.append((site.name, len(x))))
    np.testing.assert_allclose(pieces, whole, atol=2e-5)
    assert [n for name, n in seen if name == "blk.2.ffn"] == [32, 32, 6]


def test_taps_see_the_input_of_every_linear_once(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "TILE_TOKENS", 64)
    model = open_model(str(demo))
    tokens = windows(5, 30)
    seen: dict[Site, list[np.ndarray]] = {}
    runner = Transformer(model, threads=2)
    hidden = runner.hidden(tokens, tap=lambda site, x: seen.setdefault(site, []).append(x.copy()))
    assert list(seen) == runner.sites
    linears = [name for name, shape in model.shapes.items() if name[:3] == "blk" and len(shape) > 1]
    assert sorted(name for site in seen for name in site.weights) == sorted(linears)
    inputs = {site.name: np.concatenate(parts) for site, parts in seen.items()}
    for site in seen:
        n_in = model.shapes[site.weights[0]][1]
        assert inputs[site.name].shape == (tokens.size, n_in)
    embedded = model.rows("token_embd.weight")[tokens.reshape(-1)].astype(np.float64)
    norm = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = norm * model.rows("blk.0.attn_norm.weight")
    np.testing.assert_allclose(inputs["blk.0.attn"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(runner.hidden(tokens), hidden)


def test_llama_cpu_rounds_only_what_quantized_weights_meet(files: dict[str, Path]) -> None:
    ids = windows(1, 40)[0]
    for name, differs in (("F32", False), ("Q8_0", True), ("Q4_K_M", True)):
        model = open_model(str(files[name]))
        exact = all_logits(Transformer(model), ids)
        rounded = all_logits(Transformer(model, activations="llama-cpu"), ids)
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        assert 1e-4 < error < 5e-2 if differs else error == 0


@pytest.mark.runtime
def test_llama_cpp_computes_the_same(files: dict[str, Path], demo: Path) -> None:
    from llama_cpp import Runtime

    recorded = np.load(demo / "reference_logits.npz")
    # One activation that rounds the other way moves logits as much as all rounding does: both
    # prompts together are within the bound.
    for name, tolerance in (("F32", 2e-5), ("Q8_0", 0.03), ("Q4_K_M", 0.03)):
        errors = []
        runtime, model = Runtime(files[name]), open_model(str(files[name]))
        for ids in (recorded["ids_0"], recorded["ids_1"]):
            expected = runtime.next_log_probabilities(ids.tolist(), 2048)
            logits = all_logits(Transformer(model, activations="llama-cpu"), ids)[-1]
            shifted = logits.astype(np.float64) - logits.max()
            found = shifted - np.log(np.exp(shifted).sum())
            errors.append(np.abs(found - expected).mean())
        assert np.mean(errors) < tolerance
