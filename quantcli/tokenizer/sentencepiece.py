"""The pieces of a SentencePiece model file (tokenizer.model), read without its library.

The file is a protocol buffer, sentencepiece_model.proto:
  1 repeated SentencePiece { 1 piece: string, 2 score: float, 3 type: enum, default NORMAL }
  2 TrainerSpec { 3 model_type: enum UNIGRAM 1 (default), BPE 2, WORD 3, CHAR 4 }
"""

import struct
from collections.abc import Iterator

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.vocabulary import Token, TokenType

NAME = "tokenizer.model"
PIECE_LIMIT = 1 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2


def read_pieces(data: bytes) -> dict[int, Token]:
    """The vocabulary by id.

    User-defined pieces become NORMAL, as in llama.cpp's converter.
    Raises: BadInputError (not such a file), UnsupportedError (not a BPE model).
    """
    pieces: list[Token] = []
    model_type: object = UNIGRAM
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1 and isinstance(value, memoryview):
                pieces.append(_piece(value))
                if len(pieces) > PIECE_LIMIT:
                    raise BadInputError(f"{NAME} has more than {PIECE_LIMIT} pieces")
            elif number == 2 and isinstance(value, memoryview):
                trainer = dict(_fields(value))
                model_type = trainer.get(3, UNIGRAM)
    except (IndexError, ValueError, struct.error) as error:
        raise BadInputError(f"{NAME} is no SentencePiece model: {error}") from error
    if not pieces:
        raise BadInputError(f"{NAME} is no SentencePiece model: it has no pieces")
    if model_type != BPE:
        raise UnsupportedError(
            f"{NAME} is a SentencePiece model of type {model_type}: only BPE (2) is supported, "
            "not Unigram (1)"
        )
    return dict(enumerate(pieces))


def _piece(data: memoryview) -> Token:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0" * 4), fields.get(3, 1)
    if isinstance(text, int) or isinstance(score, int) or not isinstance(kind, int):
        raise ValueError("a piece has fields of the wrong type")
    kind = TokenType(kind)
    if kind is TokenType.USER_DEFINED:
        kind = TokenType.NORMAL
    return Token(bytes(text).decode("utf-8"), struct.unpack("<f", score)[0], kind)


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
