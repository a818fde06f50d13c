"""evaluate: several models on one text, alone or against one reference."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.calibration.text import Text, cut_windows
from quantcli.errors import BadInputError, UsageError
from quantcli.evaluation.predictions import Predictions, read_predictions
from quantcli.evaluation.protocol import SHORTEST_CONTEXT, scored, targets
from quantcli.evaluation.quality import Quality, against, alone
from quantcli.model import Model, open_model
from quantcli.progress import Progress, Silent
from quantcli.transformer import Transformer
from quantcli.transformer.scratch import hidden_states


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
    """A model under the name that messages give it."""

    name: str
    model: Model

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        shapes = self.model.shapes
        return shapes.get("output.weight", shapes["token_embd.weight"])[0]


def evaluate(
    models: Sequence[str | Model],
    reference: str | Model | None,
    text: Text,
    *,
    context: int = 512,
    chunks: int | None = None,
    activations: str = "float",
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Quality]:
    """Quality of each model on the text, in their order; sources are opened by open_model.

    chunks: windows to look at, None for all; activations: "float", or "llama-cpu" to round them
    before each product as llama.cpp's CPU runtime does.

    Raises:
        QuantcliError: see open_model, Transformer, set_exam, check_vocabulary; BadInputError for
            a model whose logits are not finite.
    """
    progress = progress or Silent()
    entries = [_open(source, progress) for source in models]
    base = None if reference is None else _open(reference, progress)
    if base is not None:
        for entry in entries:
            check_vocabulary(base, entry)
    groups = [[entry] for entry in entries] if base is None else [[base, *entries]]
    runs = [
        [Transformer(e.model, threads=threads, activations=activations) for e in group]
        for group in groups
    ]
    exams = [set_exam(group[0].model, text, context, chunks, activations) for group in groups]
    found: list[Quality] = []
    for group, transformers, exam in zip(groups, runs, exams, strict=True):
        hidden = [_scored_states(run, exam, progress) for run in transformers]
        wanted, n_vocab = targets(exam.windows), group[0].n_vocab
        read = read_predictions(transformers, hidden, wanted, n_vocab, threads, progress)
        for entry, predictions in zip(group, read, strict=True):
            if entry is not base:
                found.append(_quality(entry, exam, predictions, read[0]))
    return found


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


def check_vocabulary(base: Candidate, other: Candidate) -> None:
    """Predictions can only be compared token by token.

    Raises:
        BadInputError: naming the first difference.
    """
    remedy = "compare with the model that it was made from"
    if other.n_vocab != base.n_vocab:
        raise BadInputError(
            f"{other.name} predicts {other.n_vocab} tokens, the reference {base.name} "
            f"{base.n_vocab}; {remedy}"
        )
    key = "tokenizer.ggml.tokens"
    ours, theirs = (list(entry.model.metadata.get(key, ())) for entry in (other, base))
    if ours != theirs:
        i = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
        shown = [repr(tokens[i])[:40] if tokens else "missing" for tokens in (ours, theirs)]
        raise BadInputError(
            f"{other.name}: token {i} is {shown[0]}, in the reference {base.name} {shown[1]}; "
            + remedy
        )


def _open(source: str | Model, progress: Progress) -> Candidate:
    if isinstance(source, str):
        return Candidate(repr(source), open_model(source, progress=progress))
    return Candidate("the source", source)


def _scored_states(run: Transformer, exam: Exam, progress: Progress) -> np.ndarray:
    """Final hidden states of the scored positions, float32 [n, n_embd]."""
    hidden = run.hidden(exam.windows, progress=progress)[:, scored(exam.context)]
    states = hidden_states(hidden.shape)
    states[...] = hidden
    return states.reshape(-1, hidden.shape[-1])


def _quality(entry: Candidate, exam: Exam, found: Predictions, first: Predictions) -> Quality:
    if not np.isfinite(found.nll).all():
        raise BadInputError(f"{entry.name}: its logits are not finite; the weights are broken")
    fields = alone(found.nll)
    if found is not first:
        fields |= against(found.nll, first.nll, found.kld, found.top == first.top)
    return Quality(exam.text_sha256, exam.context, len(exam.windows), exam.activations, **fields)
