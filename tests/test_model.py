"""A checkpoint and the GGUF files made of it are one model under the same names."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import build

import quantcli
from quantcli.errors import AccessError, BadInputError, UnsupportedError, UsageError
from quantcli.gguf_file import Slot, Writer
from quantcli.model import GgufModel, matrix_shape, open_model
from quantcli.tensor_types import get

# Permuted q and k rows with biases; generated rope factors and shards; norms of 1 + weight.
FAMILIES = [("llama", "odd"), ("llama", "tied"), ("gemma3", "tied"), ("qwen2", "odd")]


def converted(source: Path, folder: Path, file_type: str = "F32", **more: object) -> Path:
    job = quantcli.Job(str(source), types=(file_type,), output=folder, **more)  # type: ignore[arg-type]
    return Path(quantcli.convert(job).outputs[0].paths[0])


@pytest.mark.parametrize(("family", "variant"), FAMILIES)
def test_checkpoint_and_its_f32_file_are_the_same(
    tmp_path: Path, family: str, variant: str
) -> None:
    folder = build(tmp_path / "source", family, variant)
    checkpoint = open_model(str(folder))
    gguf = open_model(str(converted(folder, tmp_path)))
    assert dict(checkpoint.shapes) == dict(gguf.shapes)
    assert checkpoint.types == gguf.types
    for name, shape in checkpoint.shapes.items():
        assert checkpoint.rows(name).shape == shape
        assert checkpoint.rows(name).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.rows(name), gguf.rows(name))
    for key, value in checkpoint.metadata.items():
        np.testing.assert_array_equal(value, gguf.metadata[key])


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"])
def test_rows_are_rows_of_the_whole(tmp_path: Path, name: str) -> None:
    folder = build(tmp_path / "source", "llama", "gqa")
    for model in (open_model(str(folder)), open_model(str(converted(folder, tmp_path, "Q4_K_M")))):
        whole = model.rows(name)
        np.testing.assert_array_equal(model.rows(name, slice(3, 60)), whole[3:60])
        assert len(np.unique(whole[3:60])) > 100


def test_vectors_are_one_row(tmp_path: Path) -> None:
    model = open_model(str(build(tmp_path / "source", "llama", "tied")))
    for name in ("output_norm.weight", "rope_freqs.weight"):
        assert matrix_shape(model.shapes[name]) == (1, *model.shapes[name])
        np.testing.assert_array_equal(model.rows(name, slice(0, 1)), model.rows(name))


def test_shards_read_as_one_model(tmp_path: Path) -> None:
    folder = build(tmp_path / "source", "qwen3", "tied")
    whole = open_model(str(converted(folder, tmp_path, "Q8_0")))
    (tmp_path / "parts").mkdir()
    first = converted(folder, tmp_path / "parts", "Q8_0", split_max_bytes=300_000)
    assert "-00001-of-" in first.name
    parts = open_model(str(first))
    assert parts.types == whole.types
    assert "Q8_0" in whole.types.values()
    for name in whole.shapes:
        np.testing.assert_array_equal(parts.rows(name), whole.rows(name))


def test_quantized_values_are_decoded(tmp_path: Path) -> None:
    folder = build(tmp_path / "source", "llama", "gqa")
    model = open_model(str(converted(folder, tmp_path, "Q2_K")))
    name = "blk.1.ffn_up.weight"
    exact = open_model(str(folder)).rows(name)
    error = np.abs(model.rows(name) - exact).mean() / np.abs(exact).mean()
    assert 0.01 < error < 0.4


def test_refuses_what_it_cannot_read(tmp_path: Path, demo: Path) -> None:
    with pytest.raises(AccessError):
        open_model(str(tmp_path / "missing.gguf"))
    with pytest.raises(UsageError, match="--revision"):
        open_model(str(tmp_path / "missing.gguf"), revision="main")
    with pytest.raises(BadInputError, match=r"blk\.9"):
        open_model(str(demo)).rows("blk.9.attn_q.weight")
    path = tmp_path / "iq.gguf"
    with Writer(path, {"general.architecture": "llama"}, [Slot("odd", (4, 256), 16)]) as writer:
        writer.write("odd", np.zeros((4, 66), np.uint8))
        writer.commit()
    with pytest.raises(UnsupportedError, match="'odd'"):
        GgufModel(path)


def test_types_are_ggml_names(tmp_path: Path) -> None:
    model = open_model(str(converted(build(tmp_path / "s", "llama", "gqa"), tmp_path, "Q4_K_M")))
    assert {get(name).name for name in model.types.values()} >= {"F32", "Q4_K", "Q6_K"}
