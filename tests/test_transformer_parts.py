"""Attention, rope, gates and llama.cpp's rounding, each against a plain computation in float64."""

import math

import gguf
import numpy as np
import pytest

from quantcli.transformer.activations import gate, rms_norm
from quantcli.transformer.attention import attention
from quantcli.transformer.rope import Rope, rotate
from quantcli.transformer.rounding import round_like_llama_cpp


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, cap: float
) -> np.ndarray:
    n_ctx, n_head, _ = q.shape
    i, j = np.ogrid[:n_ctx, :n_ctx]
    seen = (j <= i) & ((i - j < window) if window else True)
    out = np.empty(q.shape)
    for head in range(n_head):
        source = head // (n_head // k.shape[1])
        scores = q[:, head].astype(np.float64) @ k[:, source].T
        scores = cap * np.tanh(scores / cap) if cap else scores
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = p / p.sum(axis=1, keepdims=True) @ v[:, source]
    return out


@pytest.mark.parametrize("n_ctx", [1, 2, 127, 128, 300])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (1, 0.0), (50, 3.0), (128, 0.0), (999, 2.0)])
def test_attention_in_tiles(n_ctx: int, window: int, cap: float) -> None:
    q, k, v = normal(n_ctx, 6, 16), normal(n_ctx, 2, 16, seed=1), normal(n_ctx, 2, 16, seed=2)
    out = np.full_like(q, np.nan)
    attention(q, k, v, out, window=window, cap=cap)
    np.testing.assert_allclose(out, plain_attention(q, k, v, window, cap), atol=3e-6)


def test_attention_survives_large_scores() -> None:
    q, k, v = 100 * normal(40, 1, 8), 100 * normal(40, 1, 8, seed=1), normal(40, 1, 8, seed=2)
    out = np.empty_like(q)
    attention(q, k, v, out, window=0, cap=0.0)
    np.testing.assert_allclose(out, plain_attention(q, k, v, 0, 0.0), atol=1e-2)


@pytest.mark.parametrize(("style", "pair"), [("norm", (6, 7)), ("neox", (3, 11))])
def test_rope_turns_pairs(style: str, pair: tuple[int, int]) -> None:
    rope = Rope(head_dim=16, base=100.0, factor=2.0)
    x = normal(9, 3, 16)
    turned = rotate(x, rope.table(9), style)
    angle = np.arange(9) / 2 * 100.0 ** (-2 * 3 / 16)  # the fourth pair
    a, b = (x[:, 1, axis].astype(np.float64) for axis in pair)
    np.testing.assert_allclose(turned[:, 1, pair[0]], a * np.cos(angle) - b * np.sin(angle), 1e-4)
    np.testing.assert_allclose(turned[:, 1, pair[1]], a * np.sin(angle) + b * np.cos(angle), 1e-4)


def test_yarn_stretches_slow_dimensions_only() -> None:
    yarn = Rope(64, 10000.0, 4.0, yarn=True, original_context=4096, magnitude=1.25)
    plain, linear = (Rope(64, 10000.0, factor).table(5) for factor in (1.0, 4.0))
    table = yarn.table(5)
    np.testing.assert_allclose(table[..., 0], 1.25 * plain[..., 0], rtol=1e-6)
    np.testing.assert_allclose(table[..., -1], 1.25 * linear[..., -1], rtol=1e-5, atol=1e-9)
    middle = table[1, 4, 0, 16:20] / 1.25
    assert (middle < plain[1, 4, 0, 16:20]).all()
    assert (middle > linear[1, 4, 0, 16:20]).all()


def test_rope_factors_divide_frequencies() -> None:
    factors = np.full(8, 3.0, np.float32)
    np.testing.assert_allclose(
        Rope(16, 500.0).table(6, factors), Rope(16, 500.0, 3.0).table(6), atol=1e-6
    )


def test_gates_and_norms() -> None:
    x, up = 8 * normal(700, 300), normal(700, 300, seed=1)
    x[0, :4] = 0, 90, -90, 1e37
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        silu = wide / (1 + np.exp(-wide))
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    gelu = wide / 2 * (1 + np.tanh(inner))
    for name, expected in (("silu", silu), ("gelu", gelu)):
        with np.errstate(over="ignore"):
            found = gate(name, x.copy(), up)
        np.testing.assert_allclose(found, expected * up, rtol=1e-5, atol=1e-5)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * up[0]
    np.testing.assert_allclose(rms_norm(x[1:], up[0], 1e-5), expected[1:], rtol=1e-5)


def test_super_blocks_are_rounded_like_q8_k() -> None:
    x = normal(5, 512) * np.float32(10.0) ** np.arange(-2, 3, dtype=np.float32)[:, None]
    x[1, 256:] = 0
    x[2, 3] = -40 * np.abs(x[2]).max()
    found = round_like_llama_cpp(x, "Q4_K")
    for row, values in zip(found.reshape(-1, 256), x.reshape(-1, 256), strict=True):
        largest = values[np.abs(values).argmax()]
        if not largest:
            assert not row.any()
            continue
        iscale = np.float32(-127) / largest
        codes = np.minimum(127, np.rint(iscale * values))
        np.testing.assert_array_equal(row, np.float32(1) / iscale * codes)
    assert np.abs(found - x).max() > 0


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q5_1"])
def test_legacy_blocks_are_rounded_like_q8_0(type_name: str) -> None:
    x = normal(64, 96, seed=3)
    packed = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(round_like_llama_cpp(x, type_name), expected)


def test_floats_are_rounded_to_their_own_type() -> None:
    x = normal(4, 32)
    assert round_like_llama_cpp(x, "F32") is x
    np.testing.assert_array_equal(round_like_llama_cpp(x, "F16"), x.astype(np.float16))
    bf16 = round_like_llama_cpp(x, "BF16")
    assert not (bf16.view(np.uint32) & 0xFFFF).any()
    assert 0 < np.abs(bf16 / x - 1).max() <= 2**-8
