"""InternLM2's tokenizer, which its class in llama.cpp's converter reads in a way of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from quantcli.tokenizer.described import Files, described_tokens
from quantcli.tokenizer.sentencepiece import SentencePiece
from quantcli.tokenizer.tokenizer_json import added_tokens
from quantcli.tokenizer.vocabulary import ADDED_SCORE, Token, TokenType

CLASS = "InternLM2ForCausalLM"
CHAT_END = "<|im_end|>"
NUL, NAMED_NUL = "\0", "🐉"  # llama.cpp would take the character for an empty text


def is_internlm2(config: dict[str, Any]) -> bool:
    """Whether the first class of a config.json is InternLM2's."""
    classes = config.get("architectures")
    return isinstance(classes, list) and classes[:1] == [CLASS]


def internlm2_pieces(found: SentencePiece) -> SentencePiece:
    """The model with the pieces that the class changes: NUL, and those that are there for later."""

    def changed(piece: Token) -> Token:
        if piece.text.startswith("[UNUSED"):
            return piece._replace(type=TokenType.UNUSED)
        if piece.text == NUL:  # the library never makes it
            return piece._replace(text=NAMED_NUL, type=TokenType.UNUSED)
        return piece

    return replace(found, pieces={i: changed(piece) for i, piece in found.pieces.items()})


def internlm2_tokens(files: Files) -> dict[int, Token]:
    """The added tokens by id: what a file says of them counts, not how they look."""
    tokens = described_tokens(files, 0)
    for token_id, text, special in _added(files):
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        tokens[token_id] = Token(text, ADDED_SCORE, kind)
    return tokens


def chat_end(files: Files, n_tokens: int) -> dict[str, Any]:
    """Of chat models, the key that ends a text with the end of a turn, whatever the files say."""
    if not is_internlm2(files.source.config):
        return {}
    ids = [i for i, text, _ in _added(files) if text == CHAT_END and i < n_tokens]
    return {"tokenizer.ggml.eos_token_id": np.uint32(ids[-1])} if ids else {}


def _added(files: Files) -> Iterator[tuple[int, str, bool]]:
    """Ids, texts and whether they are special: those of tokenizer.json count if both files say."""
    described = files.tokenizer_config.get("added_tokens_decoder")
    for key, entry in (described if isinstance(described, dict) else {}).items():
        match entry:  # described_tokens refuses others
            case {"content": str(text)} if key.isascii() and key.isdecimal():
                yield int(key[:10]), text, bool(entry.get("special"))
    for token in [] if files.document is None else added_tokens(files.document):
        yield token.id, token.content, token.special
