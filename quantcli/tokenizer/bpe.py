"""tokenizer.json as a checked BPE model: every id, merge and added token is known to be sound."""

from dataclasses import dataclass
from typing import Any

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.documents import is_id, show

NAME = "tokenizer.json"
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched before the text is split; `special`: control, not text."""

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class Bpe:
    """`vocab`: token -> id, without the added tokens; `pipeline`: the other parts as they are."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[AddedToken]
    byte_fallback: bool
    ignore_merges: bool
    unk_token: str | None
    pipeline: dict[str, Any]


def parse_bpe(document: dict[str, Any]) -> Bpe:
    """Check the content of tokenizer.json.

    Raises: BadInputError (broken), UnsupportedError (not BPE, or BPE of a kind without a
    counterpart in llama.cpp).
    """
    model = document.get("model")
    if not isinstance(model, dict):
        raise BadInputError(f"{NAME} has no model")
    # Early files leave the type out.
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UnsupportedError(
            f"{NAME} has a {show(kind)} model: only BPE is supported "
            "(byte-level or SentencePiece style), not WordPiece or Unigram"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(
                f"{NAME} sets {option} to {show(model[option])}: llama.cpp has no such BPE"
            )
    vocab = _vocab(model.get("vocab"))
    unk = model.get("unk_token")
    return Bpe(
        vocab=vocab,
        merges=_merges(model.get("merges"), vocab),
        added=_added_tokens(document.get("added_tokens") or []),
        byte_fallback=model.get("byte_fallback") is True,
        ignore_merges=model.get("ignore_merges") is True,
        unk_token=unk if isinstance(unk, str) else None,
        pipeline={key: _part(document, key) for key in ("normalizer", "pre_tokenizer")},
    )


def _part(document: dict[str, Any], key: str) -> dict[str, Any] | None:
    part = document.get(key)
    if part is not None and not isinstance(part, dict):
        raise BadInputError(f"{NAME}: {key} is {show(part)}, not an object")
    return part


def _vocab(vocab: object) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise BadInputError(f"{NAME} has no vocabulary")
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if not is_id(token_id):
            raise BadInputError(f"{NAME}: token {show(token)} has the id {show(token_id)}")
        if token_id in owner:
            raise BadInputError(
                f"{NAME}: tokens {show(owner[token_id])} and {show(token)} share the id {token_id}"
            )
        owner[token_id] = token
    return vocab


def _merges(merges: object, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges are "left right" or, since tokens may hold spaces, ["left", "right"]."""
    if not isinstance(merges, list) or not merges:
        raise BadInputError(f"{NAME} has no merges")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) and part for part in pair)
        ):
            raise BadInputError(f"{NAME}: merge {len(pairs)} is {show(merge)}, not two tokens")
        left, right = pair
        missing = next((t for t in (left, right, left + right) if t not in vocab), None)
        if missing is not None:
            raise BadInputError(
                f"{NAME}: merge {len(pairs)} needs the token {show(missing)}, "
                "which is not in the vocabulary"
            )
        pairs.append((left, right))
    return pairs


def _added_tokens(added: object) -> list[AddedToken]:
    if not isinstance(added, list):
        raise BadInputError(f"{NAME}: added_tokens is no list")
    tokens = [_added_token(entry) for entry in added]
    for key, values in (
        ("id", [token.id for token in tokens]),
        ("content", [token.content for token in tokens]),
    ):
        if len(set(values)) < len(values):
            raise BadInputError(f"{NAME}: two added tokens have the same {key}")
    return tokens


def _added_token(entry: object) -> AddedToken:
    if not isinstance(entry, dict) or not is_id(entry.get("id")):
        raise BadInputError(f"{NAME}: added token {show(entry)} has no valid id")
    content = entry.get("content")
    if not isinstance(content, str) or not content:
        raise BadInputError(f"{NAME}: added token {entry['id']} has the content {show(content)}")
    return AddedToken(
        entry["id"], content, entry.get("special") is True, entry.get("normalized") is True
    )
