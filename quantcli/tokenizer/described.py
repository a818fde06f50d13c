"""Tokens that a repository puts on top of a SentencePiece vocabulary, in one file or another."""

from dataclasses import dataclass
from typing import Any

from quantcli.errors import BadInputError
from quantcli.tokenizer.documents import Source, is_id, read_object, show
from quantcli.tokenizer.tokenizer_json import added_tokens
from quantcli.tokenizer.vocabulary import ADDED_SCORE, Token, TokenType, added_token


@dataclass(frozen=True)
class Files:
    """A repository's tokenizer.json (None: there is none) and tokenizer_config.json."""

    source: Source
    document: dict[str, Any] | None
    tokenizer_config: dict[str, Any]


def described_tokens(files: Files, n_pieces: int) -> dict[int, Token]:
    """The added tokens by id.

    The converter knows added_tokens.json and tokenizer_config.json. Where the latter says nothing,
    tokenizer.json tells what is beyond the `n_pieces` of the model file. Raises: BadInputError.
    """
    tokens: dict[int, Token] = {}
    for content, token_id in (read_object(files.source, "added_tokens.json") or {}).items():
        if not is_id(token_id) or not content:
            raise BadInputError(f"added_tokens.json gives {show(content)} the id {show(token_id)}")
        tokens[token_id] = Token(content, ADDED_SCORE, TokenType.USER_DEFINED)
    described = files.tokenizer_config.get("added_tokens_decoder")
    if not isinstance(described, dict):
        added = [] if files.document is None else added_tokens(files.document)
        beyond = [token for token in added if token.id >= n_pieces]
        return {token.id: added_token(token.content, token.special) for token in beyond} | tokens
    for key, entry in described.items():
        match entry:
            case {"content": str(text)} if text and key.isascii() and key.isdecimal():
                tokens[int(key[:10])] = added_token(text, bool(entry.get("special")))
            case _:
                raise BadInputError(
                    f"tokenizer_config.json: added token {show(key)} is described as {show(entry)}"
                )
    return tokens
