"""What is asked of whom: the windows of a text, and models that are ready to run."""

import hashlib
from dataclasses import dataclass

import numpy as np

from quantcli.calibration.text import Text, cut_windows
from quantcli.errors import UsageError
from quantcli.evaluation.protocol import SHORTEST_CONTEXT
from quantcli.model import Model
from quantcli.transformer import Transformer


@dataclass(frozen=True)
class Exam:
    """What a model is asked: windows int32 [n, context] of a text, and how it computes."""

    windows: np.ndarray
    text_sha256: str
    activations: str

    @property
    def context(self) -> int:
        """Tokens per window."""
        return self.windows.shape[1]


@dataclass(frozen=True)
class Candidate:
    """A model ready to run, under the name that messages give it."""

    name: str
    model: Model
    run: Transformer


def set_exam(
    model: Model,
    text: Text,
    context: int = 512,
    chunks: int | None = None,
    activations: str = "float",
) -> Exam:
    """The windows of a text in the model's tokens, at most `chunks`; no weights are read.

    Raises: see calibration.text.cut_windows; UsageError (a context too short to score a token).
    """
    if context < SHORTEST_CONTEXT:
        raise UsageError(f"--context {context} is too short; give at least {SHORTEST_CONTEXT}")
    limit = None if chunks is None else chunks * context
    windows = cut_windows(text, model.metadata, context, limit)
    return Exam(windows, hashlib.sha256(text.content.encode()).hexdigest(), activations)
