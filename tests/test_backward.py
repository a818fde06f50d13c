"""The backward pass against finite differences of the same forward pass in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slow_twins import slow_twin
from tiny_models import VARIANTS, build

from quantcli.errors import BadInputError
from quantcli.model import Model, open_model
from quantcli.transformer import (
    Gradients,
    Transformer,
    activations,
    backward,
    derivatives,
    gradients,
    sampling,
    scratch,
    transformer,
)
from quantcli.transformer.activations import CLAMPED, gate, layer_norm, rms_norm
from quantcli.transformer.block_pass import BlockPass
from quantcli.transformer.derivatives import attention_and_pull, gate_and_pull
from quantcli.transformer.hyperparameters import read_hyperparameters

N_CTX = 80  # more than the sliding windows of the tiny models


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def windows(model: Model, *shape: int) -> np.ndarray:
    n_vocab = model.shapes["token_embd.weight"][0]
    return np.random.default_rng(7).integers(0, n_vocab, shape)


def slope(f: Callable[[float], float], step: float = 1e-4) -> float:
    """df/ds at 0, by differences of the fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


class Nudged(BlockPass):
    """Adds `nudge` = (linear, token, output, amount) to one output of one linear."""

    nudge: tuple[str, int, int, float] = ("", 0, 0, 0.0)

    def linear(self, name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        y, (wanted, token, output, amount) = super().linear(name, x, expert), self.nudge
        if name == wanted:
            y[token, output] += amount
        return y


class Double:
    """A model in float64."""

    def __init__(self, model: Model) -> None:
        self.sizes = read_hyperparameters(model.metadata, model.shapes)
        self.run = Transformer(model)
        self.weights = {
            name: model.rows(name).astype(np.float64).reshape(shape)
            for name, shape in model.shapes.items()
        }

    def block(self, number: int, n_ctx: int) -> Nudged:
        table = self.run.rope_table(number, n_ctx).astype(np.float64)
        return Nudged(number, self.sizes, self.weights, table)

    def logits(self, embedded: np.ndarray) -> np.ndarray:
        x = embedded * self.sizes.embedding_scale
        if self.sizes.wiring.positions:
            x = x + self.weights["position_embd.weight"][: x.shape[1]]
        for number in range(self.sizes.n_block):
            x, _ = self.block(number, x.shape[1]).run(x)
        norm, bias = (self.weights.get(f"output_norm.{part}") for part in ("weight", "bias"))
        assert norm is not None
        if self.sizes.wiring.norm == "rms":
            x = rms_norm(x, norm, self.sizes.eps)
        else:
            x = layer_norm(x, norm, bias, self.sizes.eps)
        logits = x @ self.weights.get("output.weight", self.weights["token_embd.weight"]).T
        logits = logits * self.sizes.logit_scale
        cap = self.sizes.logit_cap
        return cap * np.tanh(logits / cap) if cap else logits

    def loss(self, embedded: np.ndarray, tokens: np.ndarray) -> float:
        logits = self.logits(embedded)
        wanted = np.take_along_axis(logits, tokens[..., None], axis=-1)
        return float((np.logaddexp.reduce(logits, axis=-1) - wanted[..., 0]).sum())


@pytest.fixture(
    params=[pytest.param(key, marks=slow_twin(key), id="-".join(key)) for key in VARIANTS]
)
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    for module in (activations, derivatives):  # of a function with kinks, which differences see
        monkeypatch.setattr(module, "LIMIT", np.float32(1000))
    return open_model(str(build(tmp_path / "source", *request.param)))


def test_a_clamped_activation_has_no_slope_beyond_its_limit() -> None:
    gated, up = np.meshgrid([-9.0, -2.5, 0.0, 1.5, 6.9, 7.1], [-7.5, -6.5, -0.5, 3.0, 6.5, 8.0])
    dy = normal(*gated.shape)
    _, pull = gate_and_pull(CLAMPED, gated, up)
    found = pull(dy)
    for which, ours in enumerate(found):

        def moved(s: float, place: tuple[int, ...], which: int = which) -> float:
            given = [gated.copy(), up.copy()]
            given[which][place] += s
            return float((gate(CLAMPED, *given) * dy)[place])

        for place in np.ndindex(gated.shape):
            expected = slope(lambda s, place=place: moved(s, place))
            assert ours[place] == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile and no piece is the only one."""
    monkeypatch.setattr(sampling, "PIECE_WEIGHTS", 1 << 15)
    monkeypatch.setattr(transformer, "PIECE_WEIGHTS", 1 << 15)
    monkeypatch.setattr(sampling, "TILE_TOKENS", 48)
    monkeypatch.setattr(backward, "TILE_TOKENS", 100)


def test_the_forward_pass_is_the_transformers(model: Model) -> None:
    ids, double = windows(model, 1, N_CTX), Double(model)
    runner = Transformer(model)
    expected = runner.logits(runner.hidden(ids)[0])
    logits = double.logits(double.weights["token_embd.weight"][ids])[0]
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.usefixtures("small_pieces")
def test_embedding_gradients_are_slopes_of_the_loss(model: Model) -> None:
    ids, double = windows(model, 3, N_CTX), Double(model)
    embedded = double.weights["token_embd.weight"][ids]
    found = gradients(model, ids)
    linears = [
        name
        for name, shape in model.shapes.items()
        if name[:3] == "blk" and name.endswith(".weight") and len(shape) > 1
    ]
    head = "output.weight" if "output.weight" in model.shapes else "token_embd.weight"
    assert {name: len(squares) for name, squares in found.outputs.items()} == {
        name: model.shapes[name][0] for name in [*linears, head]
    }
    for seed in range(2):
        # Shrunk towards the start, whose gradients are the largest.
        change = normal(*embedded.shape, seed=seed) / np.linalg.norm(found.embedding)
        expected = slope(lambda s, d=change: double.loss(embedded + s * d, found.tokens))
        assert abs((found.embedding * change).sum() - expected) < 1e-4


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_blocks_pull_back_what_differences_say(model: Model, number: int) -> None:
    double, n_ctx = Double(model), 5
    block = double.block(number, n_ctx)
    x, aim, change = (normal(2, n_ctx, double.sizes.n_embd, seed=seed) for seed in (1, 2, 3))

    def moved(s: float) -> float:
        return float((block.run(x + s * change)[0] * aim).sum())

    def nudged(name: str, token: int, output: int) -> float:
        """The slope along one output of a linear at one token."""

        def run(s: float) -> float:
            block.nudge = (name.removesuffix(".weight"), token, output, s)
            return moved(0)

        return slope(run)

    dx = block.run(x)[1](aim)
    # The slope of a squared relu has a kink, which differences see.
    rel = 1e-4 if double.sizes.wiring.activation == "relu2" else 1e-7
    assert (dx * change).sum() == pytest.approx(slope(moved), rel=rel)
    for name, squares in list(block.squares.items()):
        if squares.ndim > 1:  # of experts, whose tokens have other numbers
            continue
        output = len(squares) // 3
        slopes = [nudged(name, token, output) for token in range(2 * n_ctx)]
        assert squares[output] == pytest.approx(np.square(slopes).sum(), rel=10 * rel), name


@pytest.mark.usefixtures("small_pieces")
def test_tokens_are_drawn_from_the_predictions(model: Model) -> None:
    ids, double = windows(model, 20, 5), Double(model)
    found = gradients(model, ids, seed=3)
    logits = double.logits(double.weights["token_embd.weight"][ids]).reshape(ids.size, -1)
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    draws = np.random.default_rng(3).random(ids.size)
    sums = p.cumsum(axis=1)
    expected = (sums <= draws[:, None]).sum(axis=1)
    # Where a draw meets a sum, float32 may see it on the other side.
    close = np.abs(sums - draws[:, None]).min(axis=1) < 1e-6
    assert close.sum() <= 1
    np.testing.assert_array_equal(found.tokens.reshape(-1)[~close], expected[~close])
    np.testing.assert_allclose(found.tokens.reshape(-1), expected, atol=1)
    expected = found.tokens.reshape(-1)
    assert len(np.unique(expected)) > 50
    p[np.arange(ids.size), expected] -= 1
    if double.sizes.logit_cap:
        p *= 1 - np.square(logits / double.sizes.logit_cap)
    p *= double.sizes.logit_scale
    name = "output.weight" if "output.weight" in model.shapes else "token_embd.weight"
    np.testing.assert_allclose(found.outputs[name], np.square(p).mean(axis=0), rtol=1e-3)


@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (50, 3.0), (140, 0.0)])
def test_attention_pulls_back_tile_by_tile(window: int, cap: float) -> None:
    q, k, v = (normal(300, heads, 8, seed=heads) for heads in (4, 2, 2))
    changes = [normal(*a.shape, seed=9) for a in (q, k, v)]
    aim = normal(*q.shape, seed=8)

    def moved(s: float) -> float:
        parts = [a + s * d for a, d in zip((q, k, v), changes, strict=True)]
        return float((attention_and_pull(*parts, window=window, cap=cap)[0] * aim).sum())

    _, pull = attention_and_pull(q, k, v, window=window, cap=cap)
    found = sum(float((dx * d).sum()) for dx, d in zip(pull(aim), changes, strict=True))
    assert found == pytest.approx(slope(moved), rel=1e-7)


def test_the_metric_is_the_mean_outer_product() -> None:
    g = normal(3, 7, 4).astype(np.float32)
    metric = Gradients(np.zeros((3, 7), np.int64), g, {}).embedding_metric()
    expected = np.mean([np.outer(row, row) for row in g.reshape(-1, 4)], axis=0)
    np.testing.assert_allclose(metric, expected, atol=1e-6)
    assert metric.dtype == np.float32


@pytest.mark.usefixtures("small_pieces")
def test_threads_and_memory_mapping_change_no_bit(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(demo))
    ids = windows(model, 7, 50)
    first, other = gradients(model, ids), gradients(model, ids, seed=1)
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    again = gradients(model, ids, threads=3)
    assert isinstance(again.embedding, np.memmap)
    np.testing.assert_array_equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.embedding, first.embedding)
    assert again.outputs.keys() == first.outputs.keys()
    for name, squares in again.outputs.items():
        np.testing.assert_array_equal(squares, first.outputs[name])
    assert (other.tokens != first.tokens).mean() > 0.5


class Damaged:
    """A model one of whose tensors is not a number."""

    def __init__(self, model: Model, tensor: str) -> None:
        self.metadata, self.shapes, self.types = model.metadata, model.shapes, model.types
        self._model, self._tensor = model, tensor

    def rows(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self._model.rows(name, rows) * np.float32(np.nan if name == self._tensor else 1)


@pytest.mark.parametrize(
    ("tensor", "where"),
    [
        ("blk.2.ffn_up.weight", "the end of block 2"),
        ("output.weight", "the output head"),
    ],
)
def test_what_is_not_finite_is_named(demo: Path, tensor: str, where: str) -> None:
    model = Damaged(open_model(str(demo)), tensor)
    with pytest.raises(BadInputError, match=f"activations at {where} are not finite"):
        gradients(model, np.arange(8)[None])
