"""Models that embed: their embeddings of a text's windows, compared with a reference's."""

from collections.abc import Sequence

import numpy as np

from quantcli.errors import BadInputError, UsageError
from quantcli.evaluation.exam import Candidate, Exam
from quantcli.evaluation.similarity import Similarity, cosine_fields, cosines
from quantcli.progress import Progress
from quantcli.transformer import Transformer
from quantcli.transformer.block import check_finite
from quantcli.transformer.pooling import pool


def embeds(run: Transformer) -> bool:
    """Whether a model makes embeddings instead of predictions."""
    return run.sizes.wiring.embeds


def check_embedding(candidates: Sequence[Candidate], base: Candidate | None) -> None:
    """Refuse what cannot be compared.

    Raises:
        UsageError: without a reference.
        BadInputError: a model that predicts beside one that embeds, or other ways to embed.
    """
    if base is None:
        raise UsageError(
            f"{candidates[0].name} embeds texts: its quality is how near its embeddings are to"
            " those of the model that it was made from; name that with --reference"
        )
    for one in candidates:
        if embeds(one.run) != embeds(base.run):
            which, other = (one, base) if embeds(one.run) else (base, one)
            raise BadInputError(
                f"{which.name} embeds texts, {other.name} predicts tokens; compare with the model"
                " that it was made from"
            )
        for what, ours, theirs in (
            ("pools by", one.run.sizes.pooling, base.run.sizes.pooling),
            ("has an embedding length of", str(one.run.n_embd), str(base.run.n_embd)),
        ):
            if ours != theirs:
                raise BadInputError(
                    f"{one.name} {what} {ours}, the reference {base.name} {theirs}; compare with"
                    " the model that it was made from"
                )


def compare(
    base: Candidate, candidates: Sequence[Candidate], exam: Exam, progress: Progress
) -> list[Similarity]:
    """How near the embeddings of each are to those of `base`, window by window.

    Raises:
        QuantcliError: see Transformer.hidden; BadInputError for embeddings that are not finite.
    """
    expected = _embeddings(base, exam, progress)
    found = []
    for candidate in candidates:
        embeddings = _embeddings(candidate, exam, progress)
        found.append(
            Similarity(
                text_sha256=exam.text_sha256,
                context=exam.context,
                chunks=len(exam.windows),
                activations=exam.activations,
                pooling=base.run.sizes.pooling,
                embeddings=len(embeddings),
                **cosine_fields(cosines(embeddings, expected)),
            )
        )
    return found


def _embeddings(candidate: Candidate, exam: Exam, progress: Progress) -> np.ndarray:
    hidden = candidate.run.hidden(exam.windows, progress=progress)
    found = pool(hidden, candidate.run.sizes.pooling)
    check_finite(found, f"the embeddings of {candidate.name}")
    return found
