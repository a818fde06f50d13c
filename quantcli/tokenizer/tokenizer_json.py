"""What every tokenizer.json has, whatever its model: the kind, the added tokens, the steps."""

from dataclasses import dataclass
from typing import Any

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.documents import is_id, show

NAME = "tokenizer.json"
STEP_LIMIT = 16
KINDS = ("BPE", "WordPiece", "Unigram")

Pipeline = dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched before the text is split; `special`: control, not text.

    The flags tell what else it takes or asks for; llama.cpp has none of them.
    """

    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def model_of(document: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of model, one of KINDS, and its content.

    Raises: BadInputError (no model), UnsupportedError (a kind without a counterpart in llama.cpp).
    """
    model = document.get("model")
    if not isinstance(model, dict):
        raise BadInputError(f"{NAME} has no model")
    # Early files leave the type out.
    kind = model.get("type")
    if kind is None:
        marks = {"merges": "BPE", "continuing_subword_prefix": "WordPiece", "unk_id": "Unigram"}
        kind = next((found for mark, found in marks.items() if mark in model), None)
    if kind not in KINDS:
        raise UnsupportedError(
            f"{NAME} has a {show(kind)} model: only {', '.join(KINDS)} are supported"
        )
    return kind, model


def pipeline_of(document: dict[str, Any]) -> Pipeline:
    """The normalizer and the pre-tokenizer as they are. Raises: BadInputError (no objects)."""
    return {key: _part(document, key) for key in ("normalizer", "pre_tokenizer")}


def _part(document: dict[str, Any], key: str) -> dict[str, Any] | None:
    part = document.get(key)
    if part is not None and not isinstance(part, dict):
        raise BadInputError(f"{NAME}: {key} is {show(part)}, not an object")
    return part


def flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]] | None:
    """The steps in `step`, a list under `key` if it is a sequence; None if they are no steps."""
    if step is None:
        return []
    found = step.get(key) if step.get("type") == "Sequence" else [step]
    if not isinstance(found, list) or len(found) > STEP_LIMIT:
        return None
    return found if all(isinstance(step, dict) for step in found) else None


def check_vocab(vocab: object, name: str = NAME) -> dict[str, int]:
    """The vocabulary, token and id, in the file `name`.

    Raises: BadInputError (empty, no ids, an id twice).
    """
    if not isinstance(vocab, dict) or not vocab:
        raise BadInputError(f"{name} has no vocabulary")
    owner: dict[int, str] = {}
    for token, token_id in vocab.items():
        if not is_id(token_id):
            raise BadInputError(f"{name}: token {show(token)} has the id {show(token_id)}")
        if token_id in owner:
            raise BadInputError(
                f"{name}: tokens {show(owner[token_id])} and {show(token)} share the id {token_id}"
            )
        owner[token_id] = token
    return vocab


def added_tokens(document: dict[str, Any]) -> list[AddedToken]:
    """The added tokens. Raises: BadInputError (no ids, no content, one of them twice)."""
    added = document.get("added_tokens") or []
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
    return AddedToken(entry["id"], content, *flags_of(entry))


def flags_of(entry: dict[str, Any]) -> tuple[bool, ...]:
    """The flags in the description of an added token, in the order of AddedToken's fields."""
    names = ("special", "normalized", "lstrip", "rstrip", "single_word")
    return tuple(entry.get(name) is True for name in names)
