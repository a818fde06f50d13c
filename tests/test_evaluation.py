"""Evaluation of real models: against transformers' and llama.cpp's own figures on the same text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO
from crude_model import build_crude
from tiny_models import build

import quantcli
from quantcli.calibration.text import Text, read_text
from quantcli.errors import BadInputError, UnsupportedError, UsageError
from quantcli.evaluation.evaluate import evaluate
from quantcli.model import open_model
from quantcli.planning import Job

DATA = Path(__file__).parent / "data" / "evaluation"
RECORDED = json.loads((DATA / "demo.json").read_text())
TEXT = read_text(str(DATA / "text.txt"))
CHUNKS = RECORDED["chunks"]


def fields(quality: object) -> dict[str, Any]:
    """The figures of a quality that the record has, too."""
    found = asdict(quality)  # type: ignore[call-overload]
    return {key: found[key] for key in RECORDED["transformers"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The demo as GGUF files, by file type."""
    job = Job(str(DEMO), ("F32", "Q8_0", "Q2_K"), tmp_path_factory.mktemp("files"))
    return {output.file_type: output.paths[0] for output in quantcli.convert(job).outputs}


def test_float_gives_what_transformers_gives(tmp_path: Path) -> None:
    """Every figure of a crudely rounded model, and its exact source, to a part in a thousand."""
    crude = build_crude(DEMO, tmp_path / "crude")
    (quality,) = evaluate([str(crude)], str(DEMO), TEXT, chunks=CHUNKS)
    assert fields(quality) == pytest.approx(RECORDED["transformers"], rel=1e-3)
    assert quality.perplexity == pytest.approx(RECORDED["transformers"]["perplexity"], rel=1e-5)
    assert (quality.context, quality.chunks, quality.activations) == (512, CHUNKS, "float")


def test_llama_cpu_gives_what_llama_cpp_gives(files: dict[str, str]) -> None:
    """Rounded activations are most of the divergence of Q8_0: without them it is far too low."""
    recorded = RECORDED["llama.cpp"]
    kinds = ("float", "llama-cpu")
    exact, rounded = (
        evaluate([files["Q8_0"]], files["F32"], TEXT, chunks=CHUNKS, activations=kind)[0]
        for kind in kinds
    )
    assert rounded.perplexity == pytest.approx(recorded["perplexity"], rel=0.002)
    assert rounded.reference_perplexity == pytest.approx(recorded["reference_perplexity"], rel=5e-4)
    assert rounded.kld_mean == pytest.approx(recorded["kld_mean"], rel=0.05)
    assert rounded.top1_agreement == pytest.approx(recorded["top1_agreement"], abs=0.004)
    assert exact.kld_mean is not None
    assert exact.kld_mean < 0.5 * recorded["kld_mean"]
    assert [exact.activations, rounded.activations] == list(kinds)


def test_several_models_in_one_run_are_what_each_is_alone(files: dict[str, str]) -> None:
    names = [files["Q2_K"], files["F32"], files["Q2_K"]]
    together = evaluate(names, str(DEMO), TEXT, context=128, chunks=3, threads=2)
    alone = [evaluate([n], open_model(str(DEMO)), TEXT, context=128, chunks=3)[0] for n in names]
    assert together == alone
    same = together[1]
    assert same.perplexity_ratio == 1
    assert same.kld_mean == pytest.approx(0, abs=1e-7)
    assert same.top1_agreement == 1
    assert together[0].kld_mean is not None
    assert together[0].kld_mean > 0.01


def test_without_reference_there_is_perplexity_only(files: dict[str, str]) -> None:
    with_reference = evaluate([files["Q2_K"]], files["F32"], TEXT, context=128, chunks=3)[0]
    (quality,) = evaluate([files["Q2_K"]], None, TEXT, context=128, chunks=3)
    assert quality.perplexity == with_reference.perplexity
    assert quality.perplexity_stderr > 0
    found = asdict(quality)
    assert all(found[key] is None for key in list(found)[6:])


@pytest.mark.parametrize(
    ("family", "variant"),
    [("qwen2", "tied"), ("gemma2", "odd"), ("gemma3", "tied"), ("mistral", "gqa")],
)
def test_other_families_and_models_without_bos(tmp_path: Path, family: str, variant: str) -> None:
    """A random model predicts next to nothing; its F16 file agrees with it."""
    source = build(tmp_path / "source", family, variant)
    (output,) = quantcli.convert(Job(str(source), ("F16",), tmp_path)).outputs
    (quality,) = evaluate([output.paths[0]], str(source), TEXT, context=96, chunks=2)
    vocabulary = open_model(str(source)).shapes["token_embd.weight"][0]
    assert 0.3 * vocabulary < quality.perplexity < 30 * vocabulary
    assert quality.kld_mean == pytest.approx(0, abs=1e-4)


def test_other_vocabularies_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    other = build(tmp_path / "other", "llama", "gqa")
    with pytest.raises(BadInputError, match=r"predicts 2048 tokens, the reference .* compare"):
        evaluate([files["Q8_0"]], str(other), TEXT, context=64, chunks=1)
    renamed = open_model(files["Q8_0"])
    tokens = list(renamed.metadata["tokenizer.ggml.tokens"])
    renamed.metadata["tokenizer.ggml.tokens"] = [*tokens[:7], "\x1b[31m", *tokens[8:]]
    with pytest.raises(BadInputError, match=r"token 7 is '\\x1b\[31m', in the reference"):
        evaluate([renamed], files["F32"], TEXT, context=64, chunks=1)


@pytest.mark.parametrize(
    ("content", "context", "error", "words"),
    [
        ("one two", 512, BadInputError, "too few for one window of 512"),
        (TEXT.content, 4096, UsageError, "--context 4096"),
        (TEXT.content, 2, UsageError, "at least 4"),
    ],
)
def test_exams_that_cannot_be_set(
    files: dict[str, str], content: str, context: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate([files["Q8_0"]], None, Text("t", content), context=context)


def test_broken_weights_are_named(files: dict[str, str]) -> None:
    model = open_model(files["F32"])
    whole = model.rows

    def damaged(name: str, rows: slice | None = None) -> np.ndarray:
        w = whole(name, rows)
        return w * np.float32(np.nan) if name == "output.weight" else w

    model.rows = damaged  # type: ignore[method-assign]
    with pytest.raises(BadInputError, match="the source: its logits are not finite"):
        evaluate([model], None, TEXT, context=64, chunks=1)


def test_an_architecture_without_forward_pass(files: dict[str, str]) -> None:
    model = open_model(files["F32"])
    model.metadata["general.architecture"] = "mamba"
    with pytest.raises(UnsupportedError, match="mamba"):
        evaluate([model], None, TEXT)
