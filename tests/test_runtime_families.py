"""Every variant of every family in stock llama.cpp: the same prediction as our forward pass."""

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Runtime
from tiny_models import VARIANTS, build

import quantcli
from quantcli.model import open_model
from quantcli.transformer import Transformer

pytestmark = pytest.mark.runtime

N_TOKENS = 80  # more than the sliding windows of the tiny models
CONTEXT = 256
NORMAL = 1  # token_type
# Of log probabilities. llama.cpp looks ungated gelu up in a table of fp16.
TOLERANCE, OF_GELU, OF_MXFP4 = 2e-4, 2e-2, 5e-3


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_the_next_token_is_predicted_alike(tmp_path: Path, family: str, variant: str) -> None:
    source = build(tmp_path / "source", family, variant)
    (output,) = quantcli.convert(quantcli.Job(str(source), types=("F32",), output=tmp_path)).outputs
    model = open_model(output.paths[0])
    kept = "MXFP4" in model.types.values()  # for which the runtime rounds inputs
    runner = Transformer(model, activations="llama-cpu" if kept else "float")
    kinds = model.metadata["tokenizer.ggml.token_type"]
    for shift in range(40):
        ids = (np.arange(N_TOKENS) * 7919 + shift) % runner.n_vocab
        logits = runner.logits(runner.hidden(ids[None])[0])[-1].astype(np.float64)
        best = logits.argmax()
        # The runtime reports nothing of a text that ends, or that is half a character.
        if kinds[best] == NORMAL and model.metadata["tokenizer.ggml.tokens"][best].isascii():
            break
    expected = logits - np.logaddexp.reduce(logits)
    runtime = Runtime(Path(output.paths[0]), CONTEXT)
    found = runtime.next_log_probabilities(ids.tolist(), runner.n_vocab)
    tolerance = OF_GELU if runner.sizes.wiring.activation == "gelu" else TOLERANCE
    tolerance = OF_MXFP4 if kept else tolerance
    seen = np.isfinite(found)
    assert seen.sum() > runner.n_vocab / 2
    np.testing.assert_allclose(found[seen], expected[seen], atol=tolerance)
