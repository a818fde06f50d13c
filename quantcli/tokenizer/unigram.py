"""A Unigram tokenizer (T5, XLM-RoBERTa) from tokenizer.json, as llama.cpp's "t5" vocabulary."""

import base64
import binascii
import math
from typing import Any

import numpy as np

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.charsmap import check_charsmap
from quantcli.tokenizer.described import Files, described_tokens
from quantcli.tokenizer.documents import is_id, show
from quantcli.tokenizer.sentencepiece import PIECE_LIMIT, SentencePiece
from quantcli.tokenizer.special_tokens import surrounding_ids
from quantcli.tokenizer.tokenizer_json import NAME, added_tokens, flat, model_of, pipeline_of
from quantcli.tokenizer.vocabulary import (
    SPACE,
    Token,
    TokenType,
    scores,
    sentencepiece_tokens,
    vocabulary_metadata,
)

GGML = "tokenizer.ggml"


def parse_unigram(document: dict[str, Any]) -> SentencePiece:
    """The SentencePiece model that a tokenizer.json with a Unigram model was made from.

    Raises: BadInputError (broken), UnsupportedError (byte fallback; text is changed or split in a
    way that llama.cpp would not).
    """
    _, model = model_of(document)
    if model.get("byte_fallback") is True:
        raise no_byte_fallback(NAME)
    pieces = _pieces(model.get("vocab"))
    unk = model.get("unk_id")
    if not is_id(unk) or unk not in pieces:
        raise BadInputError(
            f"{NAME}: the unknown token's id is {show(unk)}, but there are {len(pieces)} pieces"
        )
    for token in added_tokens(document):
        if token.id in pieces:
            kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            text = token.content if token.special else token.content.replace(SPACE, " ")
            pieces[token.id] = Token(text, pieces[token.id].score, kind)
    pieces[unk] = pieces[unk]._replace(type=TokenType.UNKNOWN)
    pipeline = pipeline_of(document)
    parts = (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
    steps = [flat(pipeline[part], key) for part, key in parts]
    prefix = collapse = False
    charsmap = b""
    for step in [step for found in steps for step in ([{}] if found is None else found)]:
        match step:
            case {"type": "Precompiled"} if not charsmap:
                charsmap = _charsmap(step.get("precompiled_charsmap"))
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "▁"}:
                collapse = True
            case {"type": "WhitespaceSplit"} if charsmap:
                collapse = True
            # The ends of a text have no spaces left when runs of spaces have become one.
            case {"type": "Strip"}:
                pass
            case {"type": "Metaspace", "replacement": "▁"}:
                scheme = step.get("prepend_scheme", "always")
                prefix = scheme != "never" and step.get("add_prefix_space") is not False
            case _:
                raise UnsupportedError(
                    f"{NAME} has a Unigram model and {show(step)}: llama.cpp's tokenizer for it "
                    "has no such step"
                )
    return SentencePiece(pieces, True, prefix, collapse, charsmap)


def unigram_metadata(
    files: Files, model: SentencePiece, name: str, vocab_size: int
) -> tuple[dict[str, Any], dict[str, int | None]]:
    """The vocabulary's keys, and the ids of special tokens that it tells.

    `name`: the file that `model` is from. The converter reads no added tokens but those of
    added_tokens.json; others fill what it would leave as padding. For decoders it calls the
    vocabulary "llama", whose merges tear words apart ("fox" becomes three tokens) and which fails
    on what is no piece: "t5" gives them the ids that they were trained with.

    Raises: BadInputError (more pieces than rows, a broken character map), UnsupportedError (byte
    fallback).
    """
    kinds = {token_id: piece.type for token_id, piece in model.pieces.items()}
    if TokenType.BYTE in kinds.values():
        raise no_byte_fallback(name)
    unknown = next((i for i, kind in kinds.items() if kind is TokenType.UNKNOWN), None)
    if unknown is None:
        raise BadInputError(f"{name} is a Unigram model without an unknown token")
    beyond = {i: t for i, t in described_tokens(files, len(kinds)).items() if i not in kinds}
    tokens = sentencepiece_tokens(model.pieces, beyond, vocab_size)
    known: dict[str, int | None] = {"unk": unknown}
    metadata = {
        f"{GGML}.model": "t5",
        f"{GGML}.pre": "default",
        **vocabulary_metadata(tokens),
        f"{GGML}.scores": scores(tokens),
        f"{GGML}.add_space_prefix": model.add_dummy_prefix,
        f"{GGML}.remove_extra_whitespaces": model.remove_extra_whitespaces,
    }
    if model.charsmap:
        metadata[f"{GGML}.precompiled_charsmap"] = check_charsmap(model.charsmap, name)
    if files.document is not None:
        # llama.cpp closes a text unless told otherwise.
        _, after = surrounding_ids(files.document.get("post_processor"))
        metadata |= {} if after else {f"{GGML}.add_eos_token": False}
        types = files.source.config.get("type_vocab_size")
        metadata |= {f"{GGML}.token_type_count": np.uint32(types)} if is_id(types) else {}
    elif _is_decoder(files.source.config):
        # The classes for such a file: a text begins with BOS if there is one, and nothing ends it.
        controls = {t.text: i for i, t in model.pieces.items() if t.type is TokenType.CONTROL}
        known |= {"bos": controls.get("<s>"), "eos": controls.get("</s>")}
        metadata[f"{GGML}.add_bos_token"] = known["bos"] is not None
        metadata[f"{GGML}.add_eos_token"] = False
    return metadata, known


def _is_decoder(config: dict[str, Any]) -> bool:
    classes = config.get("architectures")
    return isinstance(classes, list) and str(next(iter(classes), "")).endswith("ForCausalLM")


def no_byte_fallback(name: str) -> UnsupportedError:
    """The refusal of a Unigram model that turns unknown characters into bytes."""
    return UnsupportedError(
        f"{name} is a Unigram model with byte fallback: llama.cpp's tokenizer for it has none"
    )


def _pieces(vocab: object) -> dict[int, Token]:
    if not isinstance(vocab, list) or not vocab:
        raise BadInputError(f"{NAME} has no list of pieces with scores")
    if len(vocab) > PIECE_LIMIT:
        raise BadInputError(f"{NAME} has more than {PIECE_LIMIT} pieces")
    pieces: dict[int, Token] = {}
    for entry in vocab:
        match entry:
            case [str(text), float() | int() as score] if not isinstance(score, bool):
                if abs(score) < 1e30 and math.isfinite(score):
                    pieces[len(pieces)] = Token(text, float(score), TokenType.NORMAL)
                    continue
        raise BadInputError(f"{NAME}: piece {len(pieces)} is {show(entry)}, not a text and a score")
    return pieces


def _charsmap(text: object) -> bytes:
    if text is None:
        return b""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b"?"
    except (binascii.Error, ValueError) as error:
        raise BadInputError(f"{NAME}: precompiled_charsmap is not base64") from error
