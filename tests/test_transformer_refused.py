"""What a forward pass cannot run is refused in one line that names the cause."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build

from quantcli.errors import BadInputError, ResourceError, UnsupportedError, UsageError
from quantcli.model import open_model
from quantcli.transformer import Transformer, scratch

TOKENS = np.zeros((1, 8), np.int32)


class Changed:
    """A model of which a test changed something."""

    def __init__(self, folder: Path) -> None:
        self._model = open_model(str(folder))
        self.metadata: dict[str, Any] = dict(self._model.metadata)
        self.shapes: dict[str, tuple[int, ...]] = dict(self._model.shapes)
        self.types: Mapping[str, str] = self._model.types
        self.edit: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values

    def rows(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.edit(name, self._model.rows(name, rows).copy())


@pytest.fixture
def model(tmp_path: Path) -> Changed:
    return Changed(build(tmp_path / "source", "llama", "gqa"))


def one_line(failure: pytest.ExceptionInfo[Exception]) -> bool:
    return str(failure.value).isprintable() and len(str(failure.value)) < 300


@pytest.mark.parametrize(
    ("tensor", "value", "site"),
    [
        ("token_embd.weight", np.inf, "blk.0.attn "),
        ("blk.0.attn_v.weight", np.nan, "blk.0.attn_output "),
        ("blk.1.attn_q.weight", np.nan, "blk.1.attn_output "),
        ("blk.1.ffn_norm.weight", np.nan, "blk.1.ffn "),
        ("blk.0.ffn_up.weight", np.inf, "blk.0.ffn_down "),
        ("blk.0.ffn_down.weight", 3e38, "blk.1.attn "),
        ("blk.1.ffn_down.weight", np.nan, "the output norm "),
    ],
)
def test_activations_that_are_not_finite_are_named(
    model: Changed, tensor: str, value: float, site: str
) -> None:
    def damage(name: str, values: np.ndarray) -> np.ndarray:
        if name == tensor:
            values[...] = value
        return values

    model.edit = damage
    with pytest.raises(BadInputError, match=f"activations at {site}") as failure:
        Transformer(model, threads=2).hidden(TOKENS)
    assert one_line(failure)


def test_large_but_finite_activations_run(model: Changed) -> None:
    model.edit = lambda name, values: values * np.float32(1e19 if "token_embd" in name else 1)
    with np.errstate(all="ignore"):
        found = Transformer(model).hidden(np.arange(8, dtype=np.int32)[None])
    assert np.isfinite(found).all()


def test_tokens_are_checked(model: Changed) -> None:
    runner = Transformer(model)
    with pytest.raises(UsageError, match=r"513 tokens.*512"):
        runner.hidden(np.zeros((1, 513), np.int32))
    for wrong in (-1, 512):
        with pytest.raises(BadInputError, match=f"token {wrong} .* 512"):
            runner.hidden(np.array([[3, wrong]], np.int32))
    with pytest.raises(UsageError, match="shape"):
        runner.hidden(np.zeros(8, np.int32))


def test_unknown_activations(model: Changed) -> None:
    with pytest.raises(UsageError, match="float, llama-cpu"):
        Transformer(model, activations="int3")


@pytest.mark.parametrize("name", ["mamba", "x\x1b[31m", None])
def test_an_architecture_without_forward_pass(model: Changed, name: str | None) -> None:
    model.metadata["general.architecture"] = name
    with pytest.raises(UnsupportedError, match=r"forward pass.*list arch.*without") as failure:
        Transformer(model)
    assert one_line(failure)


METADATA: list[tuple[str, Any, type[Exception]]] = [
    ("block_count", np.uint32(0), BadInputError),
    ("block_count", np.uint32(10**6), BadInputError),
    ("block_count", "two", BadInputError),
    ("attention.head_count_kv", np.uint32(3), BadInputError),
    ("attention.head_count", np.array([4, 4], np.int32), UnsupportedError),
    ("attention.key_length", np.uint32(63), BadInputError),
    ("attention.value_length", np.uint32(32), UnsupportedError),
    ("rope.dimension_count", np.uint32(32), UnsupportedError),
    ("rope.freq_base", np.float32(np.nan), BadInputError),
    ("rope.scaling.type", "longrope\x1b", UnsupportedError),
    ("attention.layer_norm_rms_epsilon", np.float32(-1), BadInputError),
    ("attention.layer_norm_rms_epsilon", None, BadInputError),
    ("embedding_length", np.uint32(128), BadInputError),
]


@pytest.mark.parametrize(("key", "value", "error"), METADATA)
def test_metadata_is_checked(model: Changed, key: str, value: Any, error: type[Exception]) -> None:
    model.metadata[f"llama.{key}"] = value
    with pytest.raises(error) as failure:
        Transformer(model)
    assert one_line(failure)


def test_tensors_are_checked(model: Changed) -> None:
    model.shapes["blk.0.ffn_gate_inp.weight"] = (8, 256)
    with pytest.raises(UnsupportedError, match=r"ffn_gate_inp.*converted"):
        Transformer(model)
    del model.shapes["blk.0.ffn_gate_inp.weight"]
    shape = model.shapes.pop("blk.1.ffn_up.weight")
    with pytest.raises(BadInputError, match=r"blk\.1\.ffn_up.*missing"):
        Transformer(model)
    model.shapes["blk.1.ffn_up.weight"] = (*shape[:1], 7)
    with pytest.raises(BadInputError, match=r"blk\.1\.ffn_up.*\(512, 7\).*\(512, 256\)"):
        Transformer(model)


def test_a_file_that_fuses_q_k_and_v_is_not_said_to_lack_them(tmp_path: Path) -> None:
    model = Changed(build(tmp_path / "source", "glm", "half"))
    for part in "qkv":
        del model.shapes[f"blk.0.attn_{part}.weight"]
    model.shapes["blk.0.attn_qkv.weight"] = (512, 256)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_qkv.*no place") as failure:
        Transformer(model)
    assert one_line(failure)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    model: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(folder))
    monkeypatch.setattr(scratch.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"No space left.*TMPDIR") as failure:
        Transformer(model).hidden(TOKENS)
    assert one_line(failure)
    assert list(folder.iterdir()) == []
