"""Broken WordPiece, Unigram, SentencePiece and tiktoken files: one line, the documented error."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer_bad_input import VALUES, Change, places, put, refusal, refused
from tiny_tokenizers import DATA, VOCAB_SIZE, edit, write_tokenizer
from tokenizer_source import FolderSource

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.charsmap import check_charsmap
from quantcli.tokenizer.tiktoken import read_ranks

Case = tuple[Change, type[QuantcliError], str]


def charsmap_of(document: dict[str, Any]) -> bytes:
    return base64.b64decode(document["normalizer"]["normalizers"][0]["precompiled_charsmap"])


def with_charsmap(change: Callable[[bytearray], object]) -> Change:
    def edited(document: dict[str, Any]) -> None:
        data = bytearray(charsmap_of(document))
        change(data)
        text = base64.b64encode(bytes(data)).decode()
        document["normalizer"]["normalizers"][0]["precompiled_charsmap"] = text

    return edited


def fill(data: bytearray, value: bytes) -> None:
    size = int.from_bytes(data[:4], "little")
    data[4 : 4 + size] = value * (size // len(value))


CHARSMAP = ("normalizer", "normalizers", 0, "precompiled_charsmap")
UNIGRAM: dict[str, Case] = {
    "no scores": (lambda d: d["model"].update(vocab=["a", "b"]), BadInputError, "a score"),
    "vocabulary of ids": (put("model", "vocab", value={"a": 1}), BadInputError, "scores"),
    "score of text": (put("model", "vocab", 5, 1, value="-1"), BadInputError, "piece 5"),
    "score true": (put("model", "vocab", 5, 1, value=True), BadInputError, "piece 5"),
    "score endless": (put("model", "vocab", 5, 1, value=1e999), BadInputError, "piece 5"),
    "unk beyond": (put("model", "unk_id", value=400), BadInputError, "400"),
    "unk negative": (put("model", "unk_id", value=-1), BadInputError, "-1"),
    "no unk": (put("model", "unk_id", value=None), BadInputError, "None"),
    "byte fallback": (put("model", "byte_fallback", value=True), UnsupportedError, "byte fallback"),
    "lowercase": (put("normalizer", value={"type": "Lowercase"}), UnsupportedError, "Lowercase"),
    "digits": (put("pre_tokenizer", value={"type": "Digits"}), UnsupportedError, "Digits"),
    "many steps": (
        put("normalizer", "normalizers", value=[{"type": "Strip"}] * 99),
        UnsupportedError,
        "no such step",
    ),
    "map no base64": (put(*CHARSMAP, value="?"), BadInputError, "base64"),
    "map a number": (put(*CHARSMAP, value=5), BadInputError, "map is broken"),
    "map cut": (with_charsmap(lambda d: d.__delitem__(slice(9, None))), BadInputError, "broken"),
    "map too short": (with_charsmap(lambda d: d.__delitem__(slice(2, None))), BadInputError, "map"),
    "map endless text": (with_charsmap(lambda d: d.append(65)), BadInputError, "no end"),
    "map not text": (with_charsmap(lambda d: d.extend(b"\xff\0")), BadInputError, "UTF-8"),
    "map leads out": (
        with_charsmap(lambda d: fill(d, b"\x00\xff\xff\x7f")),
        BadInputError,
        "beyond its end",
    ),
    "one row too few": (put("added_tokens", value=[]), BadInputError, "rows"),
    "same text": (put("model", "vocab", 9, 0, value="▁"), BadInputError, "same text"),
}


@pytest.mark.parametrize("name", UNIGRAM)
def test_unigram(name: str, tmp_path: Path) -> None:
    change, error, word = UNIGRAM[name]
    write_tokenizer(tmp_path, "t5")
    (tmp_path / "spiece.model").unlink()
    edit(tmp_path / "tokenizer.json", change)
    if name == "one row too few":
        with pytest.raises(error, match=word):
            read_tokenizer(FolderSource(tmp_path), 399)
        return
    refused(tmp_path, "t5", error, word)


WORDPIECE: dict[str, Case] = {
    "no mark": (put("model", "continuing_subword_prefix", value=""), UnsupportedError, "##"),
    "other mark": (put("model", "continuing_subword_prefix", value="@@"), UnsupportedError, "@@"),
    "no unknown": (put("model", "unk_token", value="[NIX]"), BadInputError, "[NIX]"),
    "unknown no text": (put("model", "unk_token", value=5), BadInputError, "5"),
    "whole words": (
        put("normalizer", "handle_chinese_chars", value=False),
        UnsupportedError,
        "BERT",
    ),
    "no cleaning": (put("normalizer", "clean_text", value=False), UnsupportedError, "BERT"),
    "no normalizer": (put("normalizer", value=None), UnsupportedError, "BERT"),
    "other split": (put("pre_tokenizer", value={"type": "Whitespace"}), UnsupportedError, "BERT"),
    "same id": (put("model", "vocab", "[CLS]", value=5), BadInputError, "share the id"),
    "far id": (put("model", "vocab", "zzz", value=5000), BadInputError, "rows"),
}


@pytest.mark.parametrize("name", WORDPIECE)
def test_wordpiece(name: str, tmp_path: Path) -> None:
    change, error, word = WORDPIECE[name]
    write_tokenizer(tmp_path, "bert")
    edit(tmp_path / "tokenizer.json", change)
    refused(tmp_path, "bert", error, word)


GOOD = (DATA / "qwen1" / "qwen.tiktoken").read_bytes()
LINES = GOOD.splitlines(keepends=True)
RANKS = {
    "empty": (b"", "0x00"),
    "no base64": (b"!!! 0\n" + GOOD, "line 1"),
    "no rank": (GOOD + b"YQ==\n", "line 491"),
    "rank of text": (GOOD + b"YWFhYWE= x\n", "line 491"),
    "negative": (GOOD + b"YWFhYWE= -1\n", "line 491"),
    "huge": (GOOD + b"YWFhYWE= " + b"9" * 5000 + b"\n", "line 491"),
    "twice": (GOOD + LINES[5].split()[0] + b" 490\n", "second time"),
    "hole": (GOOD + b"YWFhYWE= 495\n", "not one token 490"),
    "same rank": (GOOD + b"YWFhYWE= 489\n", "not one token 490"),
    "no byte": (b"".join(line for line in LINES[256:]), "not one token 0"),
    "long": (GOOD + base64.b64encode(b"a" * 2000) + b" 490\n", "line 491"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "escapes": (b"\x1b[2J 0\n", "line 1"),
}


@pytest.mark.parametrize("name", RANKS)
def test_ranks(name: str, tmp_path: Path) -> None:
    content, word = RANKS[name]
    write_tokenizer(tmp_path, "qwen1")
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    refused(tmp_path, "qwen1", BadInputError, "qwen.tiktoken", word)


def test_ranks_without_a_byte() -> None:
    lines = [b"%s %d\n" % (line.split()[0], i) for i, line in enumerate(LINES[1:])]
    with pytest.raises(BadInputError, match="no token for the byte 0x"):
        read_ranks(b"".join(lines), "x")


def test_ranks_of_an_unknown_family(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "kimi")
    refused(tmp_path, "kimi", UnsupportedError, "tiktoken.model", "--pre-tokenizer kimi-k2")
    with pytest.raises(BadInputError, match=r"only 600 rows"):
        read_tokenizer(FolderSource(tmp_path), 600, "kimi-k2")
    for entry, word in (({"content": 5}, "'490'"), ({"content": "[EOS]"}, "same content")):
        write_tokenizer(tmp_path, "kimi")
        edit(tmp_path / "tokenizer_config.json", put("added_tokens_decoder", "490", value=entry))
        refused(tmp_path, "kimi", BadInputError, word)


def test_ranks_where_a_sentencepiece_model_should_be(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(GOOD)
    refused(tmp_path, "llama2", UnsupportedError, "tiktoken", "tokenizer.json")


def test_a_unigram_model_with_byte_fallback(tmp_path: Path) -> None:
    data = bytearray((DATA / "llama2" / "tokenizer.model").read_bytes())
    # TrainerSpec.model_type: 2 (BPE) becomes 1.
    at = data.rindex(b"\x18\x02")
    data[at + 1] = 1
    (tmp_path / "tokenizer.model").write_bytes(data)
    refused(tmp_path, "llama2", UnsupportedError, "tokenizer.model", "byte fallback")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("style", ["bert", "t5"])
def test_any_value_anywhere(
    style: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"kinds-{style}"
    write_tokenizer(folder, style)
    (folder / "spiece.model").unlink(missing_ok=True)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from(places(document)))
    edit(folder / "tokenizer.json", put(*path, value=data.draw(VALUES)))
    source = FolderSource(folder)
    assert "\n" not in refusal(lambda: read_tokenizer(source, VOCAB_SIZE[style]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_in_a_character_map(data: st.DataObject) -> None:
    document = json.loads((DATA / "t5" / "tokenizer.json").read_text(encoding="utf-8"))
    content = bytearray(charsmap_of(document))
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + 4] = data.draw(st.binary(min_size=4, max_size=4))

    def use() -> None:
        from tokenizers import normalizers

        checked = check_charsmap(bytes(content), "x").tobytes()
        for text in ("ﬁ Ａ\u3000é ①\n", "".join(map(chr, range(1, 0x3100, 7)))):
            normalizers.Precompiled(checked).normalize_str(text)

    assert "\n" not in refusal(use)
