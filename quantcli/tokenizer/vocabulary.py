"""Vocabularies as GGUF stores them: one text, score and type per row of the embedding."""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantcli.errors import BadInputError
from quantcli.tokenizer.bpe import Bpe
from quantcli.tokenizer.documents import show

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The scores that llama.cpp's converter gives to tokens without a rank among the merges.
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0
# Added tokens that are control tokens whatever their file says (does_token_look_special).
CONTROL_NAMES = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
CONTROL_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
SPACE = "▁"


class TokenType(IntEnum):
    """llama_token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Token(NamedTuple):
    text: str
    score: float
    type: TokenType


def byte_level_tokens(bpe: Bpe, encoder: "Tokenizer | None", vocab_size: int) -> list[Token]:
    """Tokens of a byte-level vocabulary, padded to `vocab_size` (llama.cpp: get_vocab_base)."""
    tokens = padding(vocab_size)
    for text, token_id in bpe.vocab.items():
        tokens[token_id] = Token(text, 0.0, TokenType.NORMAL)
    for added in bpe.added:
        text = added.content
        if encoder is not None and not added.normalized:
            # llama.cpp matches added tokens in plain text: "Ġ" would never be found.
            ids = encoder.encode(text, add_special_tokens=False).ids
            text = encoder.decode(ids, skip_special_tokens=False)
        tokens[added.id] = added_token(text, added.special)
    return tokens


def sentencepiece_tokens(
    pieces: Mapping[int, Token], added: Mapping[int, Token], vocab_size: int
) -> list[Token]:
    """Tokens of a SentencePiece vocabulary (llama.cpp: _create_vocab_sentencepiece).

    Added tokens beyond the embedding are dropped: some models name more than they have rows for.
    Raises: BadInputError (more pieces than rows).
    """
    check_fits(((piece.text, token_id) for token_id, piece in pieces.items()), vocab_size)
    tokens = padding(vocab_size)
    for token_id, piece in pieces.items():
        tokens[token_id] = piece
    for token_id, token in added.items():
        if token_id < vocab_size:
            tokens[token_id] = token
    return tokens


def padding(vocab_size: int) -> list[Token]:
    return [Token(f"[PAD{i}]", PADDING_SCORE, TokenType.UNUSED) for i in range(vocab_size)]


def check_fits(tokens: Iterable[tuple[str, int]], vocab_size: int) -> None:
    """Raise BadInputError unless the embedding has a row for each of `tokens`, text and id."""
    text, token_id = max(tokens, key=lambda token: token[1])
    if token_id >= vocab_size:
        raise BadInputError(
            f"the tokenizer has {show(text)} with the id {token_id}, but the embedding has only "
            f"{vocab_size} rows: the tokenizer belongs to another model"
        )


def added_token(text: str, special: bool) -> Token:
    """An added token as llama.cpp matches it: in text that has no normalized spaces yet."""
    looks_special = text in CONTROL_NAMES or any(
        text.startswith(start) and text.endswith(end) for start, end in CONTROL_SHAPES
    )
    if special or looks_special:
        return Token(text, ADDED_SCORE, TokenType.CONTROL)
    return Token(text.replace(SPACE, " "), ADDED_SCORE, TokenType.USER_DEFINED)


def scores(tokens: Sequence[Token]) -> np.ndarray:
    """The scores of `tokens`, float32."""
    return np.array([token.score for token in tokens], np.float32)


def vocabulary_metadata(tokens: Sequence[Token]) -> dict[str, Any]:
    """Texts and types of `tokens`.

    Raises: BadInputError (a text twice: llama.cpp aborts on such a file).
    """
    seen: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if token.text in seen:
            raise BadInputError(
                f"the tokens {seen[token.text]} and {token_id} have the same text "
                f"{show(token.text)}: llama.cpp needs them to differ"
            )
        seen[token.text] = token_id
    return {
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.token_type": np.array([token.type for token in tokens], np.int32),
    }
