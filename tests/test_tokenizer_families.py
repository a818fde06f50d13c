"""The tokenizers of popular families, reduced: as `tokenizers` has them, as a GGUF file has them.

What llama.cpp itself makes of the same metadata: test_tokenizer_runtime.py.
"""

import json
from pathlib import Path

import pytest
from real_tokenizers import FAMILIES, samples_of, why_unlike, write_real
from tokenizer_samples import SAMPLES
from tokenizer_source import FolderSource
from tokenizers import Tokenizer

from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.encode import Encoder
from quantcli.tokenizer.pre_tokenizer import table


def test_the_record_covers_many() -> None:
    assert len(FAMILIES) > 15
    assert {found["pre"] for found in FAMILIES.values()} > {"default", "llama-bpe", "qwen2"}
    for family, found in FAMILIES.items():
        assert len(found["ids"]) == len(SAMPLES) + 1
        assert len(found["sha256"]) == 64
        assert found["source"].get("version") or len(found["source"]["commit"]) == 40
        # Ids of the whole file are told by those of the reduced one.
        assert sorted(set(found["kept"])) == found["kept"]
        assert found["kept"][-1] < found["tokens"], family


@pytest.mark.parametrize("family", FAMILIES)
def test_what_llama_cpp_does_otherwise_is_known(family: str) -> None:
    """Of the whole file: recorded for each sample."""
    found = FAMILIES[family]
    assert all(why_unlike(family, samples_of(family)[i]) for i in found["unlike"])
    assert len(found["unlike"]) <= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_by_our_metadata(family: str, tmp_path: Path) -> None:
    """The pre-tokenizer is told by its steps here: a reduced file has no known fingerprint."""
    write_real(tmp_path, family)
    found = FAMILIES[family]
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    metadata = read_tokenizer(FolderSource(tmp_path), len(found["kept"]))
    name, aliases = metadata["tokenizer.ggml.pre"], table().aliases
    assert aliases.get(name, name) == aliases.get(found["pre"], found["pre"])
    encoder = Encoder.from_metadata(metadata)
    plain = Tokenizer.from_str(reference.to_str())
    plain.encode_special_tokens = True
    for i, (sample, ids) in enumerate(zip(samples_of(family), found["ids"], strict=True)):
        assert reference.encode(sample).ids == ids, sample
        if sample == found["special"] or i in found["unlike"]:
            continue
        assert encoder.encode(sample) == plain.encode(sample, add_special_tokens=False).ids, sample


def test_tokens_are_those_of_the_whole_file(tmp_path: Path) -> None:
    """Ids that everyone knows."""
    gpt2, llama3 = FAMILIES["gpt-2"], FAMILIES["llama-3.1"]
    for found, text, token_id in ((gpt2, "Ġthe", 262), (llama3, "Ġthe", 279)):
        vocab = found["tokenizer.json"]["model"]["vocab"]
        assert found["kept"][vocab[text]] == token_id
    begin = json.loads(json.dumps(llama3["tokenizer.json"]["added_tokens"]))[0]
    assert (begin["content"], llama3["kept"][begin["id"]]) == ("<|begin_of_text|>", 128000)
