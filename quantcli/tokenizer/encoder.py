"""A tokenizer.json run through the `tokenizers` library, after taking out what could run away.

Truncation, padding, post-processing and unknown steps are left out: a hostile file can make the
library allocate without bound or abort there.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantcli.errors import BadInputError
from quantcli.tokenizer.bpe import Bpe
from quantcli.tokenizer.documents import show
from quantcli.tokenizer.tokenizer_json import NAME, AddedToken, Pipeline, flat

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSERT_LIMIT = 16
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Prepend", "Replace"}
PRE_TOKENIZERS = {"Split", "ByteLevel", "Digits", "Punctuation", "Metaspace", "WhitespaceSplit"}


def steps(pipeline: Pipeline, part: str) -> list[dict[str, Any]] | None:
    """The steps of `part` ("normalizer" or "pre_tokenizer"); None where not all are understood."""
    known, key = {
        "normalizer": (NORMALIZERS, "normalizers"),
        "pre_tokenizer": (PRE_TOKENIZERS, "pretokenizers"),
    }[part]
    found = flat(pipeline[part], key)
    for step in found or []:
        if not _is_one_of(step.get("type"), known):
            return None
        # Replacing each character by a long text, twice over, would not end.
        inserted = step.get("prepend", step.get("content", ""))
        if not isinstance(inserted, str) or len(inserted) > INSERT_LIMIT:
            return None
    return found


def _is_one_of(value: object, known: set[str]) -> bool:
    return isinstance(value, str) and value in known


def build_encoder(bpe: Bpe, ignore_merges: bool | None = None) -> "Tokenizer | None":
    """The tokenizer without special tokens around its output; None if it has unknown steps.

    `ignore_merges` overrides the file's. Raises: BadInputError (the library refuses the file).
    """
    normalizers, pre_tokenizers = (
        steps(bpe.pipeline, "normalizer"),
        steps(bpe.pipeline, "pre_tokenizer"),
    )
    if normalizers is None or pre_tokenizers is None:
        return None
    model = {
        "type": "BPE",
        "vocab": bpe.vocab,
        "merges": bpe.merges,
        "unk_token": bpe.unk_token,
        "fuse_unk": bpe.byte_fallback,
        "byte_fallback": bpe.byte_fallback,
        "ignore_merges": bpe.ignore_merges if ignore_merges is None else ignore_merges,
    }
    return load(model, bpe.added, normalizers, pre_tokenizers)


def load(
    model: dict[str, Any],
    added: Sequence[AddedToken],
    normalizers: list[dict[str, Any]],
    pre_tokenizers: list[dict[str, Any]],
) -> "Tokenizer":
    """The tokenizer of these parts of a tokenizer.json.

    Raises: BadInputError (the library refuses them, or numbers the added tokens otherwise).
    """
    from tokenizers import Tokenizer, decoders

    document = {
        "version": "1.0",
        "added_tokens": [vars(token) for token in sorted(added, key=_id)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "model": model,
    }
    try:
        encoder = Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing more precise
        raise BadInputError(f"{NAME} is refused by tokenizers: {show(str(error), 120)}") from error
    encoder.decoder = decoders.ByteLevel()
    for token in added:
        if encoder.token_to_id(token.content) != token.id:
            raise BadInputError(
                f"{NAME}: added token {show(token.content)} has the id {token.id}, "
                f"but loads as {encoder.token_to_id(token.content)}"
            )
    return encoder


def _id(token: AddedToken) -> int:
    return token.id
