"""Gemma 4's tokenizer: merges over text whose spaces are "▁", in a kind of its own in GGUF."""

from typing import Any

from quantcli.errors import UnsupportedError
from quantcli.tokenizer.bpe import BYTE_TOKENS, Bpe
from quantcli.tokenizer.byte_fallback import adds_space_prefix
from quantcli.tokenizer.special_tokens import token_text
from quantcli.tokenizer.tokenizer_json import NAME
from quantcli.tokenizer.vocabulary import (
    ADDED_SCORE,
    Token,
    TokenType,
    check_fits,
    padding,
    scores,
    vocabulary_metadata,
)

CLASSES = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")
# The names that these tokens have unless tokenizer_config.json gives others.
_NAMED = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "unk", "pad", "mask")}
# Control tokens that the runtime has to show: what reads a chat looks for them.
_VISIBLE = frozenset(
    f"{left}{name}{right}"
    for name in ("channel", "tool_call", "tool_response")
    for left, right in (("<|", ">"), ("<", "|>"))
) | {'<|"|>'}


def gemma4_metadata(
    bpe: Bpe | None, tokenizer_config: dict[str, Any], vocab_size: int
) -> dict[str, Any]:
    """Texts, types, scores and merges (llama.cpp: Gemma4Model.set_vocab).

    Raises: BadInputError (more tokens than rows of the embedding), UnsupportedError (not the
    tokenizer.json that models of this family have).
    """
    if bpe is None or not bpe.byte_fallback:
        raise UnsupportedError(f"Gemma 4 needs its {NAME}, of BPE with byte fallback")
    if adds_space_prefix(bpe):
        raise UnsupportedError(f"{NAME} puts a space before the text, llama.cpp none for Gemma 4")
    beyond = {token.content: token.id for token in bpe.added if token.content not in bpe.vocab}
    texts = {**bpe.vocab, **beyond}
    check_fits(texts.items(), vocab_size)
    special = special_texts(tokenizer_config)
    tokens = padding(vocab_size)
    for text, token_id in texts.items():
        tokens[token_id] = Token(text, ADDED_SCORE, _type(text, special, text in beyond))
    return {
        "tokenizer.ggml.model": "gemma4",
        **vocabulary_metadata(tokens),
        "tokenizer.ggml.scores": scores(tokens),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in bpe.merges],
    }


def special_texts(tokenizer_config: dict[str, Any]) -> set[str]:
    """The tokens that tokenizer_config.json names, one by one or in lists, as transformers does."""
    named: dict[str, Any] = dict(_NAMED)
    named |= {k: v for k, v in tokenizer_config.items() if k.endswith("_token")}
    listed: list[Any] = []
    for key in ("extra_special_tokens", "additional_special_tokens"):
        match tokenizer_config.get(key):
            case dict(names):
                named |= names
            case list(names):
                listed += names
    return {token_text(value) for value in (*named.values(), *listed)} - {""}


def _type(text: str, special: set[str], beyond: bool) -> TokenType:
    if text in _VISIBLE:
        return TokenType.USER_DEFINED
    if text in BYTE_TOKENS:
        return TokenType.BYTE
    if text in special:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if beyond else TokenType.NORMAL
