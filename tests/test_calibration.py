"""Our importance matrices against llama.cpp's own forward pass, and what planning says of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantcli.calibration import (
    Text,
    blank_imatrix,
    calibrate,
    cut_windows,
    read_imatrix,
    read_text,
    write_imatrix,
)
from quantcli.errors import UsageError
from quantcli.model import Model, open_model

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def reference() -> dict:
    """Made by scripts/record/imatrix.py."""
    return json.loads((DATA / "calibration" / "demo.json").read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(str(Path(__file__).parent / "models" / "demo"))


@pytest.fixture(scope="module")
def text() -> Text:
    return read_text(str(DATA / "tokenizer" / "text.txt"))


@pytest.fixture(scope="module")
def size(reference: dict) -> dict[str, int]:
    context = reference["context"]
    return {"context": context, "tokens": context * len(reference["windows"])}


def test_windows_are_llama_cpps(
    model: Model, text: Text, reference: dict, size: dict[str, int]
) -> None:
    assert cut_windows(text, model.metadata, **size).tolist() == reference["windows"]


def test_values_are_llama_cpps(
    model: Model, text: Text, reference: dict, size: dict[str, int]
) -> None:
    made = calibrate(model, text, **size)
    assert (made.chunks, made.chunk_size) == (len(reference["windows"]), size["context"])
    # llama-imatrix leaves the output tensor out unless told otherwise.
    assert set(made.entries) == set(reference["weights"]) - {"output.weight"}
    assert {int(entry.counts[0]) for entry in made.entries.values()} == set(reference["counts"])
    for name, sums in reference["sums"].items():
        np.testing.assert_allclose(made.entries[name].sums[0], sums, rtol=1e-4, err_msg=name)


def test_weights_that_share_an_input_share_its_sums(
    model: Model, text: Text, reference: dict, size: dict[str, int]
) -> None:
    made = calibrate(model, text, **size)
    recorded = {name: sums for name, sums in reference["sums"].items() if name.startswith("blk.0.")}
    assert sorted(recorded) == [
        f"blk.0.{n}.weight" for n in ("attn_k", "attn_output", "ffn_down", "ffn_gate")
    ]
    for first, other in (("attn_k", "attn_q"), ("attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
        ours = made.entries[f"blk.0.{other}.weight"].sums[0]
        np.testing.assert_allclose(ours, recorded[f"blk.0.{first}.weight"], rtol=1e-4)


def test_the_plan_knows_all_but_the_values(model: Model, text: Text, size: dict[str, int]) -> None:
    made, blank = calibrate(model, text, **size), blank_imatrix(model, text, **size)
    assert list(blank.entries) == list(made.entries)
    assert (blank.chunks, blank.chunk_size) == (made.chunks, made.chunk_size)
    for name, entry in made.entries.items():
        assert blank.entries[name].sums.shape == entry.sums.shape
        assert blank.entries[name].counts == entry.counts
        assert not blank.entries[name].sums.any()


def test_results_do_not_depend_on_the_threads(model: Model, text: Text) -> None:
    one, two = (calibrate(model, text, context=100, threads=n) for n in (1, 2))
    for name, entry in one.entries.items():
        np.testing.assert_array_equal(entry.sums, two.entries[name].sums)


@pytest.mark.parametrize("legacy", [False, True])
def test_file_keeps_the_importance(legacy: bool, model: Model, text: Text, tmp_path: Path) -> None:
    made = calibrate(model, text, context=256, tokens=512)
    write_imatrix(tmp_path / "it", made, legacy=legacy)
    found = read_imatrix(tmp_path / "it")
    assert (found.datasets, found.chunks) == (["text.txt"], 2)
    for name, entry in made.entries.items():
        n = entry.sums.shape[1]
        expected = entry.sums[0] / np.float32(512)
        np.testing.assert_allclose(found.importance(name, n), expected, rtol=1e-6)


def test_context_longer_than_the_models(model: Model, text: Text) -> None:
    with pytest.raises(UsageError, match="--context 5000 is more than the model's"):
        calibrate(model, text, context=5000)
