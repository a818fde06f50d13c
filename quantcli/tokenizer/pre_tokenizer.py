"""The name of the pre-tokenizer: how llama.cpp splits text before byte-level BPE.

A tokenizer.json says it with regexes, a GGUF file with a name from a fixed list. The name comes
from a fingerprint of the encoded check text (llama.cpp: `get_vocab_base_pre`) or, for vocabularies
it has never seen, from the splitting steps themselves.
"""

import difflib
import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from quantcli.errors import UnsupportedError, UsageError
from quantcli.tokenizer.bpe import Bpe
from quantcli.tokenizer.documents import show
from quantcli.tokenizer.encoder import build_encoder, steps
from quantcli.tokenizer.special_tokens import surrounding_ids
from quantcli.tokenizer.tokenizer_json import NAME, Pipeline

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Changing a character changes every fingerprint.
CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis "
    "concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
)


@dataclass(frozen=True)
class Split:
    """Splitting steps and the name that llama.cpp has for exactly these."""

    name: str
    steps: list[str]
    ignore_merges: bool = False


@dataclass(frozen=True)
class Table:
    """The content of pre_tokenizers.toml.

    `adds_bos`: the names with which a text begins with BOS by default; `hashes` and `wordpiece`:
    fingerprint -> name; `aliases`: name -> the name in `splits` that splits alike.
    """

    names: list[str]
    adds_bos: list[str]
    hashes: dict[str, str]
    wordpiece: dict[str, str]
    splits: list[Split]
    aliases: dict[str, str]


@cache
def table() -> Table:
    """The pre-tokenizers that llama.cpp knows."""
    data = tomllib.loads(
        files("quantcli.tokenizer").joinpath("pre_tokenizers.toml").read_text("utf-8")
    )
    hashes, wordpiece = (
        {digest: name for name, digests in data[key].items() for digest in digests}
        for key in ("hashes", "wordpiece")
    )
    aliases = {alias: name for name, found in data["aliases"].items() for alias in found}
    splits = [Split(**entry) for entry in data["splits"]]
    return Table(data["names"], data["adds_bos"], hashes, wordpiece, splits, aliases)


def regexes(name: str) -> Split:
    """How the pre-tokenizer called `name` splits text, as regexes for the `tokenizers` library.

    Raises: UnsupportedError (llama.cpp splits in a way that is not in the table).
    """
    wanted = table().aliases.get(name, name)
    found = next((split for split in table().splits if split.name == wanted), None)
    if found is None:
        raise UnsupportedError(
            f"text cannot be encoded with the pre-tokenizer {show(name)} of this file: "
            "its regexes are not known"
        )
    words = [GPT2_WORDS if step == "{words}" else step for step in found.steps]
    spelled = [step.replace("{contractions}", CONTRACTIONS[0]) for step in words]
    return Split(name, spelled, found.ignore_merges)


def pipeline_of_name(name: str) -> Pipeline:
    """The steps of a tokenizer.json that splits as `name` does. Raises: UnsupportedError."""
    found: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in regexes(name).steps
    ]
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    found.append({"type": "ByteLevel", **options})
    return {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": found}}


def check_name(name: str) -> None:
    """Raise UsageError unless llama.cpp knows a pre-tokenizer called `name`."""
    if name not in table().names:
        close = difflib.get_close_matches(name, table().names, n=3, cutoff=0.0)
        raise UsageError(
            f"unknown pre-tokenizer {show(name)}: llama.cpp knows {', '.join(close)} and "
            f"{len(table().names) - len(close)} others"
        )


def fingerprint(encoder: "Tokenizer", post_processor: object) -> str:
    """SHA-256 over the check text's token ids as llama.cpp's converter computes it."""
    before, after = surrounding_ids(post_processor)
    ids = [*before, *encoder.encode(CHECK_TEXT, add_special_tokens=False).ids, *after]
    return hashlib.sha256(str(ids).encode()).hexdigest()


def known_name(encoder: "Tokenizer", bpe: Bpe, post_processor: object) -> str | None:
    """The name by fingerprint.

    None where llama.cpp's converter would give up, and where another name tells the file better.
    """
    name = table().hashes.get(fingerprint(encoder, post_processor))
    return None if name is None or _has_better(name, bpe) else name


def _has_better(name: str, bpe: Bpe) -> bool:
    """Tell whether the file takes words whole, unlike `name`, but like one that splits alike.

    The check text has no word that tells them apart: Llama 3's first files, which add no BOS, have
    the fingerprint of a fine-tune without that option.
    """
    alike = [split for split in table().splits if split.steps == _steps(name)]
    if not bpe.ignore_merges or {split.ignore_merges for split in alike} != {True, False}:
        return False
    return not regexes(name).ignore_merges and not _merges_reach_every_token(bpe)


def _steps(name: str) -> list[str] | None:
    """The steps of `name` as the table has them; None if it has none."""
    wanted = table().aliases.get(name, name)
    return next((split.steps for split in table().splits if split.name == wanted), None)


def split_name(bpe: Bpe) -> str:
    """The name whose splitting steps are exactly those of the file.

    Raises: UnsupportedError, naming the closest.
    """
    wanted = splitting(bpe)
    same = [split for split in table().splits if split.steps == wanted]
    normalizers = steps(bpe.pipeline, "normalizer")
    # llama.cpp normalizes nothing; NFC leaves nearly all text as it is.
    if normalizers is not None and all(step["type"] == "NFC" for step in normalizers):
        for split in same:
            if split.ignore_merges == bpe.ignore_merges:
                return split.name
        if same and _merges_reach_every_token(bpe):
            return same[0].name
    closest = same[0].name if same else _closest(wanted)
    raise UnsupportedError(
        f"{NAME} splits text in a way that llama.cpp has no name for (closest: {closest}): "
        f"if you know that it fits, give --pre-tokenizer {closest}"
    )


def _closest(wanted: list[str] | None) -> str:
    text = "\n".join(wanted or [GPT2_WORDS])[:1000]
    ratios = {
        split.name: difflib.SequenceMatcher(None, text, "\n".join(split.steps)).ratio()
        for split in table().splits
    }
    return max(ratios, key=lambda name: ratios[name])


def _merges_reach_every_token(bpe: Bpe) -> bool:
    """Tell whether merging alone builds every token, so that ignore_merges changes nothing."""
    encoder = build_encoder(bpe, ignore_merges=False)
    added = {token.content for token in bpe.added}
    return encoder is not None and all(
        len(encoder.model.tokenize(token)) == 1 for token in bpe.vocab if token not in added
    )


def splitting(bpe: Bpe) -> list[str] | None:
    """The regexes that split text one after the other, spelled as in the table.

    None where a step cannot be told by a regex.
    """
    found = steps(bpe.pipeline, "pre_tokenizer")
    # Steps after ByteLevel would see bytes instead of characters.
    kinds = [step["type"] for step in found or []]
    if not found or "ByteLevel" in kinds[:-1] or kinds[-1] != "ByteLevel":
        return None
    regexes = [_regex(step) for step in found]
    return None if None in regexes else [regex for regex in regexes if regex]


def _regex(step: dict[str, Any]) -> str | None:
    """The table's spelling of one step; empty if it does not split, None if it has none."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return ""
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "{words}"
        case {"type": "Digits", "individual_digits": bool(single)}:
            return r"\p{N}" if single else r"\p{N}+"
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": str(behavior)}:
            invert = step.get("invert") is True
            # Dropping what lies between the matches drops nothing if everything matches.
            whole = behavior == "Removed" and invert and regex.endswith(r"|\s+")
            return _spelled(regex) if whole or (behavior == "Isolated" and not invert) else None
        case _:
            return None


def _spelled(regex: str) -> str:
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    if regex == GPT2_WORDS:
        return "{words}"
    for contractions in CONTRACTIONS:
        regex = regex.replace(contractions, "{contractions}")
    return regex
