"""Our files run in stock llama.cpp."""

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Runtime

import quantcli
from quantcli.recipes import FILE_TYPES

pytestmark = pytest.mark.runtime

PROMPT = "It was a dark and stormy evening, and the old man"


@pytest.fixture(scope="module")
def outputs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The demo checkpoint in every file type, converted in one pass."""
    folder = tmp_path_factory.mktemp("outputs")
    demo = Path(__file__).parent / "models" / "demo"
    job = quantcli.Job(str(demo), types=tuple(FILE_TYPES), output=folder)
    report = quantcli.convert(job)
    return {output.file_type: Path(output.paths[0]) for output in report.outputs}


@pytest.mark.parametrize("file_type", list(FILE_TYPES))
def test_every_file_type_loads_and_generates(outputs: dict[str, Path], file_type: str) -> None:
    text = Runtime(outputs[file_type]).complete(PROMPT, 24)["text"]
    words = text.split()
    assert len(words) >= 8
    assert len(set(words)) >= 3  # a broken file repeats one token or prints garbage
    assert text.isascii()


def test_f32_log_probabilities_equal_transformers(outputs: dict[str, Path], demo: Path) -> None:
    runtime = Runtime(outputs["F32"])
    recorded = np.load(demo / "reference_logits.npz")
    for prompt in (0, 1):
        ids, logits = recorded[f"ids_{prompt}"], recorded[f"logits_{prompt}"][-1].astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        found = runtime.next_log_probabilities(ids.tolist(), len(expected))
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_q8_0_is_close_and_q2_k_is_not_closer(outputs: dict[str, Path], demo: Path) -> None:
    recorded = np.load(demo / "reference_logits.npz")
    logits = recorded["logits_0"][-1].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

    def divergence(file_type: str) -> float:
        ids = recorded["ids_0"].tolist()
        found = Runtime(outputs[file_type]).next_log_probabilities(ids, len(expected))
        return float((expected * (np.log(expected) - found)).sum())

    assert divergence("Q8_0") < 1e-3
    assert divergence("Q2_K") > divergence("Q6_K") > 0
