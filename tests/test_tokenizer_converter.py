"""The metadata equals what llama.cpp's own converter writes for the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import CASES, DATA, VOCAB_SIZE
from tokenizer_source import FolderSource
from tokenizers import Tokenizer

from quantcli import architectures
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.bpe import parse_bpe
from quantcli.tokenizer.encoder import build_encoder
from quantcli.tokenizer.pre_tokenizer import fingerprint
from quantcli.tokenizer.vocab_merges import read_vocab_merges
from quantcli.tokenizer.wordpiece import build_wordpiece, parse_wordpiece

GEMMA4 = {"architectures": ["Gemma4ForCausalLM"]}
RECORD = json.loads((DATA / "converter.json").read_text(encoding="utf-8"))
# What the converter adds for a family, whatever its tokenizer.
FAMILY = {name: {"tokenizer.ggml.add_space_prefix": False} for name in ("gemma2", "gemma3")}
FAMILY |= dict.fromkeys(("gemma4", "gemma4-names"), architectures.find(GEMMA4).tokenizer)
# Where a file that the converter does not read says more. In llama.cpp a text "<gold>" is found as
# a token of that very spelling only.
EXTRA_IDS = {400 + i: (f"<extra_id_{3 - i}>", 3, -1000.0) for i in range(4)}
BETTER_TOKENS = {
    "llama2-bare": {640: ("<pad>", 3, -1000.0)},
    "bert": {410: ("<gold>", 4)},
    "bert-cased": {410: ("<gold>", 4)},
    "t5": EXTRA_IDS,
}
# The converter leaves out an id or two that llama.cpp would guess wrong, and takes another option
# of the file for the merging of spaces.
BETTER_KEYS = {
    "xlmr": {"remove_extra_whitespaces": True},
    "qwen1": {"eos_token_id": np.uint32(490)},
    "kimi": {"eos_token_id": np.uint32(491)},
    **{
        f"qwen2-{name}": {"eos_token_id": np.uint32(492)} for name in ("two-files", "two-files-old")
    },
    "gpt2-two-files": {"eos_token_id": np.uint32(0)},
}
# The converter is given the name of the pre-tokenizer; without a tokenizer.json, nothing else says
# that no BOS is added.
NAMED = {"tokenizer.ggml.add_bos_token": False}
TYPES = {"BOOL": bool, "STRING": str, "UINT32": np.uint32, "INT32": np.int32, "FLOAT32": np.float32}


def typed(kind: str, value: Any) -> Any:
    """The recorded value in the representation of our metadata."""
    if kind == "UINT8":
        return np.frombuffer(value.encode("latin-1"), np.uint8)
    if not isinstance(value, list):
        return TYPES[kind](value)
    return value if kind == "STRING" else np.array(value, TYPES[kind])


@pytest.mark.parametrize("name", CASES)
def test_metadata_equals_the_converters(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.write(tmp_path)
    ours = read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE[case.style], case.pre_tokenizer)
    ours |= FAMILY.get(name, {})
    theirs = {key: typed(*value) for key, value in RECORD["cases"][name].items()}
    for token_id, token in BETTER_TOKENS.get(name, {}).items():
        for key, value in zip(("tokens", "token_type", "scores"), token, strict=False):
            theirs[f"tokenizer.ggml.{key}"][token_id] = value
    theirs |= {f"tokenizer.ggml.{key}": v for key, v in BETTER_KEYS.get(name, {}).items()}
    theirs = NAMED | theirs if "two-files" in name else theirs
    assert sorted(ours) == sorted(theirs)
    for key, expected in theirs.items():
        assert type(ours[key]) is type(expected), key
        if isinstance(expected, np.ndarray):
            assert ours[key].dtype == expected.dtype, key
            np.testing.assert_array_equal(ours[key], expected, err_msg=key)
        else:
            assert ours[key] == expected, key


@pytest.mark.parametrize("name", RECORD["fingerprints"])
def test_fingerprint_equals_the_converters(name: str, tmp_path: Path) -> None:
    CASES[name].write(tmp_path)
    source = FolderSource(tmp_path)
    if "two-files" in name:
        config = json.loads(source.file("tokenizer_config.json") or b"")
        found = build_encoder(read_vocab_merges(source, config["tokenizer_class"], config))
        assert found is not None
        assert fingerprint(found, None) == RECORD["fingerprints"][name]
        return
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    if CASES[name].style == "bert":
        encoder: Tokenizer | None = build_wordpiece(parse_wordpiece(document))
    else:
        encoder = build_encoder(parse_bpe(document))
    assert encoder is not None
    assert fingerprint(encoder, document["post_processor"]) == RECORD["fingerprints"][name]


def test_the_record_covers_what_matters() -> None:
    kinds = {
        kind for case in RECORD["cases"].values() for kind in case["tokenizer.ggml.token_type"][1]
    }
    assert kinds >= {1, 2, 3, 4, 5, 6}
    keys = {key.removeprefix("tokenizer.") for case in RECORD["cases"].values() for key in case}
    assert keys >= {"ggml.eot_token_id", "ggml.add_sep_token", "chat_template", "chat_templates"}
    tokens = RECORD["cases"]["qwen2"]["tokenizer.ggml.tokens"][1]
    assert " <bytes>" in tokens
    assert "< marked>" in tokens
    assert "[PAD500]" in tokens
