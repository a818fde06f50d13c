"""A SentencePiece vocabulary from the tokenizer.json that was made from it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.bpe import BYTE_TOKENS, Bpe
from quantcli.tokenizer.documents import show
from quantcli.tokenizer.encoder import steps
from quantcli.tokenizer.tokenizer_json import NAME
from quantcli.tokenizer.vocabulary import Token, TokenType

# Squared lengths of all tokens; the largest vocabularies in use come to a tenth.
PAIR_LIMIT = 100_000_000
MISSING_LIMIT = 0.01
TAB_BYTE = "<0x09>"


def adds_space_prefix(bpe: Bpe) -> bool:
    """Tell whether a space goes before the text, as llama.cpp does unless told otherwise.

    Raises: UnsupportedError (text is changed or split in a way that llama.cpp would not).
    """
    prefix = False
    found = [steps(bpe.pipeline, part) for part in ("normalizer", "pre_tokenizer")]
    for step in [step for part in found for step in ([{}] if part is None else part)]:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                prefix = step.get("prepend_scheme") != "never"
            # Splitting at spaces comes after their replacement: it finds none.
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Split", "pattern": {"String": " "}}:
                pass
            case _:
                raise UnsupportedError(
                    f"{NAME} has byte fallback and {show(step or 'an unknown step')}: "
                    "llama.cpp's SentencePiece tokenizer has no such step"
                )
    return prefix


def pieces_from_bpe(bpe: Bpe) -> dict[int, Token]:
    """The SentencePiece vocabulary that a tokenizer.json with byte fallback was made from, by id.

    A piece's score is minus its rank: llama.cpp first merges the pair whose result scores highest,
    tokenizer.json the pair that comes first. Both agree if every pair of pieces that form a piece
    is a merge, which holds for vocabularies that come from SentencePiece.

    Raises: BadInputError (tokens too long), UnsupportedError (merges that have no such scores).
    """
    vocab = dict(bpe.vocab)
    # Gemma's conversion gave the tab the place of its byte.
    if "\t" in vocab and TAB_BYTE not in vocab:
        vocab[TAB_BYTE] = vocab.pop("\t")
    unranked = {token.content for token in bpe.added}.union(BYTE_TOKENS)
    plain = sorted((text for text in vocab if text not in unranked), key=vocab.__getitem__)
    _check_merges(bpe, plain)
    first: dict[str, int] = {}
    for i, (left, right) in enumerate(bpe.merges):
        first.setdefault(left + right, i)
    merged = [text for text in plain if text in first]
    # SentencePiece numbers its pieces by rank; a few results may lack their merges.
    if any(first[a] > first[b] for a, b in pairwise(merged)):
        plain.sort(key=lambda text: first.get(text, len(first)))
    rank = {text: i for i, text in enumerate(plain)}
    return {
        token_id: Token(text, -float(rank.get(text, 0)), _type(text, bpe))
        for text, token_id in vocab.items()
    }


def piece_pairs(plain: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each of the pieces `plain` with the pairs of pieces that it can be merged from.

    Raises: BadInputError (tokens too long).
    """
    if sum(len(text) ** 2 for text in plain) > PAIR_LIMIT:
        raise BadInputError("the vocabulary has tokens that are too long for their number")
    pieces = set(plain)
    for text in plain:
        halves = ((text[:i], text[i:]) for i in range(1, len(text)))
        yield text, [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]


def _type(text: str, bpe: Bpe) -> TokenType:
    if text == bpe.unk_token:
        return TokenType.UNKNOWN
    return TokenType.BYTE if text in BYTE_TOKENS else TokenType.NORMAL


def _check_merges(bpe: Bpe, plain: Sequence[str]) -> None:
    """Refuse merges as a BPE trainer leaves them: one for each token."""
    merges = set(bpe.merges)
    pairs = [pair for _, found in piece_pairs(plain) for pair in found]
    missing = [pair for pair in pairs if pair not in merges]
    # Older releases of transformers lost the merges of the first piece.
    if len(missing) > len(pairs) * MISSING_LIMIT:
        left, right = missing[0]
        raise UnsupportedError(
            f"{NAME} has byte fallback, but {len(missing)} pairs of tokens that it never merges, "
            f"such as {show(left)} and {show(right)}: llama.cpp would merge them"
        )
