"""The forward and backward pass of models that embed, against transformers and llama.cpp."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_backward import Double, normal, slope
from tiny_encoders import ENCODERS, build_encoder

import quantcli
from quantcli.architectures import find_wiring
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.model import Model, open_model
from quantcli.transformer import Transformer, backward, gradients, hyperparameters, transformer
from quantcli.transformer.activations import layer_norm
from quantcli.transformer.pooling import pool, pull_directions

RECORD = Path(__file__).parent / "data" / "transformer" / "hidden.npz"
KEPT = [0, 1, 64, 127, 128, 139]  # as in the record's own description, hidden.json
TOLERANCE = 2e-5  # of the largest value; hidden states have all about the same size

every_encoder = pytest.mark.parametrize(("family", "variant"), ENCODERS)


def recorded_error(folder: Path, name: str) -> float:
    """Largest difference to the record, relative to its largest value."""
    with np.load(RECORD) as record:
        ids, rows, mean = (record[f"{name}/{part}"] for part in ("ids", "rows", "mean"))
    hidden = Transformer(open_model(str(folder))).hidden(ids)
    errors = np.abs(hidden[:, KEPT] - rows).max(), np.abs(hidden[0].mean(axis=0) - mean).max()
    return float(max(errors) / np.abs(rows).max())


@every_encoder
def test_hidden_states_equal_transformers(tmp_path: Path, family: str, variant: str) -> None:
    folder = build_encoder(tmp_path / "source", family, variant)
    assert recorded_error(folder, f"{family}-{variant}") < TOLERANCE


MUTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "mean", {"causal": True}),
    ("bert", "mean", {"activation": "silu"}),
    ("bert", "odd", {"sum_norms": ("layer_output_norm", "attn_output_norm")}),
    ("nomic_bert", "mean", {"causal": True}),
    ("nomic_bert", "mean", {"rope": "norm"}),
    ("nomic_bert", "odd", {"activation": "gelu"}),
]


@pytest.mark.parametrize(("family", "variant", "change"), MUTATIONS)
def test_the_record_tells_every_wiring_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, variant: str, change: Any
) -> None:
    right = find_wiring(family.replace("_", "-"))
    monkeypatch.setattr(hyperparameters, "find_wiring", lambda _: replace(right, **change))
    folder = build_encoder(tmp_path / "source", family, variant)
    assert recorded_error(folder, f"{family}-{variant}") > 5 * TOLERANCE


# -- backward ------------------------------------------------------------------------------------


@pytest.fixture(params=[key for key in ENCODERS if key[1] == "odd"], ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return open_model(str(build_encoder(tmp_path / "source", *request.param)))


def hidden_in_double(double: Double, embedded: np.ndarray) -> np.ndarray:
    """The forward pass in float64 of rows of the embedding."""
    w = double.weights
    x = embedded + w["token_types.weight"][0]
    if double.sizes.wiring.positions:
        x = x + w["position_embd.weight"][: x.shape[1]]
    x = layer_norm(x, w["token_embd_norm.weight"], w["token_embd_norm.bias"], double.sizes.eps)
    for number in range(double.sizes.n_block):
        x, _ = double.block(number, x.shape[1]).run(x)
    return x


def test_gradients_are_slopes_of_the_embeddings_directions(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "PIECE_WEIGHTS", 1 << 13)
    monkeypatch.setattr(backward, "TILE_TOKENS", 40)
    double = Double(model)
    ids = np.random.default_rng(1).integers(0, 410, (3, 37))
    embedded = double.weights["token_embd.weight"][ids]
    base = hidden_in_double(double, embedded)
    np.testing.assert_allclose(Transformer(model).hidden(ids), base, atol=1e-4)
    found = gradients(model, ids)
    assert found.outputs.keys() == {name for name in model.shapes if _is_linear(model, name)}
    aim = pull_directions(base, double.sizes.pooling, 0)
    change = normal(*embedded.shape, seed=2) / np.linalg.norm(found.embedding)

    def moved(s: float) -> float:
        return float((hidden_in_double(double, embedded + s * change) * aim).sum())

    assert (found.embedding * change).sum() == pytest.approx(slope(moved, 1e-3), rel=1e-3)


def _is_linear(model: Model, name: str) -> bool:
    return name.startswith("blk") and len(model.shapes[name]) > 1


@pytest.mark.parametrize("kind", ["mean", "cls", "last", "none"])
def test_gradients_of_directions_say_what_the_cosine_loses(kind: str) -> None:
    hidden, change = normal(2, 5, 6), 1e-3 * normal(2, 5, 6, seed=1)
    before, after = pool(hidden, kind), pool(hidden + change, kind)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    lost = (1 - np.vecdot(before, after) / lengths).sum()
    pulls = [pull_directions(hidden, kind, seed) for seed in range(4000)]
    if kind == "none":
        moved = [np.square((g * change).sum(axis=-1)).sum() for g in pulls]
    else:
        moved = [np.square((g * change).sum(axis=(1, 2))).sum() for g in pulls]
    assert np.mean(moved) / 2 == pytest.approx(lost, rel=0.1)


def test_tokens_see_all_of_their_window_and_no_other(model: Model) -> None:
    runner, tokens = Transformer(model), np.arange(60).reshape(2, 30)
    before = runner.hidden(tokens)
    changed = tokens.copy()
    changed[0, 29] = 77
    after = runner.hidden(changed)
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max(axis=1).min() > 1e-4


@pytest.mark.parametrize(
    "number", [np.uint32(4), np.float32(1), np.array([1, 2], np.int32), "mean"]
)
def test_other_pooling_is_refused(tmp_path: Path, number: Any) -> None:
    opened = open_model(str(build_encoder(tmp_path / "source", "bert", "odd")))
    opened.metadata["bert.pooling_type"] = number
    with pytest.raises(UnsupportedError, match="the forward pass pools by none, mean, cls, last"):
        Transformer(opened)


@pytest.mark.parametrize("name", ["token_embd_norm.bias", "blk.1.layer_output_norm.weight"])
def test_tensors_of_encoders_are_checked(tmp_path: Path, name: str) -> None:
    opened = open_model(str(build_encoder(tmp_path / "source", "bert", "odd")))
    for shape, said in (((95,), "has shape"), (None, "is missing")):
        if shape is None:
            del opened.shapes[name]
        else:
            opened.shapes[name] = shape
        with pytest.raises(BadInputError, match=said):
            Transformer(opened)
    opened.shapes |= {name: (96,), "output_norm.weight": (96,)}
    with pytest.raises(UnsupportedError, match=r"'output_norm.weight' has no place"):
        Transformer(opened)


# -- llama.cpp -----------------------------------------------------------------------------------


@pytest.mark.runtime
@every_encoder
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K_M"])
def test_llama_cpp_embeds_alike(tmp_path: Path, family: str, variant: str, kind: str) -> None:
    from llama_cpp import embedding

    source = build_encoder(tmp_path / "source", family, variant)
    (output,) = quantcli.convert(quantcli.Job(str(source), types=(kind,), output=tmp_path)).outputs
    runner = Transformer(open_model(output.paths[0]), activations="llama-cpu")
    ids = [2, *(np.arange(70) * 7919 % 400 + 5).tolist(), 3]
    said = runner.sizes.pooling
    hidden = runner.hidden(np.array([ids]))
    expected = pool(hidden, "mean" if said == "none" else said)[0]
    found = embedding(Path(output.paths[0]), ids, mean=said == "none")
    expected /= np.linalg.norm(expected)
    if kind == "F32":  # llama.cpp looks ungated gelu up in a table of fp16
        np.testing.assert_allclose(found, expected, atol=2e-4 if family == "bert" else 1e-6)
    else:  # one activation that rounds the other way moves more than that
        assert found @ expected > 1 - 1e-4
