"""The backward pass against finite differences of the same forward pass in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import VARIANTS, build

from quantcli.model import Model, open_model
from quantcli.transformer import Transformer, backward, sampling
from quantcli.transformer.activations import rms_norm
from quantcli.transformer.backward import gradients
from quantcli.transformer.block_pass import BlockPass
from quantcli.transformer.hyperparameters import read_hyperparameters

# Of the tiny models: the windows slide, and no tile or piece is the only one.
N_CTX = 80


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def windows(model: Model, *shape: int) -> np.ndarray:
    n_vocab = model.shapes["token_embd.weight"][0]
    return np.random.default_rng(7).integers(0, n_vocab, shape)


def slope(f: Callable[[float], float], step: float = 1e-5) -> float:
    """df/ds at 0, by differences of the fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


class Double:
    """A model in float64, each of whose linears can be asked to add something to its output."""

    def __init__(self, model: Model) -> None:
        self.sizes = read_hyperparameters(model.metadata)
        self.weights = {name: model.rows(name).astype(np.float64) for name in model.shapes}

    def block(self, number: int, n_ctx: int) -> BlockPass:
        rope = self.sizes.local_rope if self.sizes.windows[number] else self.sizes.rope
        table = rope.table(n_ctx, self.weights.get("rope_freqs.weight")).astype(np.float64)
        return BlockPass(number, self.sizes, self.weights, table)

    def logits(self, embedded: np.ndarray) -> np.ndarray:
        x = embedded * self.sizes.embedding_scale
        for number in range(self.sizes.n_block):
            x, _ = self.block(number, x.shape[1]).run(x)
        x = rms_norm(x, self.weights["output_norm.weight"], self.sizes.eps)
        logits = x @ self.weights.get("output.weight", self.weights["token_embd.weight"]).T
        cap = self.sizes.logit_cap
        return cap * np.tanh(logits / cap) if cap else logits

    def loss(self, embedded: np.ndarray, tokens: np.ndarray) -> float:
        logits = self.logits(embedded)
        wanted = np.take_along_axis(logits, tokens[..., None], axis=-1)
        return float((np.logaddexp.reduce(logits, axis=-1) - wanted[..., 0]).sum())


@pytest.fixture(params=VARIANTS, ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return open_model(str(build(tmp_path / "source", *request.param)))


def test_embedding_gradients_are_slopes_of_the_loss(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PIECE_WEIGHTS", 1 << 14)
    monkeypatch.setattr(backward, "TILE_TOKENS", 100)
    ids, double = windows(model, 2, N_CTX), Double(model)
    embedded = double.weights["token_embd.weight"][ids]
    found = gradients(model, ids)
    for seed in range(2):
        change = normal(*embedded.shape, seed=seed)
        expected = slope(lambda s, d=change: double.loss(embedded + s * d, found.tokens))
        scale = np.linalg.norm(found.embedding)
        assert abs((found.embedding * change).sum() - expected) < 1e-4 * scale


def test_the_forward_pass_is_the_transformers(model: Model) -> None:
    ids, double = windows(model, 1, N_CTX), Double(model)
    runner = Transformer(model)
    expected = runner.logits(runner.hidden(ids)[0])
    logits = double.logits(double.weights["token_embd.weight"][ids])[0]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
