"""Which tokens begin, end and separate texts, and whether they are added by default.

The rules are those of gguf-py's `SpecialVocab`: added tokens named in tokenizer_config.json first,
then the ids in config.json; whether they are added says the post-processor of tokenizer.json first,
then tokenizer_config.json.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantcli.errors import BadInputError
from quantcli.tokenizer.documents import is_id, show
from quantcli.tokenizer.tokenizer_json import STEP_LIMIT

# Kind of token in tokenizer_config.json -> GGUF key; llama.cpp has no key for "cls".
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
}
KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")
# What llama.cpp takes for a special token of each kind of vocabulary where a file does not say.
DEFAULT_IDS = {
    "gpt2": {"bos": 11, "eos": 11},
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "gemma4": {},
}
# Tokens that the converter's classes of a family know by their text, where no file names them.
_GLM = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "GlmForCausalLM": _GLM,
    "Glm4ForCausalLM": {**_GLM, "bos": "<|endoftext|>"},
}
ADD_KINDS = ("bos", "eos", "sep")
SURROUNDING_LIMIT = 64
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"


def special_tokens(
    document: dict[str, Any],
    tokenizer_config: dict[str, Any],
    config: dict[str, Any],
    n_tokens: int,
) -> dict[str, Any]:
    """`tokenizer.ggml.*_token_id` and `add_*_token` keys.

    `document`: tokenizer.json, empty if there is none. Ids of `n_tokens` or more name no token and
    are left out. Raises: BadInputError.
    """
    names = {f"{kind}_token": tokenizer_config.get(f"{kind}_token") for kind in (*KINDS, "cls")}
    names["bos_token"] = names["bos_token"] or names["cls_token"]
    names["eos_token"] = names["eos_token"] or names["sep_token"]
    add: dict[str, bool] = {}
    for processor in _processors(document.get("post_processor")):
        _apply(processor, names, add)
    for kind in ADD_KINDS:
        if isinstance(flag := tokenizer_config.get(f"add_{kind}_token"), bool):
            add.setdefault(kind, flag)
    metadata: dict[str, Any] = {
        f"tokenizer.ggml.add_{kind}_token": value for kind, value in add.items()
    }
    ids = {token["content"]: token["id"] for token in reversed(document.get("added_tokens") or [])}
    text_config = config.get("text_config")
    for kind in (*KINDS, "eot"):
        candidates: list[Any] = []
        if tokenizer_config:
            candidates.append(ids.get(token_text(names.get(f"{kind}_token"))))
        # An "eot" is only ever an end of sequence that the post-processor overruled.
        if kind != "eot" or "eot_token" in names:
            key = f"{kind}_token_id"
            from_config = config.get(key)
            if from_config is None and isinstance(text_config, dict):
                from_config = text_config.get(key)
            candidates.append(from_config)
        found = next((c for c in candidates if is_id(c) and c < n_tokens), None)
        if found is not None:
            metadata[f"tokenizer.ggml.{ID_KEYS[kind]}"] = np.uint32(found)
    return metadata


def missing_ids(metadata: dict[str, Any], known: Mapping[str, int | None]) -> dict[str, Any]:
    """Keys for the `known` ids, by kind, that `metadata` lacks and llama.cpp would not guess."""
    defaults = DEFAULT_IDS[metadata["tokenizer.ggml.model"]]
    keys = {kind: f"tokenizer.ggml.{ID_KEYS[kind]}" for kind in known}
    return {
        keys[kind]: np.uint32(token_id)
        for kind, token_id in known.items()
        if token_id is not None and keys[kind] not in metadata and token_id != defaults.get(kind)
    }


def class_ids(
    config: dict[str, Any], document: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """Keys that `metadata` lacks, of tokens that the model's class knows by their text."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    texts = CLASS_TOKENS.get(name, {}) if isinstance(name, str) else {}
    ids = {token["content"]: token["id"] for token in reversed(document.get("added_tokens") or [])}
    keys = {f"tokenizer.ggml.{ID_KEYS[kind]}": ids.get(text) for kind, text in texts.items()}
    return {k: np.uint32(i) for k, i in keys.items() if i is not None and k not in metadata}


def normalizer_keys(normalizer: object) -> dict[str, Any]:
    """Whether text is lowered and loses its accents, as gguf-py reads a normalizer."""
    match normalizer:
        case {"type": "Lowercase"}:
            return {LOWERCASE: True}
        case {"type": "StripAccents"}:
            return {STRIP_ACCENTS: True}
        case {"type": "BertNormalizer", **options}:
            found = {LOWERCASE: options.get("lowercase")}
            found[STRIP_ACCENTS] = options.get("strip_accents")
            return {key: value for key, value in found.items() if isinstance(value, bool)}
        case {"type": "Sequence", "normalizers": list(steps)}:
            return {k: v for step in steps[:STEP_LIMIT] for k, v in normalizer_keys(step).items()}
        case _:
            return {}


def token_text(name: object) -> str:
    """The text of a token that is named by it or by a whole description; empty if it is neither."""
    content = name.get("content") if isinstance(name, dict) else name
    return content if isinstance(content, str) else ""


def _processors(post_processor: object) -> list[dict[str, Any]]:
    if post_processor is None:
        return []
    found = post_processor
    if isinstance(post_processor, dict):
        found = post_processor.get("processors", [post_processor])
    if not isinstance(found, list) or not all(isinstance(p, dict) for p in found):
        raise BadInputError(f"tokenizer.json: post_processor is {show(post_processor)}")
    return found


def _apply(processor: dict[str, Any], names: dict[str, Any], add: dict[str, bool]) -> None:
    """Take from one post-processor which tokens it adds, and what they are called."""
    match processor:
        case {"type": "ByteLevel"}:
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        case {"type": "RobertaProcessing"}:
            add.update(bos=True, eos=True, sep=True)
            names["sep_token"] = names["sep_token"] or _first(processor.get("sep"))
        case {"type": "TemplateProcessing", "single": list(single)}:
            first, last = _edges(single, names, add)
            if isinstance(pair := processor.get("pair"), list):
                _separator(pair, first, last, names, add)


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _special(item: object) -> str | None:
    match item:
        case {"SpecialToken": {"id": str(name)}}:
            return name
        case _:
            return None


def _edges(
    single: list[Any], names: dict[str, Any], add: dict[str, bool]
) -> tuple[str | None, str | None]:
    """The special tokens at the ends of a template for one text."""
    if len(single) < 2:
        return None, None
    first, last = _special(single[0]), _special(single[-1])
    if first:
        names["bos_token"] = names["bos_token"] or first
        names["cls_token"] = names["cls_token"] or first
        add["bos"] = first in (names["bos_token"], names["cls_token"])
    if last:
        if last != names["eos_token"]:
            names["eot_token"] = names["eos_token"]
            names["eos_token"] = last
        add["eos"] = True
    return first, last


def _separator(
    pair: list[Any],
    first: str | None,
    last: str | None,
    names: dict[str, Any],
    add: dict[str, bool],
) -> None:
    """Read from a template for two texts whether a separator stands between them."""
    if first and pair and _special(pair[0]) == first:
        pair = pair[1:]
    if last and pair and _special(pair[-1]) == last:
        pair = pair[:-1]
    match pair:
        case [{"Sequence": {"id": "A"}}, middle, *rest, {"Sequence": {"id": "B"}}]:
            ends = [name for name in (names["sep_token"], names["eos_token"]) if name]
            found = _special(middle) in ends and not last
            found = found or (len(rest) == 1 and _special(rest[0]) in ends)
            add["sep"] = found
            if found:
                names["sep_token"] = names["sep_token"] or names["eos_token"]


def surrounding_ids(post_processor: object) -> tuple[list[int], list[int]]:
    """Token ids that the post-processor puts before and after one text."""
    before: list[int] = []
    after: list[int] = []
    for processor in _processors(post_processor):
        match processor:
            case {"type": "TemplateProcessing", "single": list(single), "special_tokens": dict(of)}:
                side = before
                for item in single[:SURROUNDING_LIMIT]:
                    if name := _special(item):
                        side += _template_ids(of.get(name))
                    else:
                        side = after
            case {"type": "RobertaProcessing", "cls": [_, int(cls)], "sep": [_, int(sep)]}:
                before, after = [cls], [sep]
    return before, after


def _template_ids(entry: object) -> list[int]:
    match entry:
        case {"ids": list(ids)} if all(is_id(i) for i in ids[:SURROUNDING_LIMIT]):
            return ids[:SURROUNDING_LIMIT]
        case _:
            return []
