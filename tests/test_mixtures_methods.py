"""Methods that calibrate a mixture of experts, and the memory that is planned for one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from tiny_models import MIXTURES, build

import quantcli
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.experts import Passing, quantize_mixture
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.methods.streams import Stream
from quantcli.model import CheckpointModel, open_model
from quantcli.planning import Job, make_plan
from quantcli.planning.memory import HOLES, calibration_memory
from quantcli.transformer import Transformer

UP = "blk.1.ffn_up_exps.weight"

each_mixture = pytest.mark.parametrize(("family", "variant"), MIXTURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 experts of which each token sees 2."""
    return build(tmp_path_factory.mktemp("mixture") / "tiny", "qwen3moe", "eight")


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
    assert planned(8, 8) - planned(8, 2) == 2 * 4 * 1024 * HOLES * 6 * (2048 + 2048)


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
