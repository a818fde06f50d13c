"""Mixtures of experts: who sees what, importance of each expert, what is planned and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from tiny_models import MIXTURES, build, describe

import quantcli
from quantcli import architectures
from quantcli.calibration import Imatrix, calibrate, read_text, unreached, write_imatrix
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.gguf_file import read_header, read_tensor
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.experts import Passing, quantize_mixture
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.methods.streams import Stream
from quantcli.model import CheckpointModel, open_model
from quantcli.planning import Job, make_plan
from quantcli.planning.memory import calibration_memory
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


@pytest.mark.runtime
@each_mixture
def test_llama_cpp_computes_the_same(tmp_path: Path, family: str, variant: str) -> None:
    """Of F32 files, against transformers' logits of the last token recorded."""
    from llama_cpp import Runtime

    source = build(tmp_path / "source", family, variant)
    made = quantcli.convert(Job(str(source), ("F32",), tmp_path)).outputs[0]
    with np.load(RECORD) as record:
        ids, rows = (record[f"{family}-{variant}/{part}"] for part in ("ids", "rows"))
    logits = rows[-1].astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    found = Runtime(Path(made.paths[0])).next_log_probabilities(ids.tolist(), len(expected))
    np.testing.assert_allclose(found, expected, atol=2e-4)


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


# -- methods that calibrate -----------------------------------------------------------------------


@each_mixture
def test_the_way_through_the_experts_is_the_transformers(
    tmp_path: Path, family: str, variant: str
) -> None:
    """With linears that stay as they are, both models see the same and arrive where it does."""
    model = open_model(str(build(tmp_path / "source", family, variant)))
    run = Transformer(model)
    tokens = np.random.default_rng(0).integers(0, run.n_vocab, (3, 20))
    seen: dict[str, np.ndarray] = {}
    run.hidden(tokens, tap=lambda site, x: seen.update({site.name: x.copy()}))
    asked: list[np.ndarray] = []

    def quantize(
        number: int, linears: dict[str, np.ndarray], reference: np.ndarray, x: np.ndarray
    ) -> tuple[dict[str, Encoded], dict[str, np.ndarray]]:
        np.testing.assert_array_equal(reference, x)
        asked.append(x)
        return {n: Encoded(w.view(np.uint8), Cost(w.size)) for n, w in linears.items()}, linears

    streams = [Stream((*tokens.shape, run.n_embd)) for _ in range(2)]
    with run.pool() as pool:
        block = run.load(0, 20, pool)
        for stream in streams:
            run.embed(tokens, slice(0, run.n_vocab), model.rows("token_embd.weight"), stream.x)
            stream.enter(block, pool)
            stream.leave("attn", block, pool)
            stream.leave("attn_output", block, pool)
        passing = [Passing.of(stream, block, pool) for stream in streams]
        found = quantize_mixture(block, passing, quantize, pool)
        following = run.load(1, 20, pool)
        for stream in streams:
            stream.enter(following, pool)
            np.testing.assert_allclose(stream.y, seen["blk.1.attn"], atol=1e-5)
    experts = [x for name, x in seen.items() if name.startswith("blk.0.ffn_exps.")]
    for x, expected in zip([x for x in asked if len(x)][::2], experts, strict=False):
        np.testing.assert_allclose(x, expected, atol=1e-5)
    name = "blk.0.ffn_down_exps.weight"
    np.testing.assert_array_equal(found[name][0].packed.view(np.float32), model.rows(name))
    assert found[name][0].cost.weights == model.rows(name).size


def test_each_expert_is_chosen_for_on_its_own_tokens(tmp_path: Path, folder: Path) -> None:
    """Outputs on tokens held out come nearer than by rounding, of every stack; bytes are stable."""
    job = Job(str(folder), ("Q3_K_S",), method="gptq", calibration_tokens=4096, threads=1)
    made = []
    for threads in (1, 3):
        target = tmp_path / str(threads)
        target.mkdir()
        made.append(quantcli.convert(replace(job, output=target, threads=threads)).outputs[0])
    assert made[0].sha256 == made[1].sha256
    stacks = [t.cost for t in made[0].tensors if t.name.endswith("_exps.weight")]
    assert len(stacks) == 6
    for cost in stacks:
        assert cost.of_rounding is not None
        assert cost.of_rounding < 0.99


def test_experts_with_few_tokens_are_rounded_and_reported(call: Call, folder: Path) -> None:
    options = ["--method", "gptq", "--calibration-tokens", "512", "-t", "Q4_0", "-o", "x.gguf"]
    done = call("convert", folder, *options)
    assert done.code == 0
    (line,) = (line for line in done.stderr.splitlines() if "matrices of experts" in line)
    assert line.startswith("warning: ")
    assert "rounded to nearest" in line
    assert line.endswith("give more --calibration-tokens")


# -- planning -----------------------------------------------------------------------------------


def test_the_plan_holds_all_experts_of_a_block() -> None:
    """Of Qwen3-30B-A3B: 128 experts of 768, 8 for each token, make 2.4 GB of float32 a block."""

    def planned(count: int, used: int) -> int:
        shapes = {"token_embd.weight": (151936, 2048), "blk.0.attn_q.weight": (4096, 2048)}
        for role, shape in {"gate": (768, 2048), "up": (768, 2048), "down": (2048, 768)}.items():
            shapes[f"blk.0.ffn_{role}_exps.weight"] = (count, *shape)
        return calibration_memory(shapes, 512, 1, 0, experts_used=used)

    assert 4 * 120 * 3 * 768 * 2048 <= planned(128, 8) - planned(8, 8) < 4 * 121 * 3 * 768 * 2048
    assert planned(8, 8) - planned(8, 2) == 2 * 4 * 1024 * 6 * (2048 + 2048)


@pytest.mark.slow
def test_calibration_needs_no_more_than_planned(tmp_path: Path) -> None:
    from test_memory import peak

    sizes = {"num_experts": 48, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    source = build(tmp_path / "big", "qwen3moe", "eight", **sizes)
    job = Job(str(source), ("Q4_0",), tmp_path, calibrate="builtin", calibration_tokens=4096)
    auto = ["--imatrix", "auto", "--calibration-tokens", "4096", "--threads", "2"]
    found = peak("convert", source, "-t", "Q4_0", "-o", tmp_path, *auto)
    block = 4 * 48 * 3 * 512 * 256
    assert block < found < make_plan(replace(job, threads=2)).peak_memory_bytes


def test_rows_of_a_stack_are_read_across_its_matrices(folder: Path) -> None:
    model = open_model(str(folder))
    assert isinstance(model, CheckpointModel)
    whole = model.rows(UP)
    assert whole.shape == (8 * 256, 256)
    np.testing.assert_array_equal(model.rows(UP, slice(200, 900)), whole[200:900])
    some = np.array([2047, 0, 255, 256, 257, 3])
    np.testing.assert_array_equal(model.rows(UP, some), whole[some])
    assert PIECE_WEIGHTS % (256 * 256) == 0  # several matrices would fit a piece


@pytest.mark.slow
def test_gptq_needs_no_more_than_planned(tmp_path: Path) -> None:
    from test_memory import peak

    sizes = {"num_experts": 32, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    source = build(tmp_path / "big", "qwen3moe", "eight", **sizes)
    job = Job(str(source), ("Q4_0", "Q8_0"), tmp_path, method="gptq", calibration_tokens=4096)
    options = ["--method", "gptq", "--calibration-tokens", "4096", "--threads", "2"]
    found = peak("convert", source, "-t", "Q4_0,Q8_0", "-o", tmp_path, *options)
    assert 4 * 32 * 3 * 512 * 256 < found < make_plan(replace(job, threads=2)).peak_memory_bytes


# -- refusals -----------------------------------------------------------------------------------


def test_targets_are_refused_while_planning(call: Call, folder: Path) -> None:
    done = call("convert", folder, "--target-bpw", "5", "-o", ".")
    assert done.failed_with(4, "--target-bpw 5.0", "mixtures of experts", "--type")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_experts": "8"}, "num_experts = '8'"),
        ({"num_experts": 7}, "num_experts = 7"),
        ({"num_experts": 9}, "mlp.gate.weight"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but there are 8"),
        ({"moe_intermediate_size": 128}, "moe_intermediate_size = 128"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict[str, Any], named: str) -> None:
    config, shapes = describe("qwen3moe", "eight")
    if changes.get("num_experts") == 7:
        shapes |= {f"model.layers.{i}.mlp.gate.weight": (7, 256) for i in (0, 1)}
    with pytest.raises(BadInputError) as error:
        architectures.find(config).tensors({**config, **changes}, shapes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("family", "variant", "changes", "named"),
    [
        ("qwen3moe", "eight", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("qwen3moe", "eight", {"norm_topk_prob": None}, "norm_topk_prob"),
        ("qwen3moe", "eight", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3moe", "eight", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3moe", "eight", {"num_experts": 2000}, "2000 experts"),
        ("qwen2moe", "shared", {"norm_topk_prob": True}, "norm_topk_prob = True"),
        ("qwen2moe", "shared", {"qkv_bias": False}, "qkv_bias = False"),
        ("mixtral", "eight", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_mixtures_that_llama_cpp_does_not_compute(
    family: str, variant: str, changes: dict[str, Any], named: str
) -> None:
    config, _ = describe(family, variant)
    with pytest.raises(UnsupportedError) as error:
        architectures.find(config).metadata({**config, **changes})
    assert named in str(error.value)


def test_missing_tensors_of_an_expert() -> None:
    config, shapes = describe("qwen3moe", "eight")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    del shapes[name]
    with pytest.raises(BadInputError, match=f"{name}' is missing"):
        architectures.find(config).tensors(config, shapes)


def test_a_file_with_fewer_experts_than_a_token_sees(tmp_path: Path, folder: Path) -> None:
    override = ("qwen3moe.expert_used_count=int:9",)
    made = quantcli.convert(Job(str(folder), ("F32",), tmp_path, override_kv=override)).outputs[0]
    with pytest.raises(BadInputError, match="expert_used_count = 9, but there are 8 experts"):
        Transformer(open_model(made.paths[0]))


def test_the_record_knows_experts() -> None:
    """Guards the comparison with the converter against a variant that lost its point."""
    record = json.loads((DATA / "architectures" / "qwen3moe-eight.json").read_text())["f32"]
    assert record["metadata"]["qwen3moe.expert_count"] == ["UINT32", 8]
    assert record["metadata"]["general.size_label"] == ["STRING", "8x1.1M"]
    assert record["tensors"][UP][1] == [8, 256, 256]
