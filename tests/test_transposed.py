"""Matrices that a checkpoint stores transposed (GPT-2): rows of the output are its columns."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from packers import CASES
from packing import write_pair
from test_architectures import read_safetensors
from tiny_adapters import ADAPTERS, Spec, build_adapter
from tiny_models import build

import quantcli
from quantcli import encoding
from quantcli.architectures import OutputTensor
from quantcli.checkpoint import open_checkpoint
from quantcli.model import open_model
from quantcli.planning import Job, cutting, make_plan
from quantcli.planning.held import held_bytes, is_whole

NAME, SOURCE = "blk.1.ffn_down.weight", "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of F32."""
    return build(tmp_path_factory.mktemp("transposed") / "tiny", "gpt2", "odd")


@pytest.mark.parametrize(
    "rows", [slice(None), slice(3, 60), slice(None, None, 7), np.array([5, 5, 0, 90])]
)
def test_rows_are_columns_of_the_source(folder: Path, rows: slice | np.ndarray) -> None:
    stored: dict[str, np.ndarray] = {}
    for path in folder.glob("*.safetensors"):
        stored |= read_safetensors(path)
    found = open_model(str(folder)).rows(NAME, rows)
    assert stored[SOURCE].shape == (384, 96)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, stored[SOURCE].T[rows])


def test_no_more_is_copied_than_is_asked_for(folder: Path) -> None:
    model = open_model(str(folder))
    whole = model.rows(NAME).nbytes
    tracemalloc.start()
    try:
        model.rows(NAME, slice(8, 12))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole / 3


def test_pieces_and_processes_change_no_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converted(name: str, **more: int) -> dict[str, object]:
        job = quantcli.Job(str(folder), types=("Q5_0",), output=tmp_path / name, **more)  # type: ignore[arg-type]
        quantcli.convert(job)
        return contents(tmp_path / name)["tensors"]

    whole = converted("whole.gguf")
    monkeypatch.setattr(cutting, "PIECE_WEIGHTS", 1 << 12)
    monkeypatch.setattr(encoding, "WORTH_PROCESSES", 1)
    assert converted("pieces.gguf", threads=2) == whole


def test_a_stream_holds_one_matrix_and_counts_it(folder: Path) -> None:
    """The bytes of its outputs are compared in tests/test_stream.py."""
    origins = {origin.name: origin for origin in make_plan(Job(str(folder), ("F16",))).origins}
    tensors = open_checkpoint(str(folder)).tensors
    assert [name for name, origin in origins.items() if is_whole(origin)] == [
        f"blk.{i}.{linear}.weight"
        for i in (0, 1)
        for linear in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    ]
    assert held_bytes(list(origins.values()), tensors) == 4 * 96 * 384


@pytest.mark.parametrize(
    ("order", "whole"),
    [
        (np.arange(64), False),
        (np.arange(64).reshape(4, 2, 8).swapaxes(1, 2).reshape(-1), False),  # pairs within heads
        (np.arange(64).reshape(4, 2, 8).swapaxes(0, 1).reshape(-1), True),  # parts of heads
        (np.arange(64)[::-1], True),
    ],
)
def test_rows_that_move_far_are_held(order: np.ndarray, whole: bool) -> None:
    assert is_whole(OutputTensor("x", (64, 8), "y", order)) == whole
    assert is_whole(OutputTensor("x", (64,), "y", order))


@pytest.mark.parametrize("more", [(), ("--lora-only",)])
def test_adapters_are_refused(
    tmp_path: Path,
    call: Call,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    monkeypatch.setitem(ADAPTERS, "gpt2", Spec("gpt2", "odd", ("c_proj",)))
    lora = build_adapter(tmp_path / "lora", "gpt2")
    done = call("convert", folder, "--lora", lora, *more, "-t", "F16", "-o", "x.gguf")
    assert done.failed_with(4, "attn.c_proj.weight", "transposed")


def test_quantized_checkpoints_are_refused(call: Call, tmp_path: Path) -> None:
    """Whatever their parts' shapes say of which way the matrices lie."""
    packed, _ = write_pair(tmp_path, CASES["bnb int8"], model=("gpt2", "tied"))
    done = call("convert", packed, "-t", "F16", "-o", "x.gguf")
    assert done.failed_with(4, "quantization_config", "GPT-2")
