"""Texts: from files, from the hub, our own; and how they are cut into windows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import Start
from hub_server import GATED, Fault
from huggingface_hub import constants
from tiny_tokenizers import VOCAB_SIZE, write_tokenizer
from tokenizer_source import FolderSource

from quantcli.calibration.text import Text, cut_windows, read_text
from quantcli.errors import (
    AccessError,
    BadInputError,
    IntegrityError,
    NetworkError,
    QuantcliError,
    UsageError,
)
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.encode import Encoder

pytest_plugins = ["hub_fixtures"]

LINES = [{"text": "one – two"}, {"id": 7, "text": "drei\nvier"}, {"text": "πέντε"}]
JSONL = "\n\n".join(json.dumps(line) for line in LINES) + "\n"


def failure(source: str | Path, kind: type[QuantcliError]) -> str:
    with pytest.raises(QuantcliError) as caught:
        read_text(str(source))
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 300
    return message


# --- files ---------------------------------------------------------------------------------------


def test_plain_text_loses_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Grüße\n\n", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt")) == Text("a.txt", "Grüße\n")
    (tmp_path / "bom.txt").write_text("Grüße", encoding="utf-8-sig")
    assert read_text(str(tmp_path / "bom.txt")).content == "Grüße"


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSONL)
    assert read_text(str(tmp_path / "a.jsonl")).content == "one – two\ndrei\nvier\nπέντε"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\t\n", "no text"),
        ("a.txt", "Grüße".encode("latin-1"), "not UTF-8 at byte 2"),
        ("a.txt", "plain".encode("utf-16-le"), "character 1 is NUL"),
        ("a.txt", b"\x1f\x8b\x08\x00", "not UTF-8 at byte 1"),
        ("a.jsonl", b"", "no text"),
        ("a.jsonl", b'{"text": ""}', "no text"),
        ("a.jsonl", b'{"text": "fine"}\nno json', "line 2"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]', "line 2"),
        ("a.jsonl", b'{"texts": "other"}', "line 1 has no `text`"),
        ("a.jsonl", b'{"text": ["a"]}', "line 1 has no `text`"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1 has no `text`"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1"),
    ],
)
def test_bad_content(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert word in failure(tmp_path / name, BadInputError)


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "cannot open" in failure(tmp_path / "missing.txt", AccessError)
    assert "not a regular file" in failure(tmp_path, BadInputError)


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.calibration.text.LIMIT", 10)
    (tmp_path / "a.txt").write_text("eleven char")
    assert "limit of 10 bytes" in failure(tmp_path / "a.txt", BadInputError)


def test_builtin_text_is_varied() -> None:
    text = read_text("builtin").content
    assert 80_000 <= len(text.encode()) <= 120_000
    scripts = {"ж", "λ", "ש", "م", "ह", "的", "の", "한", "ß", "ş", "∑", "🙂", "{", "ไ", "த"}
    assert scripts <= set(text)
    # No passage twice.
    words = text.split()
    passages = [tuple(words[i : i + 12]) for i in range(len(words) - 11)]
    assert len(passages) - len(set(passages)) < 5


# --- the hub -------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "lines.jsonl").write_text(JSONL)
    (folder / "plain.txt").write_text("Some text.\n")
    return folder


def test_file_of_a_dataset(hub: Start, dataset: Path) -> None:
    server = hub({"datasets/org/name": dataset})
    found = read_text("hf://datasets/org/name/raw/lines.jsonl")
    assert found == Text("lines.jsonl", "one – two\ndrei\nvier\nπέντε")
    commit = server.find("datasets/org/name", "main").commit
    assert read_text(f"hf://datasets/org/name@{commit}/plain.txt").content == "Some text."


def test_offline_the_cache_is_enough(
    hub: Start, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub({"datasets/org/name": dataset})
    read_text("hf://datasets/org/name/plain.txt")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_text("hf://datasets/org/name/plain.txt").content == "Some text."
    message = failure("hf://datasets/org/name/raw/lines.jsonl", AccessError)
    assert "not in the cache" in message
    assert server.requests == []


@pytest.mark.parametrize(
    ("source", "kind", "word"),
    [
        ("hf://datasets/org/other/plain.txt", AccessError, "no dataset 'org/other'"),
        ("hf://datasets/org/name/raw/none.txt", AccessError, "no file 'raw/none.txt'"),
        ("hf://datasets/org/name@nope/plain.txt", AccessError, ""),
        ("hf://datasets/org/name", UsageError, "path/of/file.txt"),
        ("hf://org/name/plain.txt", UsageError, "path/of/file.txt"),
        ("hf://datasets/org/name/../../x.txt", UsageError, "path/of/file.txt"),
        ("hf://datasets/org/name/a\x1b[2Jb.txt", UsageError, "path/of/file.txt"),
    ],
)
def test_bad_addresses(
    source: str, kind: type[QuantcliError], word: str, hub: Start, dataset: Path
) -> None:
    hub({"datasets/org/name": dataset})
    assert word in failure(source, kind)


def test_what_the_hub_refuses(hub: Start, dataset: Path) -> None:
    path = "plain.txt"
    hub({"datasets/org/name": dataset}, (Fault(path, "HEAD", status=403, headers=GATED),))
    assert "gated" in failure(f"hf://datasets/org/name/{path}", AccessError)


def test_a_failing_hub(hub: Start, dataset: Path, waits: list[float]) -> None:
    hub({"datasets/org/name": dataset}, (Fault("plain.txt", "HEAD", status=503),))
    assert "HTTP 503" in failure("hf://datasets/org/name/plain.txt", NetworkError)
    assert waits


def test_damaged_content_is_found(hub: Start, dataset: Path) -> None:
    hub({"datasets/org/name": dataset}, (Fault("plain.txt", corrupt=True, times=1),))
    assert "damaged" in failure("hf://datasets/org/name/plain.txt", IntegrityError)
    assert read_text("hf://datasets/org/name/plain.txt").content == "Some text."


def test_too_large_is_not_downloaded(
    hub: Start, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantcli.calibration.text.LIMIT", 5)
    server = hub({"datasets/org/name": dataset})
    assert "limit of 5" in failure("hf://datasets/org/name/plain.txt", BadInputError)
    assert [method for method, *_ in server.requests] == ["HEAD"]


# --- windows -------------------------------------------------------------------------------------


@pytest.fixture
def metadata(tmp_path: Path) -> dict[str, Any]:
    write_tokenizer(tmp_path, "llama3")
    (tmp_path / "config.json").write_text("{}")
    found = read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE["llama3"])
    arch = {"general.architecture": "llama", "llama.context_length": np.uint32(64)}
    return found | arch | {"tokenizer.ggml.bos_token_id": np.uint32(3)}


TEXT = Text("t", "A bell complained that it was struck every hour. " * 9)


def test_bos_begins_the_text_and_takes_the_place_of_each_first_token(
    metadata: dict[str, Any],
) -> None:
    ids = Encoder.from_metadata(metadata).encode(TEXT.content)
    windows = cut_windows(TEXT, metadata | {"tokenizer.ggml.add_bos_token": True}, 16)
    assert windows.dtype == np.int32
    assert windows.shape == ((len(ids) + 1) // 16, 16)
    assert set(windows[:, 0]) == {3}
    assert windows[0, 1:].tolist() == ids[:15]
    assert windows[2, 1:].tolist() == ids[32:47]


def test_without_bos(metadata: dict[str, Any]) -> None:
    ids = Encoder.from_metadata(metadata).encode(TEXT.content)
    windows = cut_windows(TEXT, metadata | {"tokenizer.ggml.add_bos_token": False}, 16)
    assert windows.reshape(-1).tolist() == ids[: len(ids) // 16 * 16]


@pytest.mark.parametrize("tokens", [16, 31, 32, 80])
def test_tokens_are_the_first_of_the_whole_text(tokens: int, metadata: dict[str, Any]) -> None:
    whole = cut_windows(TEXT, metadata, 16)
    some = cut_windows(TEXT, metadata, 16, tokens)
    np.testing.assert_array_equal(some, whole[: tokens // 16])


def test_a_prefix_is_encoded_until_it_is_enough(
    metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda s, t: encoded.append(len(t)) or encode(s, t))
    long = Text("t", TEXT.content * 50)
    windows = cut_windows(long, metadata, 16, 160)
    assert max(encoded) < len(long.content) // 4
    np.testing.assert_array_equal(windows, cut_windows(long, metadata, 16)[:10])
    # Spaces that the tokenizer joins: many characters per token.
    encoded.clear()
    sparse = Text("t", ("\t" * 300 + "x") * 60)
    windows = cut_windows(sparse, metadata, 16, 32)
    np.testing.assert_array_equal(windows, cut_windows(sparse, metadata, 16)[:2])


@pytest.mark.parametrize(
    ("context", "tokens", "kind", "word"),
    [
        (65, None, UsageError, "more than the model's 64"),
        (32, 31, UsageError, "--tokens 31"),
        (60, None, BadInputError, "too few for one window of 60"),
    ],
)
def test_too_short_or_too_long(
    context: int, tokens: int | None, kind: type[QuantcliError], word: str, metadata: dict[str, Any]
) -> None:
    with pytest.raises(QuantcliError, match=word) as caught:
        cut_windows(Text("t", "A short text."), metadata, context, tokens)
    assert type(caught.value) is kind
