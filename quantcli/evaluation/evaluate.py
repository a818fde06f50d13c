"""evaluate: several models on one text, alone or against one reference."""

from collections.abc import Sequence

import numpy as np

from quantcli.calibration.text import Text
from quantcli.errors import BadInputError, UsageError
from quantcli.evaluation.embedding import check_embedding, compare, embeds
from quantcli.evaluation.exam import Candidate, Exam, set_exam
from quantcli.evaluation.predictions import Predictions, read_predictions
from quantcli.evaluation.protocol import scored, targets
from quantcli.evaluation.quality import Quality, against, alone
from quantcli.evaluation.similarity import Similarity
from quantcli.model import Model, open_model
from quantcli.progress import Progress, Silent
from quantcli.transformer import Transformer
from quantcli.transformer.scratch import hidden_states


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
) -> Sequence[Quality | Similarity]:
    """Quality of each model on the text, in their order; sources are opened by open_model.

    Of models that embed texts it is the similarity of embeddings to those of the reference.

    chunks: windows to look at, None for all; activations: "float", or "llama-cpu" to round them
    before each product as llama.cpp's CPU runtime does.

    Raises:
        QuantcliError: see open_model, Transformer, set_exam, check_comparable, check_embedding;
            BadInputError for a model whose logits are not finite.
    """
    progress = progress or Silent()

    def ready(source: str | Model) -> Candidate:
        opened = open_model(source, progress=progress) if isinstance(source, str) else source
        name = repr(source) if isinstance(source, str) else "the source"
        return Candidate(
            name, opened, Transformer(opened, threads=threads, activations=activations)
        )

    candidates = [ready(source) for source in models]
    groups = [[candidate] for candidate in candidates]
    base = None if reference is None else ready(reference)
    embedding = any(embeds(each.run) for each in [*candidates, *([base] if base else [])])
    if embedding:
        check_embedding(candidates, base)
    if base is not None:
        groups = [[base, *candidates]]
        for candidate in candidates:
            check_comparable(base, candidate, context)
    exams = [set_exam(group[0].model, text, context, chunks, activations) for group in groups]
    if embedding:
        return compare(groups[0][0], candidates, exams[0], progress)
    found = []
    for group, exam in zip(groups, exams, strict=True):
        hidden = [_scored_states(candidate, exam, progress) for candidate in group]
        runs, wanted = [candidate.run for candidate in group], targets(exam.windows)
        read = read_predictions(runs, hidden, wanted, runs[0].n_vocab, threads, progress)
        found += [_quality(c, exam, p, read[0]) for c, p in zip(group, read, strict=True)]
    return found if reference is None else found[1:]


def check_comparable(base: Candidate, other: Candidate, context: int) -> None:
    """Predictions are compared token by token, in the same windows.

    Raises:
        BadInputError: naming the first token that differs.
        UsageError: the context is longer than the other model's.
    """
    remedy = "compare with the model that it was made from"
    if context > other.run.n_ctx:
        raise UsageError(f"--context {context} is more than {other.name}'s {other.run.n_ctx}")
    ours, theirs = other.run.n_vocab, base.run.n_vocab
    if ours != theirs:
        raise BadInputError(
            f"{other.name} predicts {ours} tokens, the reference {base.name} {theirs}; {remedy}"
        )
    pairs = zip(_tokens(other.model), _tokens(base.model), strict=False)
    for i, (one, another) in enumerate(pairs):
        if one != another:
            raise BadInputError(
                f"{other.name}: token {i} is {one[:40]!r}, in the reference {base.name} "
                f"{another[:40]!r}; {remedy}"
            )


def _tokens(model: Model) -> list[str]:
    """The vocabulary; empty where the file has none, which matters for the reference only."""
    found = model.metadata.get("tokenizer.ggml.tokens")
    return found if isinstance(found, list) else []


def _scored_states(candidate: Candidate, exam: Exam, progress: Progress) -> np.ndarray:
    """Final hidden states of the scored positions, float32 [n, n_embd]."""
    hidden = candidate.run.hidden(exam.windows, progress=progress)[:, scored(exam.context)]
    states = hidden_states(hidden.shape)
    states[...] = hidden
    return states.reshape(-1, hidden.shape[-1])


def _quality(candidate: Candidate, exam: Exam, found: Predictions, first: Predictions) -> Quality:
    if not np.isfinite(found.nll).all():
        raise BadInputError(f"{candidate.name}: its logits are not finite; the weights are broken")
    fields = alone(found.nll)
    if found is not first:
        fields |= against(found.nll, first.nll, found.kld, found.top == first.top)
    return Quality(exam.text_sha256, exam.context, len(exam.windows), exam.activations, **fields)
