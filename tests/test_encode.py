"""Token ids: from tokenizer.json, and from nothing but the metadata of a GGUF file."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import BPE_STYLES, CASES, STYLES, VOCAB_SIZE, edit, text, write_tokenizer
from tokenizer_source import FolderSource
from tokenizers import Tokenizer

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.encode import Encoder, bos_token
from quantcli.tokenizer.pre_tokenizer import regexes, table

GEMMA = {"tokenizer.ggml.add_space_prefix": False}  # a constant of the family
HARD = "  two  spaces   three\n\n\n\t\ttabs \r\n I'LL we've 1234567 x=\"y\";   ü ﬁ 🦙 \u200d end   "


def metadata_of(folder: Path, style: str) -> dict[str, Any]:
    found = read_tokenizer(FolderSource(folder), VOCAB_SIZE[style])
    return found | (GEMMA if style == "gemma" else {})


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(style: str, tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, style)
    return tmp_path


@pytest.mark.parametrize("sample", [text(), HARD, "x", ""], ids=["text", "hard", "x", "empty"])
def test_ids_are_the_originals(folder: Path, style: str, sample: str) -> None:
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = original.encode(sample, add_special_tokens=False).ids
    if style in BPE_STYLES:
        assert Encoder.from_files(FolderSource(folder)).encode(sample) == expected
    # llama.cpp normalizes nothing; what is in normal form already has the same ids.
    normal = unicodedata.normalize("NFC", sample)
    rebuilt = Encoder.from_metadata(metadata_of(folder, style))
    assert rebuilt.encode(normal) == original.encode(normal, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "sample", [text(), HARD, "\n\n\n\n\n", ""], ids=["text", "hard", "lines", "-"]
)
def test_gemma4(tmp_path: Path, sample: str) -> None:
    CASES["gemma4"].write(tmp_path)
    metadata = read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE["gemma4"])
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encoder = Encoder.from_metadata(metadata)
    assert encoder.encode(sample) == original.encode(sample, add_special_tokens=False).ids
    # Shown to whoever reads a chat, so found in text; a turn is a control token.
    ids = encoder.encode(f"{sample}<|channel><|turn>")
    channel, turn = (original.token_to_id(text) for text in ("<|channel>", "<|turn>"))
    assert channel in ids
    assert turn not in ids


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "a space before the text"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_gemma4_with_other_steps(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    CASES["gemma4"].write(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda document: document.update(change))
    with pytest.raises(UnsupportedError, match=named):
        read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE["gemma4"])


def test_gemma4_without_its_merges(tmp_path: Path) -> None:
    CASES["gemma4"].write(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match=r"Gemma 4 needs its tokenizer\.json"):
        read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE["gemma4"])


def test_demo(demo: Path) -> None:
    original = Tokenizer.from_file(str(demo / "tokenizer.json"))
    source = FolderSource(demo)
    expected = original.encode(text() + HARD, add_special_tokens=False).ids
    assert Encoder.from_files(source).encode(text() + HARD) == expected
    metadata = read_tokenizer(source, 2048)
    assert Encoder.from_metadata(metadata).encode(text() + HARD) == expected


def test_control_tokens_in_a_text_are_text(folder: Path, style: str) -> None:
    metadata = metadata_of(folder, style)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    control = {int(i) for i in np.flatnonzero(types == 3)}
    sample = " and ".join(tokens[i] for i in sorted(control))
    encoders = [Encoder.from_metadata(metadata)]
    if style in BPE_STYLES:
        encoders.append(Encoder.from_files(FolderSource(folder)))
    for encoder in encoders:
        assert control
        assert not control & set(encoder.encode(sample))


def test_user_defined_tokens_are_found_whole(folder: Path, style: str) -> None:
    metadata = metadata_of(folder, style)
    metadata["tokenizer.ggml.tokens"][300] = "<gold mine>"
    metadata["tokenizer.ggml.token_type"][300] = 4
    if "tokenizer.ggml.merges" in metadata:
        kept = set(metadata["tokenizer.ggml.tokens"])
        merges = (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])
        metadata["tokenizer.ggml.merges"] = [
            " ".join(pair) for pair in merges if {*pair, "".join(pair)} <= kept
        ]
    assert 300 in Encoder.from_metadata(metadata).encode("a <gold mine> here")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"model": "llama"}, 1),
        ({"model": "llama", "bos_token_id": np.uint32(7)}, 7),
        ({"model": "llama", "add_bos_token": False}, None),
        ({"model": "gpt2", "pre": "llama-bpe", "bos_token_id": np.uint32(9)}, 9),
        ({"model": "gpt2", "pre": "tekken", "bos_token_id": np.uint32(9)}, 9),
        ({"model": "gpt2", "pre": "llama-bpe", "add_bos_token": False}, None),
        ({"model": "gpt2", "pre": "qwen2", "bos_token_id": np.uint32(9)}, None),
        ({"model": "gpt2", "pre": "qwen2", "add_bos_token": True}, 11),
    ],
)
def test_bos_as_llama_cpp_adds_it(keys: dict[str, Any], expected: int | None) -> None:
    assert bos_token({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == expected


def test_every_alias_and_split_is_a_known_name() -> None:
    names = {*table().aliases, *table().aliases.values(), *(split.name for split in table().splits)}
    assert names <= set(table().names)
    for name in names:
        assert not any(
            "{contractions}" in step or "{words}" in step for step in regexes(name).steps
        )


def _without(key: str) -> Any:
    return lambda metadata: metadata.pop(f"tokenizer.ggml.{key}")


def _with(key: str, value: object) -> Any:
    return lambda metadata: metadata.update({f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        (_without("model"), UnsupportedError, "None"),
        (_with("model", "rwkv"), UnsupportedError, "'rwkv'"),
        (_with("pre", "superbpe"), UnsupportedError, "superbpe"),
        (_without("tokens"), BadInputError, "tokens"),
        (_with("tokens", ["a\x1b"] * 512), BadInputError, "no tokenizer"),
        (_without("merges"), BadInputError, "merges"),
        (_with("merges", ["ab"]), BadInputError, "'ab'"),
        (_with("merges", ["no where"]), BadInputError, "no tokenizer"),
        (_with("token_type", np.ones(3, np.int32)), BadInputError, "token_type"),
    ],
)
def test_broken_metadata(change: Any, kind: type[Exception], word: str, tmp_path: Path) -> None:
    CASES["llama3"].write(tmp_path)
    metadata = metadata_of(tmp_path, "llama3")
    change(metadata)
    with pytest.raises(kind) as caught:
        Encoder.from_metadata(metadata)
    assert type(caught.value) is kind
    assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_scores_too_few_and_pieces_too_long(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    metadata = metadata_of(tmp_path, "llama2")
    short = metadata | {"tokenizer.ggml.scores": np.zeros(5, np.float32)}
    with pytest.raises(BadInputError, match="scores"):
        Encoder.from_metadata(short)
    tokens = [*metadata["tokenizer.ggml.tokens"]]
    tokens[400] = "a" * 20_000
    with pytest.raises(BadInputError, match="too long"):
        Encoder.from_metadata(metadata | {"tokenizer.ggml.tokens": tokens})


def test_no_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(BadInputError, match=r"tokenizer\.json is missing"):
        Encoder.from_files(FolderSource(tmp_path))
