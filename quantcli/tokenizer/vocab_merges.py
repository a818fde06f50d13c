"""Byte-level BPE from vocab.json and merges.txt, as repositories without a tokenizer.json have it.

How text is split stands in the code of the class that tokenizer_config.json names; two classes are
known, and with them most such repositories.
"""

from dataclasses import replace
from typing import Any

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.bpe import Bpe, check_merges
from quantcli.tokenizer.documents import Source, is_id, read_object, read_text, show
from quantcli.tokenizer.pre_tokenizer import pipeline_of_name
from quantcli.tokenizer.special_tokens import KINDS, token_text
from quantcli.tokenizer.tokenizer_json import AddedToken, check_vocab, flags_of

VOCAB, MERGES, CONFIG = "vocab.json", "merges.txt", "tokenizer_config.json"
# Class -> the pre-tokenizer that splits alike, and whether characters are composed first.
CLASSES = {"GPT2Tokenizer": ("gpt-2", False), "Qwen2Tokenizer": ("qwen2", True)}
END = "<|endoftext|>"
# The special tokens of both classes where the configuration names none.
BY_DEFAULT = {"GPT2Tokenizer": ("bos", "eos", "unk"), "Qwen2Tokenizer": ("eos", "unk", "pad")}


def class_of(source: Source, tokenizer_config: dict[str, Any]) -> str | None:
    """The class that reads the two files; None if they are missing or the class is not known."""
    name = str(tokenizer_config.get("tokenizer_class")).removesuffix("Fast")
    return name if name in CLASSES and {VOCAB, MERGES} <= {*source.source_files} else None


def read_vocab_merges(source: Source, name: str, tokenizer_config: dict[str, Any]) -> Bpe:
    """The tokenizer that the class `name` makes of the two files.

    Raises: BadInputError (broken), UnsupportedError (text begins with a space of its own).
    """
    if tokenizer_config.get("add_prefix_space") is True:
        raise UnsupportedError(
            f"{CONFIG} sets add_prefix_space: llama.cpp has no such byte-level tokenizer"
        )
    vocab = check_vocab(read_object(source, VOCAB), VOCAB)
    lines = (read_text(source, MERGES) or "").split("\n")
    # The first line is a version.
    merges = [line for i, line in enumerate(lines) if line.strip() and (i or line[0] != "#")]
    split, composes = CLASSES[name]
    pipeline = pipeline_of_name(split)
    return Bpe(
        vocab=vocab,
        merges=check_merges(merges, vocab, MERGES),
        added=_added(source, name, vocab, tokenizer_config),
        byte_fallback=False,
        ignore_merges=False,
        unk_token=None,
        pipeline={**pipeline, "normalizer": {"type": "NFC"} if composes else None},
    )


def _added(
    source: Source, name: str, vocab: dict[str, int], tokenizer_config: dict[str, Any]
) -> list[AddedToken]:
    """What is found whole in a text: the tokens described, then those that have a role."""
    added: dict[str, AddedToken] = {}
    described = tokenizer_config.get("added_tokens_decoder")
    if isinstance(described, dict):
        for key, entry in described.items():
            text = token_text(entry)
            if not (key.isascii() and key.isdecimal() and text and isinstance(entry, dict)):
                raise BadInputError(f"{CONFIG}: added token {show(key)} is {show(entry)}")
            added[text] = AddedToken(int(key[:10]), text, *flags_of(entry))
    else:
        for text, token_id in (read_object(source, "added_tokens.json") or {}).items():
            if not is_id(token_id) or not text:
                raise BadInputError(f"added_tokens.json gives {show(text)} the id {show(token_id)}")
            added[text] = AddedToken(token_id, text, False, True)
    for text in _named(name, tokenizer_config):
        if text in added:
            added[text] = replace(added[text], special=True)
        elif text in vocab:
            added[text] = AddedToken(vocab[text], text, True, False)
        else:
            raise BadInputError(
                f"{CONFIG} needs the token {show(text)}, which neither {VOCAB} nor the added "
                "tokens have"
            )
    if len({token.id for token in added.values()}) < len(added):
        raise BadInputError(f"{CONFIG}: two added tokens have the same id")
    return list(added.values())


def _named(name: str, tokenizer_config: dict[str, Any]) -> list[str]:
    """The tokens with a role, each once."""
    roles = dict.fromkeys(f"{kind}_token" for kind in (*KINDS, "cls"))
    roles |= {f"{kind}_token": END for kind in BY_DEFAULT[name]}
    roles |= {key: tokenizer_config[key] for key in roles.keys() & tokenizer_config.keys()}
    more = tokenizer_config.get("additional_special_tokens")
    found = [*roles.values(), *(more if isinstance(more, list) else [])]
    return list(dict.fromkeys(text for value in found if (text := token_text(value))))
