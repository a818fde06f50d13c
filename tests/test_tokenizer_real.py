"""Tokenizers that people have: their structure as found in public repositories (real.json)."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import DATA, write_tokenizer
from tokenizer_source import FolderSource

from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.bpe import parse_bpe
from quantcli.tokenizer.pre_tokenizer import regexes, split_name, table

FAMILIES = json.loads((DATA / "real.json").read_text(encoding="utf-8"))["families"]
# What llama.cpp's converter calls them; without a name it gives up on the two of None.
BYTE_LEVEL = {
    "codeshell": "codeshell",
    "cohere": None,
    "gpt-neox": "olmo",
    "gpt2": "gpt-2",
    "granite-docling": "granite-docling",
    "kimi-k2": "kimi-k2",
    "olmo": "olmo",
    "olmo2": "dbrx",
    "phi-2": "phi-2",
    "qwen": "qwen2",
    "qwen-vl": "qwen2",
    "qwen2": "qwen2",
    "smollm": "smollm",
    "starcoder": "refact",
}
# Fixtures with a vocabulary of the same kind.
GRAFTS = {"bert": "bert", "minilm": "bert", "pegasus": "t5", "mistral": "llama2"}
GRAFTS |= {"codestral": "llama2"}


def graft(folder: Path, family: str, style: str) -> None:
    """The family's tokenizer.json with the vocabulary of a fixture, the added tokens left out."""
    found = FAMILIES[family]
    write_tokenizer(folder, style)
    for name in ("tokenizer_config.json", "tokenizer.model", "spiece.model"):
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    parts = {"vocab", "merges", "unk_id", "unk_token"} & document["model"].keys()
    document["model"] = found["model"] | {key: document["model"][key] for key in parts}
    document |= {key: found[key] for key in ("normalizer", "pre_tokenizer")}
    if style == "t5":
        # The real map has 240 KB: without one, words could not be split at spaces.
        original = json.loads((DATA / "t5" / "tokenizer.json").read_text(encoding="utf-8"))
        document["normalizer"]["normalizers"][0] = original["normalizer"]["normalizers"][0]
    file.write_text(json.dumps(document), encoding="utf-8")


def test_the_record_covers_many() -> None:
    assert {*BYTE_LEVEL, *GRAFTS} == FAMILIES.keys()
    assert len(FAMILIES) > 15
    assert all(len(found["source"]["commit"]) == 40 for found in FAMILIES.values())


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_names_by_fingerprint(family: str) -> None:
    assert table().hashes.get(FAMILIES[family]["fingerprint"]) == BYTE_LEVEL[family]


@pytest.mark.parametrize("family", ["bert", "minilm"])
def test_names_of_wordpiece_by_fingerprint(family: str) -> None:
    assert table().wordpiece[FAMILIES[family]["fingerprint"]] == "jina-v2-en"


@pytest.mark.parametrize(
    "family", [name for name in BYTE_LEVEL if FAMILIES[name]["file"] == "tokenizer.json"]
)
def test_steps_say_the_same_as_the_fingerprint(family: str, tmp_path: Path) -> None:
    """A fine-tuned model with other added tokens has another fingerprint, but the same steps."""
    graft(tmp_path, family, "gpt2")
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    name = split_name(parse_bpe(document))
    expected = BYTE_LEVEL[family] or "gpt-2"
    assert regexes(name).steps == regexes(expected).steps
    assert regexes(name).ignore_merges == regexes(expected).ignore_merges


EXPECTED: dict[str, dict[str, Any]] = {
    "bert": {"model": "bert", "normalizer.lowercase": True},
    "minilm": {"model": "bert", "normalizer.lowercase": True},
    "pegasus": {"model": "t5", "add_space_prefix": True, "remove_extra_whitespaces": True},
    "mistral": {"model": "llama", "add_space_prefix": None},
    "codestral": {"model": "llama", "add_space_prefix": None},
}


@pytest.mark.parametrize("family", GRAFTS)
def test_other_kinds_are_read(family: str, tmp_path: Path) -> None:
    graft(tmp_path, family, GRAFTS[family])
    metadata = read_tokenizer(FolderSource(tmp_path), 700)
    for key, value in EXPECTED[family].items():
        assert metadata.get(f"tokenizer.ggml.{key}") == value, key
