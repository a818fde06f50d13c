"""A WordPiece tokenizer (BERT) as llama.cpp's "bert" vocabulary.

There a word begins with "▁", and what continues one has no mark; tokenizer.json marks the latter
with "##". llama.cpp cleans text, splits it and lowers it as BertNormalizer and BertPreTokenizer do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.documents import is_id, show
from quantcli.tokenizer.encoder import load
from quantcli.tokenizer.pre_tokenizer import fingerprint, table
from quantcli.tokenizer.tokenizer_json import (
    NAME,
    AddedToken,
    added_tokens,
    check_vocab,
    model_of,
    pipeline_of,
)
from quantcli.tokenizer.vocabulary import (
    SPACE,
    Token,
    TokenType,
    added_token,
    check_fits,
    padding,
    vocabulary_metadata,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GGML = "tokenizer.ggml"
PREFIX = "##"


@dataclass(frozen=True)
class WordPiece:
    """`vocab`: token -> id; `normalizer`: the BertNormalizer as it is."""

    vocab: dict[str, int]
    added: list[AddedToken]
    unk_token: str
    normalizer: dict[str, Any]


def parse_wordpiece(document: dict[str, Any]) -> WordPiece:
    """Check the content of a tokenizer.json with a WordPiece model.

    Raises: BadInputError (broken), UnsupportedError (text is changed or split in another way than
    llama.cpp does).
    """
    _, model = model_of(document)
    if (prefix := model.get("continuing_subword_prefix")) != PREFIX:
        raise UnsupportedError(
            f"{NAME} marks the rest of a word with {show(prefix)}: llama.cpp only knows '{PREFIX}'"
        )
    pipeline = pipeline_of(document)
    normalizer = pipeline["normalizer"] or {}
    known = normalizer.get("type") == "BertNormalizer" and all(
        normalizer.get(option, True) is True for option in ("clean_text", "handle_chinese_chars")
    )
    if not known or (pipeline["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer":
        raise UnsupportedError(
            f"{NAME} has a WordPiece model, but changes or splits text in another way than BERT: "
            "llama.cpp has no such tokenizer"
        )
    vocab = check_vocab(model.get("vocab"))
    unk = model.get("unk_token")
    if not isinstance(unk, str) or unk not in vocab:
        raise BadInputError(f"{NAME}: the unknown token {show(unk)} is not in the vocabulary")
    return WordPiece(vocab, added_tokens(document), unk, normalizer)


def wordpiece_metadata(
    document: dict[str, Any], config: dict[str, Any], vocab_size: int
) -> tuple[dict[str, Any], dict[str, int | None]]:
    """The vocabulary's keys, and the id of the unknown token.

    Raises: BadInputError (broken, more tokens than rows), UnsupportedError (see parse_wordpiece).
    """
    wordpiece = parse_wordpiece(document)
    tokens = wordpiece_tokens(wordpiece, vocab_size)
    digest = fingerprint(build_wordpiece(wordpiece), document.get("post_processor"))
    types = config.get("type_vocab_size")
    return {
        f"{GGML}.model": "bert",
        f"{GGML}.pre": table().wordpiece.get(digest, "default"),
        f"{GGML}.token_type_count": np.uint32(types if is_id(types) else 1),
        **vocabulary_metadata(tokens),
    }, {"unk": wordpiece.vocab[wordpiece.unk_token]}


def build_wordpiece(wordpiece: WordPiece) -> "Tokenizer":
    """The tokenizer without special tokens around its output. Raises: BadInputError."""
    model = {
        "type": "WordPiece",
        "unk_token": wordpiece.unk_token,
        "continuing_subword_prefix": PREFIX,
        "max_input_chars_per_word": 100,
        "vocab": wordpiece.vocab,
    }
    accents = wordpiece.normalizer.get("strip_accents")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": accents if isinstance(accents, bool) else None,
        "lowercase": wordpiece.normalizer.get("lowercase") is not False,
    }
    return load(model, wordpiece.added, [normalizer], [{"type": "BertPreTokenizer"}])


def wordpiece_tokens(wordpiece: WordPiece, vocab_size: int) -> list[Token]:
    """Tokens as llama.cpp spells them, padded to `vocab_size`.

    Tokens to be found whole in a text keep their spelling.
    Raises: BadInputError (more tokens than rows).
    """
    found = [*wordpiece.vocab.items(), *((token.content, token.id) for token in wordpiece.added)]
    check_fits(found, vocab_size)
    tokens = padding(vocab_size)
    for text, token_id in wordpiece.vocab.items():
        tokens[token_id] = Token(text, 0.0, TokenType.NORMAL)
    for added in wordpiece.added:
        tokens[added.id] = added_token(added.content, added.special)
    return [_spelled(token) for token in tokens]


def _spelled(token: Token) -> Token:
    if token.type in (TokenType.CONTROL, TokenType.USER_DEFINED):
        return token
    if token.text.startswith(PREFIX):
        return token._replace(text=token.text.removeprefix(PREFIX))
    return token._replace(text=SPACE + token.text)
