"""A repository's tokenizer as the `tokenizer.*` metadata of a GGUF file."""

from typing import Any

import numpy as np

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError, UsageError
from quantcli.tokenizer.bpe import Bpe, parse_bpe
from quantcli.tokenizer.byte_fallback import adds_space_prefix, pieces_from_bpe
from quantcli.tokenizer.chat_template import chat_templates
from quantcli.tokenizer.documents import Source, is_id, read_bytes, read_object, show
from quantcli.tokenizer.encoder import build_encoder
from quantcli.tokenizer.pre_tokenizer import check_name, known_name, split_name
from quantcli.tokenizer.sentencepiece import read_pieces
from quantcli.tokenizer.special_tokens import special_tokens
from quantcli.tokenizer.vocabulary import (
    ADDED_SCORE,
    Token,
    TokenType,
    added_token,
    byte_level_tokens,
    check_fits,
    sentencepiece_tokens,
    vocabulary_metadata,
)

Metadata = dict[str, Any]

GGML = "tokenizer.ggml"
LLAMA_CLASSES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "LlamaModel",
    "MixtralForCausalLM",
    "SmolLM3ForCausalLM",
    "GraniteForCausalLM",
)
# The converter recognises two families by the size of their vocabulary alone.
CODE_LLAMA, GRANITE = 32016, 49152
# Files of tokenizers that only their own code can read, or that transformers can convert.
OTHER_FILES = ("tekken.json", "vocab.json", "vocab.txt", "spiece.model", "qwen.tiktoken")


def read_tokenizer(source: Source, vocab_size: int, pre_tokenizer: str | None = None) -> Metadata:
    """The `tokenizer.*` keys that llama.cpp's converter writes for the same repository.

    `vocab_size`: rows of the embedding; missing tokens are padded. `pre_tokenizer`: a name that
    llama.cpp knows, instead of the one found. Constants of a family (Gemma's add_space_prefix)
    are not included.

    Raises: UsageError (unknown `pre_tokenizer`), BadInputError (missing or broken files),
    UnsupportedError (a kind of tokenizer without a counterpart).
    """
    if pre_tokenizer is not None:
        check_name(pre_tokenizer)
    document = read_object(source, "tokenizer.json")
    tokenizer_config = read_object(source, "tokenizer_config.json") or {}
    bpe = None if document is None else parse_bpe(document)
    if bpe is not None and not bpe.byte_fallback:
        vocabulary = _byte_level(bpe, document or {}, vocab_size, pre_tokenizer)
    elif pre_tokenizer is not None:
        raise UsageError("--pre-tokenizer is for byte-level BPE: this is a SentencePiece tokenizer")
    else:
        vocabulary = _sentencepiece(source, bpe, tokenizer_config, vocab_size)
    return {
        **vocabulary,
        **special_tokens(document or {}, tokenizer_config, source.config, vocab_size),
        **chat_templates(source, tokenizer_config),
        **_llama_extras(source.config, tokenizer_config, vocab_size),
    }


def _byte_level(
    bpe: Bpe, document: dict[str, Any], vocab_size: int, pre_tokenizer: str | None
) -> Metadata:
    check_fits([*bpe.vocab.items(), *((t.content, t.id) for t in bpe.added)], vocab_size)
    encoder = build_encoder(bpe)
    # The name by fingerprint is exact; a file that cannot be run has none.
    known = known_name(encoder, document.get("post_processor")) if encoder else None
    name = pre_tokenizer or known or split_name(bpe)
    tokens = byte_level_tokens(bpe, encoder, vocab_size)
    return {
        f"{GGML}.model": "gpt2",
        f"{GGML}.pre": name,
        **vocabulary_metadata(tokens),
        # A space ends the left half of a merge: inside a token it is written as "Ġ".
        f"{GGML}.merges": [
            f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in bpe.merges
        ],
        # Some names make llama.cpp begin every text with BOS unless told otherwise. The converter,
        # which only takes names it knows, leaves that to the name.
        **({} if known == name else {f"{GGML}.add_bos_token": False}),
    }


def _sentencepiece(
    source: Source, bpe: Bpe | None, tokenizer_config: dict[str, Any], vocab_size: int
) -> Metadata:
    model = read_bytes(source, "tokenizer.model")
    extras: Metadata = {}
    if model is not None:
        pieces = read_pieces(model)
    elif bpe is not None:
        pieces = pieces_from_bpe(bpe)
        if not adds_space_prefix(bpe):
            extras[f"{GGML}.add_space_prefix"] = False
    else:
        raise _missing(source, tokenizer_config)
    added = _added_tokens(source, bpe, tokenizer_config, 0 if model is None else len(pieces))
    tokens = sentencepiece_tokens(pieces, added, vocab_size)
    return {
        f"{GGML}.model": "llama",
        f"{GGML}.pre": "default",
        **vocabulary_metadata(tokens),
        f"{GGML}.scores": np.array([token.score for token in tokens], np.float32),
        **extras,
    }


def _missing(source: Source, tokenizer_config: dict[str, Any]) -> QuantcliError:
    """Why there is nothing to read."""
    if isinstance(auto := tokenizer_config.get("auto_map"), dict) and "AutoTokenizer" in auto:
        return UnsupportedError(
            "the tokenizer needs code from its repository, which is never run: "
            "a tokenizer.json is needed"
        )
    if other := next((name for name in OTHER_FILES if name in source.source_files), None):
        return UnsupportedError(
            f"there is {other} but no tokenizer.json: load the tokenizer with transformers and "
            "save it as a fast one"
        )
    return BadInputError(
        "there is no tokenizer: tokenizer.json (or a SentencePiece tokenizer.model) is missing"
    )


def _added_tokens(
    source: Source, bpe: Bpe | None, tokenizer_config: dict[str, Any], n_pieces: int
) -> dict[int, Token]:
    """Tokens put on top of a SentencePiece vocabulary, by id.

    The converter knows added_tokens.json and tokenizer_config.json. Where the latter says nothing,
    tokenizer.json tells what is beyond the `n_pieces` of tokenizer.model.
    """
    tokens: dict[int, Token] = {}
    for content, token_id in (read_object(source, "added_tokens.json") or {}).items():
        if not is_id(token_id) or not content:
            raise BadInputError(f"added_tokens.json gives {show(content)} the id {show(token_id)}")
        tokens[token_id] = Token(content, ADDED_SCORE, TokenType.USER_DEFINED)
    described = tokenizer_config.get("added_tokens_decoder")
    if not isinstance(described, dict):
        beyond = [token for token in (bpe.added if bpe else []) if token.id >= n_pieces]
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


def _llama_extras(
    config: dict[str, Any], tokenizer_config: dict[str, Any], vocab_size: int
) -> Metadata:
    """What the converter's Llama class adds to any tokenizer."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or classes[0] not in LLAMA_CLASSES:
        return {}
    extras: Metadata = {}
    if isinstance(prefix := tokenizer_config.get("add_prefix_space"), bool):
        extras[f"{GGML}.add_space_prefix"] = prefix
    if vocab_size == CODE_LLAMA:
        extras[f"{GGML}.eot_token_id"] = np.uint32(32010)
    if vocab_size == GRANITE:
        extras[f"{GGML}.add_bos_token"] = False
    return extras
