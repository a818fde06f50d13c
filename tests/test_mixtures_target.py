"""Mixtures of experts for a target size: what a stack costs in each type, and the file made."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from tiny_models import build

from quantcli.calibration import cut_windows, read_text
from quantcli.evaluation.evaluate import evaluate
from quantcli.methods import sensitivity
from quantcli.methods.sensitivity import Divergences, divergences
from quantcli.model import CheckpointModel, Rows, open_model
from quantcli.planning import Job, Target, make_plan
from quantcli.tensor_types import get
from quantcli.transformer import Site, Transformer, gradients

TOKENS = 2 * 512
STACKS = tuple(f"blk.1.ffn_{role}_exps.weight" for role in ("gate", "up", "down"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 experts of which each token sees 2."""
    return build(tmp_path_factory.mktemp("mixture") / "tiny", "qwen3moe", "eight")


@pytest.fixture(scope="module")
def model(folder: Path) -> CheckpointModel:
    opened = open_model(str(folder))
    assert isinstance(opened, CheckpointModel)
    return opened


def windows_of(model: CheckpointModel, tokens: int = TOKENS, length: int = 512) -> np.ndarray:
    return cut_windows(read_text("builtin"), model.metadata, length, tokens)


def measured(model: CheckpointModel, windows: np.ndarray, threads: int = 2) -> Divergences:
    wanted = {name: [get("Q3_K")] for name in STACKS}
    return divergences(model, windows, wanted, None, threads=threads)


class Perturbed:
    """A model with one tensor rounded to a type."""

    def __init__(self, model: CheckpointModel, name: str, kind: str) -> None:
        self._model, self._name = model, name
        self.metadata, self.shapes, self.types = model.metadata, model.shapes, model.types
        self._w = get(kind).decode(get(kind).encode(model.rows(name)))

    def rows(self, name: str, rows: Rows = None) -> np.ndarray:
        if name != self._name:
            return self._model.rows(name, rows)
        return self._w if rows is None else self._w[rows]


def test_estimates_are_the_divergences_that_a_run_measures(
    model: CheckpointModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last block: before it some tokens of a random model change their experts."""
    text, windows = read_text("builtin"), windows_of(model)
    whole = measured(model, windows)
    monkeypatch.setattr(sensitivity, "MEASURED_WEIGHTS", 1 << 14)
    sampled = measured(model, windows)
    for name in STACKS:
        (quality,) = evaluate(
            [Perturbed(model, name, "Q3_K")], model, text, chunks=TOKENS // 512, threads=2
        )
        assert quality.kld_mean is not None
        assert 0.6 < whole[name]["Q3_K"] / quality.kld_mean < 1.6, name
        assert sampled[name]["Q3_K"] == pytest.approx(whole[name]["Q3_K"], rel=0.15)
        assert sampled[name]["Q3_K"] != whole[name]["Q3_K"]


@pytest.mark.parametrize("tokens", [192, 1408])  # experts see fewer tokens than columns, or more
def test_a_stack_costs_what_its_experts_cost_together(model: CheckpointModel, tokens: int) -> None:
    windows = windows_of(model, tokens, 64)
    outputs, found = gradients(model, windows).outputs, measured(model, windows)
    seen: dict[Site, list[np.ndarray]] = {}
    Transformer(model).hidden(windows, tap=lambda site, x: seen.setdefault(site, []).append(x))
    for name in STACKS:
        expected = 0.0
        for site in (site for site in seen if name in site.weights):
            x = np.concatenate(seen[site]).astype(np.float64)
            w = model.rows(name).reshape(model.shapes[name])[site.expert]
            importance = np.square(x).mean(axis=0).astype(np.float32)
            error = (get("Q3_K").decode(get("Q3_K").encode(w, importance)) - w).astype(np.float64)
            squares = np.square(x @ error.T).mean(axis=0)
            expected += squares @ outputs[name][site.expert] / 2
        assert found[name]["Q3_K"] == pytest.approx(expected, rel=1e-3)


def test_estimates_do_not_depend_on_threads(model: CheckpointModel) -> None:
    windows = windows_of(model, 512, 64)
    assert measured(model, windows, 1) == measured(model, windows, 3)


@pytest.mark.parametrize("method", ["rtn", pytest.param("gptq", marks=pytest.mark.slow)])
def test_a_mixture_for_a_target(call: Call, folder: Path, method: str) -> None:
    options = ("--target-bpw", "4.5", "--method", method, "--calibration-tokens", "1024")
    done = call("convert", folder, *options, "-o", "x.gguf", "--save-recipe", "r.toml", "--json")
    assert done.code == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    assert 4.4 < output["bpw"] <= 4.5
    stacks = {t["name"]: t for t in output["tensors"] if t["name"].endswith("_exps.weight")}
    assert len(stacks) == 6
    assert all(t["estimated_divergence"] > 0 for t in stacks.values())
    again = ("--recipe", "r.toml", "-o", "y.gguf", *options[2:])
    extra = () if method == "gptq" else ("--imatrix", "auto")
    assert call("convert", folder, *again, *extra).code == 0
    assert (call.work / "x.gguf").read_bytes() == (call.work / "y.gguf").read_bytes()


@pytest.mark.slow
def test_measuring_needs_no_more_than_planned(tmp_path: Path) -> None:
    from test_memory import peak

    sizes = {"num_experts": 32, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    source = build(tmp_path / "big", "qwen3moe", "eight", **sizes)
    target = Target("--target-bpw", bpw=4.5)
    job = Job(str(source), output=tmp_path, target=target, calibration_tokens=8192)
    options = ["--target-bpw", "4.5", "--calibration-tokens", "8192", "--threads", "2"]
    found = peak("convert", source, "-o", tmp_path, *options)
    seen = 4 * 8192 * 8 * (256 + 512)
    assert seen < found < make_plan(replace(job, threads=2)).peak_memory_bytes
