"""Mixtures of experts: who sees what, importance of each expert, what is planned and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from tiny_models import MIXTURES, build

import quantcli
from quantcli.calibration import Imatrix, calibrate, read_text, unreached, write_imatrix
from quantcli.gguf_file import Slot, Writer, read_header, read_tensor
from quantcli.model import open_model
from quantcli.planning import Job
from quantcli.tensor_types import get
from quantcli.transformer import Site, Transformer
from quantcli.transformer.mixture import route

DATA = Path(__file__).parent / "data"
RECORD = DATA / "transformer" / "logits.npz"
UP, DOWN = "blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"

each_mixture = pytest.mark.parametrize(("family", "variant"), MIXTURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 experts of which each token sees 2."""
    return build(tmp_path_factory.mktemp("mixture") / "tiny", "qwen3moe", "eight")


@pytest.fixture(scope="module")
def imatrix(folder: Path) -> Imatrix:
    text = read_text(str(DATA / "tokenizer" / "text.txt"))
    return calibrate(open_model(str(folder)), text, tokens=512, context=128, threads=2)


# -- the forward pass ---------------------------------------------------------------------------


def test_routing_is_softmax_then_the_largest() -> None:
    logits = np.array([[0.0, 2.0, 1.0, -1.0], [5.0, 5.0, -90.0, 4.0]], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    plain, scaled = route(logits, 2, normalized=False), route(logits, 2, normalized=True)
    np.testing.assert_array_equal(plain.experts, [[1, 2], [0, 1]])
    np.testing.assert_allclose(plain.weights, [shares[0, [1, 2]], shares[1, [0, 1]]], rtol=1e-6)
    np.testing.assert_allclose(scaled.weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled.weights[1], [0.5, 0.5], rtol=1e-6)
    tokens, weights = plain.of(1)
    np.testing.assert_array_equal(tokens, [0, 1])
    np.testing.assert_array_equal(weights[:, 0], [plain.weights[0, 0], plain.weights[1, 1]])


def test_each_expert_sees_its_own_tokens(folder: Path) -> None:
    model, tokens = open_model(str(folder)), np.arange(96, dtype=np.int32).reshape(3, 32)
    seen: dict[Site, np.ndarray] = {}
    runner = Transformer(model)
    hidden = runner.hidden(tokens, tap=lambda site, x: seen.setdefault(site, x.copy()))
    by_name = {site.name: x for site, x in seen.items()}
    y = by_name["blk.0.ffn"]
    chosen = np.argsort(-(y @ model.rows("blk.0.ffn_gate_inp.weight").T), axis=1)[:, :2]
    for expert in range(8):
        mine = y[(chosen == expert).any(axis=1)]
        np.testing.assert_array_equal(by_name[f"blk.0.ffn_exps.{expert}"], mine)
        assert by_name[f"blk.0.ffn_down_exps.{expert}"].shape == (len(mine), 256)
    assert set(seen) <= set(runner.sites)
    np.testing.assert_array_equal(Transformer(model, threads=2).hidden(tokens), hidden)


@each_mixture
def test_a_file_computes_what_its_checkpoint_does(
    tmp_path: Path, family: str, variant: str
) -> None:
    source = build(tmp_path / "source", family, variant)
    made = quantcli.convert(Job(str(source), ("F32",), tmp_path)).outputs[0]
    tokens = np.arange(80, dtype=np.int32).reshape(2, 40)
    one, other = (
        Transformer(open_model(name)).hidden(tokens) for name in (made.paths[0], str(source))
    )
    np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, Path]:
    """A file of the model, and the same one without the key of its experts' size."""
    place = tmp_path_factory.mktemp("nameless")
    whole, without = place / "whole.gguf", place / "without.gguf"
    quantcli.convert(Job(str(folder), ("F32",), whole))
    header = read_header(whole)
    metadata = {k: v for k, v in header.metadata.items() if "expert_feed_forward" not in k}
    assert len(metadata) == len(header.metadata) - 1
    entries = header.tensors.values()
    with Writer(without, metadata, [Slot(e.name, e.shape, e.type_id) for e in entries]) as out:
        for entry in entries:
            out.write(entry.name, np.ascontiguousarray(read_tensor(entry)))
        out.commit()
    return whole, without


def test_the_size_of_experts_that_a_file_does_not_say(nameless: tuple[Path, Path]) -> None:
    """As llama.cpp has it: the mlp's, divided by the number of experts that a token sees."""
    tokens = np.arange(80, dtype=np.int32).reshape(2, 40)
    one, other = (Transformer(open_model(str(path))).hidden(tokens) for path in nameless)
    np.testing.assert_array_equal(one, other)


@pytest.mark.runtime
def test_llama_cpp_loads_such_a_file(nameless: tuple[Path, Path]) -> None:
    from llama_cpp import Runtime

    with np.load(RECORD) as record:
        ids = record["qwen3moe-eight/ids"].tolist()
    n_vocab = open_model(str(nameless[0])).shapes["token_embd.weight"][0]
    one, other = (Runtime(path).next_log_probabilities(ids, n_vocab) for path in nameless)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.runtime
@each_mixture
def test_llama_cpp_computes_the_same(tmp_path: Path, family: str, variant: str) -> None:
    """Of F32 files, against transformers' logits of the last token recorded."""
    from llama_cpp import Runtime

    source = build(tmp_path / "source", family, variant)
    made = quantcli.convert(Job(str(source), ("F32",), tmp_path)).outputs[0]
    own = RECORD.with_name(f"logits-{family}.npz")
    with np.load(own if own.exists() else RECORD) as record:
        ids, rows = (record[f"{family}-{variant}/{part}"] for part in ("ids", "rows"))
    logits = rows[-1].astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    found = Runtime(Path(made.paths[0])).next_log_probabilities(ids.tolist(), len(expected))
    # The runtime rounds inputs of MXFP4; test_runtime_families.py imitates that.
    atol = 0.1 if variant == "blocks" else 2e-4
    np.testing.assert_allclose(found, expected, atol=atol)


# -- importance ---------------------------------------------------------------------------------


def test_importance_is_llama_cpps(tmp_path: Path) -> None:
    """Of a model whose tokens see 3 of 5 experts, recorded by scripts/record/imatrix.py."""
    record = json.loads((DATA / "calibration" / "qwen3moe-odd.json").read_text())
    model = open_model(str(build(tmp_path / "source", "qwen3moe", "odd")))
    text = read_text(str(DATA / "tokenizer" / record["text"]))
    made = calibrate(model, text, tokens=384, context=record["context"], threads=2)
    assert set(made.entries) == set(record["weights"]) - {"output.weight", "token_embd.weight"}
    for name, entry in made.entries.items():
        assert entry.counts.tolist() == record["experts"].get(name, record["counts"])
    for name, sums in record["sums"].items():
        np.testing.assert_allclose(made.entries[name].sums.flat, sums, rtol=2e-4, err_msg=name)


def test_importance_is_counted_for_each_expert(folder: Path, imatrix: Imatrix) -> None:
    """As llama-imatrix lays it out: per expert a row of sums, and its number of tokens."""
    for name in (UP, DOWN):
        entry = imatrix.entries[name]
        assert (entry.sums.shape, entry.counts.shape) == ((8, 256), (8,))
        assert entry.counts.sum() == 2 * 512
    assert len(set(imatrix.entries[UP].counts)) > 2
    np.testing.assert_array_equal(imatrix.entries[UP].counts, imatrix.entries[DOWN].counts)
    router = imatrix.entries["blk.1.ffn_gate_inp.weight"]
    assert router.counts == [512]
    np.testing.assert_allclose(imatrix.entries[UP].sums.sum(axis=0), 2 * router.sums[0], rtol=0.5)
    shares = imatrix.entries[UP].sums.sum(), router.sums.sum()
    assert shares[0] == pytest.approx(2 * shares[1], rel=1e-5)  # each token's norm, twice


def test_every_expert_is_rounded_by_its_own_importance(
    tmp_path: Path, folder: Path, imatrix: Imatrix
) -> None:
    write_imatrix(tmp_path / "im.gguf", imatrix)
    job = Job(str(folder), ("Q3_K_S",), tmp_path, imatrix=tmp_path / "im.gguf")
    made = quantcli.convert(job).outputs[0]
    packed = read_tensor(read_header(Path(made.paths[0])).tensors[UP]).reshape(8, 256, -1)
    weights = open_model(str(folder)).rows(UP).reshape(8, 256, 256)
    importance = imatrix.importance(UP, 256, 8)
    assert importance is not None
    kind = get("Q3_K")
    for expert, w in enumerate(weights):
        np.testing.assert_array_equal(packed[expert], kind.encode(w, importance[expert]))
    assert not np.array_equal(packed[1], kind.encode(weights[1], importance[0]))


def test_experts_without_tokens_are_reported(folder: Path, imatrix: Imatrix) -> None:
    enough = np.full(8, 32, np.float32)
    entries = {name: replace(e, counts=enough) for name, e in imatrix.entries.items()}
    assert unreached(replace(imatrix, entries=entries), "more text") == []
    counts = enough.copy()
    counts[[2, 5]] = 0, 3
    entries[UP] = replace(entries[UP], counts=counts)
    (line,) = unreached(replace(imatrix, entries=entries), "more text")
    assert f"2 of {8 * len(entries)} matrices" in line
    assert "1 none at all" in line
    assert f"expert 2 of '{UP}'" in line
    assert line.endswith("more text")


def test_a_short_text_is_warned_of(call: Call, folder: Path) -> None:
    options = ["--imatrix", "auto", "--calibration-tokens", "512"]
    done = call("convert", folder, "-t", "Q4_0", "-o", "x.gguf", *options)
    assert done.code == 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    assert "matrices of experts have seen fewer than 32 tokens" in line
    assert line.endswith("give more --calibration-tokens")
