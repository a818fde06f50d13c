"""Tokenizers that people have, reduced to what the samples need (real_ids.json.xz)."""

import json
import lzma
import unicodedata
from pathlib import Path
from typing import Any

from tiny_tokenizers import DATA
from tokenizer_samples import SAMPLES

RECORD = json.loads(lzma.decompress((DATA / "real_ids.json.xz").read_bytes()))
FAMILIES: dict[str, dict[str, Any]] = RECORD["families"]


def samples_of(family: str) -> list[str]:
    return [*SAMPLES, FAMILIES[family]["special"]]


def write_real(folder: Path, family: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = json.dumps(FAMILIES[family][name], ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")


def why_unlike(family: str, sample: str) -> str | None:
    """What llama.cpp itself does in another way than `tokenizers`; None if nothing is known."""
    found = FAMILIES[family]
    steps = json.dumps([found["tokenizer.json"][part] for part in ("normalizer", "pre_tokenizer")])
    if '"NFC"' in steps and unicodedata.normalize("NFC", sample) != sample:
        return "it does not compose characters"
    if found["pre"] == "gpt-4o" and any(unicodedata.category(c)[0] == "M" for c in sample):
        return "its regex leaves combining marks out of words"
    if '"prepend_scheme": "first"' in steps and (sample == found["special"] or sample[:1] == " "):
        return "it puts a space before a space, too, and after every control token"
    added = found["tokenizer.json"]["added_tokens"]
    if sample == found["special"] and any(token["lstrip"] or token["rstrip"] for token in added):
        return "added tokens take no spaces with them, but in files whose name has a phi-3"
    if '"WhitespaceSplit"' in steps and "\u0085" in sample:
        return "U+0085 is no space"
    return None
