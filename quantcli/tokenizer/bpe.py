"""tokenizer.json as a checked BPE model: every id, merge and added token is known to be sound."""

from dataclasses import dataclass
from typing import Any

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.documents import show
from quantcli.tokenizer.tokenizer_json import (
    NAME,
    AddedToken,
    Pipeline,
    added_tokens,
    check_vocab,
    model_of,
    pipeline_of,
)

BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Bpe:
    """`vocab`: token -> id, without the added tokens; `pipeline`: the other parts as they are."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[AddedToken]
    byte_fallback: bool
    ignore_merges: bool
    unk_token: str | None
    pipeline: Pipeline


def parse_bpe(document: dict[str, Any]) -> Bpe:
    """Check the content of a tokenizer.json with a BPE model.

    Raises: BadInputError (broken), UnsupportedError (BPE of a kind without a counterpart in
    llama.cpp).
    """
    _, model = model_of(document)
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(
                f"{NAME} sets {option} to {show(model[option])}: llama.cpp has no such BPE"
            )
    vocab = check_vocab(model.get("vocab"))
    unk = model.get("unk_token")
    return Bpe(
        vocab=vocab,
        merges=check_merges(model.get("merges"), vocab, NAME),
        added=added_tokens(document),
        byte_fallback=model.get("byte_fallback") is True,
        ignore_merges=model.get("ignore_merges") is True,
        unk_token=unk if isinstance(unk, str) else None,
        pipeline=pipeline_of(document),
    )


def check_merges(merges: object, vocab: dict[str, int], name: str) -> list[tuple[str, str]]:
    """The merges in the file `name`: "left right" or, as tokens may hold spaces, ["left", "right"].

    Raises: BadInputError (none, not of two tokens, tokens that `vocab` lacks).
    """
    if not isinstance(merges, list) or not merges:
        raise BadInputError(f"{name} has no merges")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) and part for part in pair)
        ):
            raise BadInputError(f"{name}: merge {len(pairs)} is {show(merge)}, not two tokens")
        left, right = pair
        missing = next((t for t in (left, right, left + right) if t not in vocab), None)
        if missing is not None:
            raise BadInputError(
                f"{name}: merge {len(pairs)} needs the token {show(missing)}, "
                "which is not in the vocabulary"
            )
        pairs.append((left, right))
    return pairs
