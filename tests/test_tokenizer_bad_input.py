"""Broken and hostile tokenizer files: one line, the documented error, no memory, no time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import DATA, STYLES, VOCAB_SIZE, edit, write_tokenizer
from tokenizer_source import FolderSource

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError, UsageError
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.sentencepiece import read_sentencepiece

Change = Callable[[dict[str, Any]], object]
BOMB = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1000}


def put(*path: str | int, value: Any) -> Change:
    """Set one value deep inside a document."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def read(folder: Path, style: str, pre_tokenizer: str | None = None) -> dict[str, Any]:
    return read_tokenizer(FolderSource(folder), VOCAB_SIZE[style], pre_tokenizer)


def refused(folder: Path, style: str, error: type[QuantcliError], *words: str) -> None:
    with pytest.raises(error) as caught:
        read(folder, style)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


TOKENIZER_JSON: dict[str, tuple[Change, type[QuantcliError], str]] = {
    "no model": (put("model", value=None), BadInputError, "no model"),
    "unigram": (put("model", "type", value="Unigram"), BadInputError, "scores"),
    "wordpiece": (put("model", "type", value="WordPiece"), UnsupportedError, "##"),
    "word level": (put("model", "type", value="WordLevel"), UnsupportedError, "WordLevel"),
    "suffixes": (put("model", "end_of_word_suffix", value="</w>"), UnsupportedError, "</w>"),
    "no vocabulary": (put("model", "vocab", value={}), BadInputError, "no vocabulary"),
    "list vocabulary": (put("model", "vocab", value=["a"]), BadInputError, "no vocabulary"),
    "negative id": (put("model", "vocab", "the", value=-1), BadInputError, "-1"),
    "fraction id": (put("model", "vocab", "the", value=1.5), BadInputError, "1.5"),
    "true id": (put("model", "vocab", "the", value=True), BadInputError, "True"),
    "huge id": (put("model", "vocab", "zzz", value=2**31 - 1), BadInputError, "rows"),
    "beyond 32 bits": (put("model", "vocab", "zzz", value=2**40), BadInputError, "id"),
    "same id": (put("model", "vocab", "the", value=5), BadInputError, "share the id 5"),
    "one row too few": (put("model", "vocab", "zzz", value=512), BadInputError, "512 rows"),
    "no merges": (put("model", "merges", value=None), BadInputError, "merges"),
    "unknown merge": (put("model", "merges", 0, value=["a", "qq"]), BadInputError, "'qq'"),
    "unknown result": (put("model", "merges", 0, value="q q"), BadInputError, "'qq'"),
    "merge of three": (put("model", "merges", 0, value="a b c"), BadInputError, "two tokens"),
    "merge of numbers": (put("model", "merges", 0, value=[1, 2]), BadInputError, "two tokens"),
    "added no list": (put("added_tokens", value={"a": 1}), BadInputError, "list"),
    "added id": (put("added_tokens", 0, "id", value=-4), BadInputError, "valid id"),
    "added id far": (put("added_tokens", 7, "id", value=4000), BadInputError, "4000"),
    "added content": (put("added_tokens", 0, "content", value=7), BadInputError, "content"),
    "added empty": (put("added_tokens", 0, "content", value=""), BadInputError, "content"),
    "added twice": (put("added_tokens", 0, "content", value="<|eot_id|>"), BadInputError, "same"),
    "escapes": (put("added_tokens", 0, "content", value=["\x1b[2J" * 99]), BadInputError, "x1b"),
    "splitting": (put("pre_tokenizer", value=None), UnsupportedError, "--pre-tokenizer"),
    "split type": (put("pre_tokenizer", value="Whitespace"), BadInputError, "pre_tokenizer"),
    "split endless": (
        put("pre_tokenizer", value={"type": "FixedLength", "length": 0}),
        UnsupportedError,
        "--pre-tokenizer",
    ),
    "split regex": (
        put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value="["),
        BadInputError,
        "tokenizers",
    ),
    "endless regex": (
        put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value=r"((\s+|\p{L}+)+)+$x"),
        UnsupportedError,
        "--pre-tokenizer",
    ),
    "normalizer": (put("normalizer", value={"type": "NFKC"}), UnsupportedError, "closest"),
    "bomb": (
        put("normalizer", value={"type": "Sequence", "normalizers": [BOMB] * 9}),
        UnsupportedError,
        "--pre-tokenizer",
    ),
    "post-processor": (put("post_processor", value=[1]), BadInputError, "post_processor"),
}


@pytest.mark.parametrize("name", TOKENIZER_JSON)
def test_tokenizer_json(name: str, tmp_path: Path) -> None:
    change, error, word = TOKENIZER_JSON[name]
    write_tokenizer(tmp_path, "llama3")
    edit(tmp_path / "tokenizer.json", change)
    refused(tmp_path, "llama3", error, word)


HARMLESS = {
    "padding": put("padding", value={"strategy": {"Fixed": 10**9}, "pad_id": 0}),
    "truncation": put("truncation", value={"max_length": 2, "stride": 5}),
    "template without ids": put("post_processor", "processors", 1, "special_tokens", value={}),
    "template with many ids": put(
        "post_processor",
        "processors",
        1,
        "special_tokens",
        "<|begin_of_text|>",
        "ids",
        value=[10**9] * 10**4,
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_parts_that_are_not_used_do_no_harm(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama3")
    before = read(tmp_path, "llama3")
    edit(tmp_path / "tokenizer.json", HARMLESS[name])
    after = read(tmp_path, "llama3")
    assert after["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]
    assert after["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"model": ', "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"model": ' + b"9" * 5000 + b"}", "number"),
        (b'{"model": [' + b"[]," * 2_000_001 + b"[]]}", "values"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_json(file: str, content: bytes, word: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    (tmp_path / file).write_bytes(content)
    refused(tmp_path, "gpt2", BadInputError, file, word)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        (5, "not a string"),
        ({"default": "x"}, "not a string"),
        ("x" * ((1 << 20) + 1), "1048576"),
        ([{"name": "rag", "template": 5}], "not a string"),
        ([{"name": "rag", "template": "é" * (1 << 19) + "x"}], "1048576"),
        (["x"], "no template"),
    ],
)
def test_chat_templates(template: object, word: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    edit(tmp_path / "tokenizer_config.json", put("chat_template", value=template))
    refused(tmp_path, "gpt2", BadInputError, "tokenizer_config.json", word)


def test_the_largest_chat_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    edit(tmp_path / "tokenizer_config.json", put("chat_template", value="x" * (1 << 20)))
    assert len(read(tmp_path, "gpt2")["tokenizer.chat_template"]) == 1 << 20


def test_no_tokenizer(tmp_path: Path) -> None:
    refused(tmp_path, "gpt2", BadInputError, "no tokenizer", "tokenizer.json")
    (tmp_path / "vocab.json").write_text("{}")
    refused(tmp_path, "gpt2", UnsupportedError, "vocab.json", "tokenizer.json")
    code = {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    refused(tmp_path, "gpt2", UnsupportedError, "never run")


def test_sentencepiece_merges_of_another_trainer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.model").unlink()
    seen: set[str] = set()

    def keep_one_merge_for_each_token(document: dict[str, Any]) -> None:
        merges = document["model"]["merges"]
        kept = [m for m in merges if not ("".join(m) in seen or seen.add("".join(m)))]  # type: ignore[func-returns-value]
        document["model"]["merges"] = kept

    edit(tmp_path / "tokenizer.json", keep_one_merge_for_each_token)
    refused(tmp_path, "llama2", UnsupportedError, "never merges")


def test_sentencepiece_normalizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.model").unlink()
    edit(tmp_path / "tokenizer.json", put("normalizer", value={"type": "Lowercase"}))
    refused(tmp_path, "llama2", UnsupportedError, "Lowercase")


def test_sentencepiece_tokens_that_would_never_end(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.model").unlink()
    edit(tmp_path / "tokenizer.json", put("model", "vocab", "a" * 20_000, value=640))
    refused(tmp_path, "llama2", BadInputError, "too long")


def test_two_tokens_with_one_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    added = {"special": False, "content": "the"}
    change = put("added_tokens_decoder", "640", value=added)
    edit(tmp_path / "tokenizer_config.json", change)
    refused(tmp_path, "llama2", BadInputError, "'the'", "640")


@pytest.mark.parametrize("entry", [None, "x", {}, {"content": 5}, {"content": ""}])
def test_added_tokens_decoder(entry: object, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    edit(tmp_path / "tokenizer_config.json", put("added_tokens_decoder", "640", value=entry))
    refused(tmp_path, "llama2", BadInputError, "640")


@pytest.mark.parametrize("token_id", [-1, "1", 1.5, None, True])
def test_added_tokens_json(token_id: object, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": token_id}))
    refused(tmp_path, "llama2", BadInputError, "added_tokens.json")


def test_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    for style in (*STYLES, "qwen1"):
        write_tokenizer(tmp_path / style, style)
        with pytest.raises(BadInputError, match="only 300 rows"):
            read_tokenizer(FolderSource(tmp_path / style), 300)


def test_pre_tokenizer_names(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    assert read(tmp_path, "gpt2", "deepseek-llm")["tokenizer.ggml.pre"] == "deepseek-llm"
    with pytest.raises(UsageError, match=r"lama-bep.*llama-bpe"):
        read(tmp_path, "gpt2", "lama-bep")
    write_tokenizer(tmp_path / "spm", "llama2")
    with pytest.raises(UsageError, match="byte-level BPE"):
        read(tmp_path / "spm", "llama2", "llama-bpe")


def refusal(call: Callable[[], object]) -> str:
    """The message of an expected failure, empty if there is none; any other error passes."""
    try:
        call()
    except QuantcliError as error:
        return str(error)
    return ""


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], {"type": "Sequence"}, {"": {}}, "BPE", "ByteLevel"]),
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths to values in a document; of long lists and objects only the first three."""
    items: list[Any] = []
    if isinstance(value, dict):
        items = list(value.items())[:9]
    elif isinstance(value, list):
        items = list(enumerate(value))[:3]
    return [p for k, v in items for p in [(*path, k), *places(v, (*path, k))]]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("style", ["llama3", "llama2"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_any_value_anywhere(
    style: str, file: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any-{style}"
    write_tokenizer(folder, style)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from(places(document)))
    edit(folder / file, put(*path, value=data.draw(VALUES)))
    assert "\n" not in refusal(lambda: read(folder, style))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bytes_in_a_sentencepiece_model(data: st.DataObject) -> None:
    model = bytearray((DATA / "llama2" / "tokenizer.model").read_bytes())
    start = data.draw(st.integers(0, len(model) - 1))
    model[start : start + 4] = data.draw(st.binary(max_size=8))
    cut = bytes(model[: data.draw(st.integers(0, len(model)))])
    assert "\n" not in refusal(lambda: read_sentencepiece(cut, "tokenizer.model"))
