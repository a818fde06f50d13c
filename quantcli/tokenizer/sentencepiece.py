"""A SentencePiece model file (tokenizer.model, spiece.model), read without its library.

The file is a protocol buffer, sentencepiece_model.proto:
  1 repeated SentencePiece { 1 piece: string, 2 score: float, 3 type: enum, default NORMAL }
  2 TrainerSpec { 3 model_type: enum UNIGRAM 1 (default), BPE 2, WORD 3, CHAR 4;
                  24 treat_whitespace_as_suffix: bool }
  3 NormalizerSpec { 2 precompiled_charsmap: bytes; 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                     5 escape_whitespaces: bool, default true }
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.vocabulary import Token, TokenType

NAMES = ("tokenizer.model", "spiece.model")
PIECE_LIMIT = 1 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2
RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True)
class SentencePiece:
    """`pieces`: by id; `unigram`: Unigram instead of BPE; `charsmap`: empty if text stays as it is.

    The other two: a space goes before the text; runs of spaces become one, none at the ends.
    """

    pieces: dict[int, Token]
    unigram: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes


def read_sentencepiece(data: bytes, name: str) -> SentencePiece:
    """The content of the file called `name`.

    User-defined pieces become NORMAL, as in llama.cpp's converter.
    Raises: BadInputError (not such a file), UnsupportedError (neither BPE nor Unigram, or of a
    kind that llama.cpp lacks).
    """
    if RANKS.match(data):
        raise UnsupportedError(
            f"{name} holds ranks in tiktoken's format, which does not say how text is split: "
            "a tokenizer.json is needed"
        )
    pieces: list[Token] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    try:
        for number, value in _fields(memoryview(data)):
            if isinstance(value, int):
                continue
            if number == 1:
                pieces.append(_piece(value))
                if len(pieces) > PIECE_LIMIT:
                    raise BadInputError(f"{name} has more than {PIECE_LIMIT} pieces")
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (IndexError, ValueError, struct.error) as error:
        raise BadInputError(f"{name} is no SentencePiece model: {error}") from error
    if not pieces:
        raise BadInputError(f"{name} is no SentencePiece model: it has no pieces")
    model_type = trainer.get(3, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
        raise UnsupportedError(
            f"{name} is a SentencePiece model of type {_show_type(model_type)}: only Unigram (1) "
            "and BPE (2) are supported"
        )
    if trainer.get(24) or normalizer.get(5, 1) != 1:
        raise UnsupportedError(f"{name} marks spaces in a way that llama.cpp does not")
    charsmap = normalizer.get(2, b"")
    return SentencePiece(
        dict(enumerate(pieces)),
        unigram=model_type == UNIGRAM,
        add_dummy_prefix=normalizer.get(3, 1) != 0,
        remove_extra_whitespaces=normalizer.get(4, 1) != 0,
        charsmap=b"" if isinstance(charsmap, int) else bytes(charsmap),
    )


def _show_type(model_type: object) -> str:
    """A model's type for a message: a number, or that it is none."""
    return str(model_type) if isinstance(model_type, int) else "unknown"


def _piece(data: memoryview) -> Token:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0" * 4), fields.get(3, 1)
    if isinstance(text, int) or isinstance(score, int) or not isinstance(kind, int):
        raise ValueError("a piece has fields of the wrong type")
    kind = TokenType(kind)
    if kind is TokenType.USER_DEFINED:
        kind = TokenType.NORMAL
    number = struct.unpack("<f", score)[0]
    if not math.isfinite(number):
        raise ValueError(f"a piece has the score {number}")
    return Token(bytes(text).decode("utf-8"), number, kind)


def _fields(data: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """The fields of one message: number and value, an integer or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"it ends inside a field of {size} bytes")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")
