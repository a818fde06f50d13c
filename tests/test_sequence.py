"""Methods that calibrate: two streams block by block, the guard, resuming, better predictions."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from slow_twins import slow_twin
from test_convert import sha256s
from tiny_models import MIXTURES, VARIANTS, build

import quantcli
from quantcli.blas import one_thread
from quantcli.calibration import moments
from quantcli.calibration.text import read_text
from quantcli.errors import IntegrityError
from quantcli.evaluation.evaluate import evaluate
from quantcli.methods import METHODS
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.sequential import Sequential
from quantcli.methods.snapshots import Part, Snapshots
from quantcli.methods.streams import Stream
from quantcli.model import open_model
from quantcli.progress import Silent
from quantcli.recipes.unquantized import is_quantizable
from quantcli.tensor_types import get
from quantcli.transformer import Transformer
from quantcli.transformer.layout import output_norm

TOKENS = 2048  # of calibration, in most of these tests


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [7, 700])
def test_moments_are_those_of_float64(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "PIECE_TOKENS", 100)
    x, other = normal(333, n), normal(333, n, seed=1)
    with one_thread(), ThreadPoolExecutor(2) as pool:
        h, c = moments.hessian(x, pool), moments.drift(other, x, pool)
        with ThreadPoolExecutor(1) as single:
            np.testing.assert_array_equal(moments.hessian(x, single), h)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(h, exact.T @ exact / 333, atol=1e-5)
    np.testing.assert_allclose(c, (other - exact).T @ exact / 333, atol=1e-5)


@pytest.mark.parametrize(("family", "variant"), [v for v in VARIANTS if v not in MIXTURES])
def test_a_stream_walks_through_the_model(tmp_path: Path, family: str, variant: str) -> None:
    model = open_model(str(build(tmp_path / "source", family, variant)))
    run = Transformer(model)
    tokens = np.random.default_rng(0).integers(0, run.n_vocab, (3, 20))
    seen: dict[str, np.ndarray] = {}
    expected = run.hidden(tokens, tap=lambda site, x: seen.update({site.name: x.copy()}))
    stream = Stream((*tokens.shape, run.n_embd))
    with run.pool() as pool:
        run.embed(tokens, slice(0, run.n_vocab), model.rows("token_embd.weight"), stream.x)
        for number in range(run.n_block):
            block = run.load(number, 20, pool)
            stream.enter(block, pool)
            for short, site in block.sites.items():
                np.testing.assert_allclose(stream.y, seen[site.name], atol=1e-6)
                stream.leave(short, block, pool)
        norm, bias = output_norm(model)
        stream.finish(lambda x: run.normalize(x, norm, bias), pool)
    np.testing.assert_allclose(stream.y.reshape(expected.shape), expected, atol=1e-6)


def converted(demo: Path, folder: Path, types: tuple[str, ...], **job: object) -> list[Path]:
    """The files that a job writes, in the order of `types`."""
    folder.mkdir()
    asked = quantcli.Job(str(demo), types=types, output=folder, **job)  # type: ignore[arg-type]
    return [Path(output.paths[0]) for output in quantcli.convert(asked).outputs]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text to calibrate on and another to evaluate on."""
    text = read_text("builtin").content
    middle = text.index("\n\n", len(text) // 2)
    folder = tmp_path_factory.mktemp("texts")
    for name, part in (("one.txt", text[:middle]), ("other.txt", text[middle:])):
        (folder / name).write_text(part)
    return folder / "one.txt", folder / "other.txt"


# Divergence relative to round to nearest without calibration, on text not calibrated on.
BARS = {
    "gptq": {"Q2_K": 0.6, "Q4_0": 0.6, "Q4_K_M": 0.65, "IQ4_XS": 0.65},
    "awq": {"Q2_K": 0.8, "Q4_0": 0.8, "Q4_K_M": 0.8, "IQ4_XS": 0.8},
    "awq+gptq": {"Q2_K": 0.6, "Q4_0": 0.6, "Q4_K_M": 0.65, "IQ4_XS": 0.65},
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "types"),
    [
        ("gptq", ("Q4_0",)),
        *(pytest.param(name, tuple(bars), marks=SLOW) for name, bars in BARS.items()),
    ],
)
def test_predictions_come_nearer_at_the_same_size(
    tmp_path: Path, demo: Path, halves: tuple[Path, Path], method: str, types: tuple[str, ...]
) -> None:
    calibration, text = halves
    plain = converted(demo, tmp_path / "rtn", types)
    ours = converted(
        demo, tmp_path / "ours", types, method=method, calibrate=str(calibration),
        calibration_tokens=8192,
    )  # fmt: skip
    assert [p.stat().st_size // 1024 for p in ours] == [p.stat().st_size // 1024 for p in plain]
    found = evaluate(
        [*map(str, plain), *map(str, ours)], str(demo), read_text(str(text)), chunks=8, threads=2
    )
    divergences = np.array([quality.kld_mean for quality in found]).reshape(2, -1)
    ratios = dict(zip(types, (divergences[1] / divergences[0]).tolist(), strict=True))
    assert {name: ratio for name, ratio in ratios.items() if ratio > BARS[method][name]} == {}


def runs() -> Iterator[Any]:
    """Every method on every variant; the fast ones are one method for all, and all for one."""
    for method in (name for name, info in METHODS.items() if info.calibrates):
        for key in VARIANTS:
            fast = method == "gptq" or key == ("llama", "tied")
            yield pytest.param(*key, method, marks=slow_twin(key) if fast else SLOW)


@pytest.mark.parametrize(("family", "variant", "method"), list(runs()))
def test_every_family_converts(tmp_path: Path, family: str, variant: str, method: str) -> None:
    source = build(tmp_path / "source", family, variant)
    model = open_model(str(source))
    run = Transformer(model)
    tokens = np.random.default_rng(1).integers(0, run.n_vocab, (9, 32))
    matrices = {name for name, shape in model.shapes.items() if is_quantizable(name, shape)}
    kind = get("Q4_0")
    types = {
        name: kind if name in matrices and shape[-1] % 32 == 0 else get("F32")
        for name, shape in model.shapes.items()
    }
    sequential = Sequential(
        model, tokens, [types], method=METHODS[method], threads=2, progress=Silent()
    )
    written = dict.fromkeys(model.shapes, 0)
    better = worse = 0.0
    for part in sequential.parts(Snapshots(tmp_path / "kept", "key"), resume=False):
        (encoded,) = part.encoded
        written[part.name] += encoded.packed.size
        better += encoded.cost.output_error
        worse += encoded.cost.rounding_error
    sizes = {n: int(np.prod(s[:-1])) * types[n].row_bytes(s[-1]) for n, s in model.shapes.items()}
    assert written == sizes
    # So few tokens say nothing about corrections: awq alone may keep plain rounding everywhere.
    assert better < worse if METHODS[method].compensates else better <= worse


@pytest.mark.slow
def test_same_bytes_for_any_threads_and_company(
    tmp_path: Path, demo: Path, halves: tuple[Path, Path]
) -> None:
    job = quantcli.Job(
        str(demo), types=("Q4_0", "Q3_K_S"), method="gptq", calibrate=str(halves[0]),
        calibration_tokens=TOKENS, threads=1,
    )  # fmt: skip
    first = sha256s(job, tmp_path / "one")
    assert sha256s(replace(job, threads=3), tmp_path / "three") == first
    alone = sha256s(replace(job, types=("Q3_K_S",), threads=2), tmp_path / "alone")
    assert alone == {"Q3_K_S": first["Q3_K_S"]}


def command(demo: Path, text: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "quantcli", "convert", str(demo), "--type", "Q4_0", "-o"),
        *(str(output), "--method", "awq+gptq", "--calibration", str(text)),
        *("--calibration-tokens", str(TOKENS), "--quiet", *more),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_a_killed_run_goes_on(
    tmp_path: Path, demo: Path, halves: tuple[Path, Path], steps: int
) -> None:
    whole, output = tmp_path / "whole.gguf", tmp_path / "killed.gguf"
    subprocess.run(command(demo, halves[0], whole), check=True)
    running = subprocess.Popen(command(demo, halves[0], output))
    kept = tmp_path / f".{output.name}.resume"
    while not (kept / f"parts-{steps}").exists():
        time.sleep(0.005)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not output.exists()
    parts = [kept / f"parts-{step}" for step in range(steps)]
    done = [path.stat().st_mtime_ns for path in parts]
    resumed = subprocess.Popen(command(demo, halves[0], output, "--resume"))
    seen: list[int] = []
    while resumed.poll() is None:
        with suppress(FileNotFoundError):  # they go when all is done
            seen = [path.stat().st_mtime_ns for path in parts]
        time.sleep(0.005)
    assert resumed.returncode == 0
    assert seen == done  # the finished steps were not done again
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_jobs_leftovers_are_not_resumed(tmp_path: Path) -> None:
    states = [normal(4, 5)]
    ours = Snapshots(tmp_path / "kept", "one")
    ours.begin()
    part = Part("w", [Encoded(np.arange(6, dtype=np.uint8).reshape(2, 3), Cost(6, 2.0))])
    assert list(ours.record(0, [part])) == [part]
    ours.commit(0, states)
    found = [np.empty_like(states[0])]
    assert Snapshots(tmp_path / "kept", "one").resume(found) == 1
    np.testing.assert_array_equal(found[0], states[0])
    (read,) = Snapshots(tmp_path / "kept", "one").read(0)
    assert (read.name, read.encoded[0].cost) == ("w", Cost(6, 2.0))
    np.testing.assert_array_equal(read.encoded[0].packed, part.encoded[0].packed)
    assert Snapshots(tmp_path / "kept", "another").resume(found) == 0
    (tmp_path / "kept" / "hidden-1.npy").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="without --resume"):
        Snapshots(tmp_path / "kept", "one").resume(found)


def test_a_matrix_that_no_method_helps_is_rounded(tmp_path: Path, demo: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("It was a bright cold day in April. " * 100)
    job = quantcli.Job(
        str(demo), ("Q8_0",), tmp_path, method="gptq", calibrate=str(text), calibration_tokens=512
    )
    (output,) = quantcli.convert(job).outputs
    costs = [t.cost for t in output.tensors if t.cost.rounding_error]
    assert len(costs) == 30
    assert all(cost.output_error <= cost.rounding_error for cost in costs)


def test_statistics_of_ones_own(call: Call, demo: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "x.gguf"
    asked = call("convert", demo, "--method", "gptq", "--imatrix", matrix)
    assert asked.failed_with(2, "--imatrix", "gptq")
    asked = call("convert", demo, "--method", "magic")
    assert asked.failed_with(2, "magic", "awq+gptq")
    asked = call("convert", demo, "--calibration-tokens", "2048")
    assert asked.failed_with(2, "--calibration")


def test_what_cannot_be_folded_is_said(call: Call, tmp_path: Path) -> None:
    source, text = build(tmp_path / "source", "gemma2", "tied"), tmp_path / "text.txt"
    text.write_text("to be or not to be " * 500)
    asked = ("convert", source, "--type", "Q4_0", "--dry-run", "--calibration", text, "--method")
    asked_awq = call(*asked, "awq").stderr
    assert "'output' is not scaled" in asked_awq
    assert "tokens to calibrate on are few" in asked_awq
    assert "not scaled" not in call(*asked, "gptq").stderr


def test_quality_on_the_calibration_text_is_called_flattering(
    call: Call, demo: Path, tmp_path: Path
) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("It was a bright cold day in April. " * 120)
    other.write_text("The clocks were striking thirteen. " * 120)
    asked = ("convert", demo, "--type", "Q8_0", "--imatrix", "auto", "--calibration", text)
    for evaluated, flatters in ((text, True), (other, False)):
        found = call(*asked, "--calibration-tokens", "512", "--evaluate", evaluated, "--force")
        assert found.code == 0
        assert ("flatters" in found.stderr) is flatters


def test_damaged_weights_leave_nothing(call: Call, tmp_path: Path) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xc0\x7f"  # a NaN in bfloat16
    weights.write_bytes(data)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 500)
    found = call("convert", source, "--method", "gptq", "--type", "Q4_0", "--calibration", text)
    assert found.failed_with(3, "finite")
