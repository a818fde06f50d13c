"""A repository's tokenizer as the `tokenizer.*` metadata of a GGUF file."""

from typing import Any

import numpy as np

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError, UsageError
from quantcli.tokenizer.bpe import Bpe, parse_bpe
from quantcli.tokenizer.byte_fallback import adds_space_prefix, pieces_from_bpe
from quantcli.tokenizer.chat_template import chat_templates
from quantcli.tokenizer.described import Files, described_tokens
from quantcli.tokenizer.documents import Source, read_bytes, read_object
from quantcli.tokenizer.encoder import build_encoder
from quantcli.tokenizer.gemma4 import CLASSES as GEMMA4_CLASSES
from quantcli.tokenizer.gemma4 import gemma4_metadata
from quantcli.tokenizer.internlm import (
    chat_end,
    internlm2_pieces,
    internlm2_tokens,
    is_internlm2,
)
from quantcli.tokenizer.pre_tokenizer import check_name, known_name, split_name
from quantcli.tokenizer.sentencepiece import NAMES, SentencePiece, read_sentencepiece
from quantcli.tokenizer.special_tokens import (
    class_ids,
    missing_ids,
    normalizer_keys,
    special_tokens,
    surrounding_ids,
)
from quantcli.tokenizer.tiktoken import QWEN, SPLITS, find_tiktoken, known_ids, read_tiktoken
from quantcli.tokenizer.tokenizer_json import NAME, model_of
from quantcli.tokenizer.unigram import parse_unigram, unigram_metadata
from quantcli.tokenizer.vocab_merges import VOCAB, class_of, read_vocab_merges
from quantcli.tokenizer.vocabulary import (
    byte_level_tokens,
    check_fits,
    scores,
    sentencepiece_tokens,
    vocabulary_metadata,
)
from quantcli.tokenizer.wordpiece import wordpiece_metadata

Metadata = dict[str, Any]

GGML = "tokenizer.ggml"
LLAMA_CLASSES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "LlamaModel",
    "MixtralForCausalLM",
    "SmolLM3ForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeSharedForCausalLM",
)
# The converter recognises two families by the size of their vocabulary alone.
CODE_LLAMA, GRANITE = 32016, 49152
# Files of tokenizers that only their own code can read, or that transformers can convert.
OTHER_FILES = ("tekken.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")


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
    document = read_object(source, NAME)
    tokenizer_config = read_object(source, "tokenizer_config.json") or {}
    files = Files(source, document, tokenizer_config)
    kind = None if document is None else model_of(document)[0]
    bpe = parse_bpe(document) if document is not None and kind == "BPE" else None
    ranks = find_tiktoken(source) if document is None else None
    known: dict[str, int | None] = {}
    if bpe is not None and not bpe.byte_fallback:
        vocabulary = _byte_level(bpe, document or {}, vocab_size, pre_tokenizer)
    elif ranks is not None:
        vocabulary, known = _tiktoken(files, ranks, vocab_size, pre_tokenizer)
    elif (two := _two_files(files)) is not None:
        bpe = read_vocab_merges(source, two, tokenizer_config)
        vocabulary = _byte_level(bpe, {}, vocab_size, pre_tokenizer)
        known = known_ids(bpe, VOCAB, tokenizer_config)
    elif pre_tokenizer is not None:
        raise UsageError("--pre-tokenizer is for byte-level BPE: this is another tokenizer")
    elif _class_name(source.config) in GEMMA4_CLASSES:
        vocabulary = gemma4_metadata(bpe, tokenizer_config, vocab_size)
    elif document is not None and kind == "WordPiece":
        vocabulary, known = wordpiece_metadata(document, source.config, vocab_size)
    else:
        vocabulary, known = _sentencepiece(files, bpe, vocab_size)
    metadata = {
        **vocabulary,
        **special_tokens(document or {}, tokenizer_config, source.config, vocab_size),
        **normalizer_keys((document or {}).get("normalizer")),
        **chat_templates(source, tokenizer_config),
        **_llama_extras(source.config, tokenizer_config, vocab_size),
    }
    metadata |= class_ids(source.config, document or {}, metadata)
    metadata |= chat_end(files, vocab_size)
    before, after = surrounding_ids((document or {}).get("post_processor"))
    known = {"bos": before[0] if before else None, "eos": after[-1] if after else None, **known}
    if kind == "WordPiece":
        # llama.cpp closes every text with it.
        known["sep"] = known["eos"]
    return {**metadata, **missing_ids(metadata, known)}


def _byte_level(
    bpe: Bpe, document: dict[str, Any], vocab_size: int, pre_tokenizer: str | None
) -> Metadata:
    check_fits([*bpe.vocab.items(), *((t.content, t.id) for t in bpe.added)], vocab_size)
    encoder = build_encoder(bpe)
    # The name by fingerprint is exact; a file that cannot be run has none.
    known = known_name(encoder, bpe, document.get("post_processor")) if encoder else None
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


def _tiktoken(
    files: Files, name: str, vocab_size: int, pre_tokenizer: str | None
) -> tuple[Metadata, dict[str, int | None]]:
    bpe = read_tiktoken(files.source, name, files.tokenizer_config)
    found = build_encoder(bpe)
    # Qwen 1 is told by its file; others share Kimi's.
    known = SPLITS[name] if name == QWEN else found and known_name(found, bpe, None)
    if pre_tokenizer is None and known is None:
        raise UnsupportedError(
            f"{name} does not say how text is split, and its vocabulary is none that is known: "
            f"if you know that it fits, give --pre-tokenizer {SPLITS[name]}"
        )
    vocabulary = _byte_level(bpe, {}, vocab_size, pre_tokenizer or known)
    vocabulary.pop(f"{GGML}.add_bos_token", None)
    return vocabulary, known_ids(bpe, name, files.tokenizer_config)


def _two_files(files: Files) -> str | None:
    """The class of tokenizer behind vocab.json and merges.txt, if nothing else is there."""
    names = files.source.source_files
    if files.document is not None or any(name in names for name in NAMES):
        return None
    return class_of(files.source, files.tokenizer_config)


def _sentencepiece(
    files: Files, bpe: Bpe | None, vocab_size: int
) -> tuple[Metadata, dict[str, int | None]]:
    name = next((name for name in NAMES if name in files.source.source_files), None)
    found: SentencePiece
    if name is not None:
        found = read_sentencepiece(read_bytes(files.source, name) or b"", name)
    elif bpe is not None:
        found = SentencePiece(pieces_from_bpe(bpe), False, adds_space_prefix(bpe), False, b"")
    elif files.document is not None:
        found = parse_unigram(files.document)
    else:
        raise _missing(files.source, files.tokenizer_config)
    if found.unigram:
        return unigram_metadata(files, found, name or NAME, vocab_size)
    own = is_internlm2(files.source.config)  # the converter's class goes its own way
    if own:
        found, added = internlm2_pieces(found), internlm2_tokens(files)
    else:
        added = described_tokens(files, 0 if name is None else len(found.pieces))
    prefix = found.add_dummy_prefix
    tokens = sentencepiece_tokens(found.pieces, added, vocab_size)
    return {
        f"{GGML}.model": "llama",
        f"{GGML}.pre": "default",
        **vocabulary_metadata(tokens),
        f"{GGML}.scores": scores(tokens),
        **({f"{GGML}.add_space_prefix": prefix} if own or not prefix else {}),
    }, {}


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


def _llama_extras(
    config: dict[str, Any], tokenizer_config: dict[str, Any], vocab_size: int
) -> Metadata:
    """What the converter's Llama class adds to any tokenizer."""
    if _class_name(config) not in LLAMA_CLASSES:
        return {}
    extras: Metadata = {}
    if isinstance(prefix := tokenizer_config.get("add_prefix_space"), bool):
        extras[f"{GGML}.add_space_prefix"] = prefix
    if vocab_size == CODE_LLAMA:
        extras[f"{GGML}.eot_token_id"] = np.uint32(32010)
    if vocab_size == GRANITE:
        extras[f"{GGML}.add_bos_token"] = False
    return extras


def _class_name(config: dict[str, Any]) -> object:
    """The first of the class names in config.json, as far as it has any."""
    classes = config.get("architectures")
    return classes[0] if isinstance(classes, list) and classes else None
