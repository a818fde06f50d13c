"""Tokenizer metadata beyond what the converter's record covers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import DATA, STYLES, VOCAB_SIZE, edit, write_tokenizer
from tokenizer_source import FolderSource

from quantcli.errors import UnsupportedError
from quantcli.tokenizer import pre_tokenizer, read_tokenizer
from quantcli.tokenizer.bpe import parse_bpe
from quantcli.tokenizer.described import Files
from quantcli.tokenizer.pre_tokenizer import CONTRACTIONS, GPT2_WORDS, splitting, table
from quantcli.tokenizer.sentencepiece import read_sentencepiece
from quantcli.tokenizer.unigram import unigram_metadata
from quantcli.tokenizer.vocabulary import Token, TokenType

GGML = "tokenizer.ggml"
LLAMA3 = table().splits[0].steps[0]
QWEN2 = next(split for split in table().splits if split.name == "qwen2").steps[0]


def read(folder: Path, style: str) -> dict[str, Any]:
    return read_tokenizer(FolderSource(folder), VOCAB_SIZE[style])


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(**options: bool) -> dict[str, Any]:
    defaults = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "ByteLevel", **defaults, **options}


def steps_of(*steps: dict[str, Any]) -> list[str] | None:
    document = json.loads((DATA / "gpt2" / "tokenizer.json").read_text(encoding="utf-8"))
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)}
    return splitting(parse_bpe(document))


def test_the_table_is_sound() -> None:
    known = table()
    assert len(set(known.names)) == len(known.names) > 80
    assert set(known.hashes.values()) <= set(known.names)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known.hashes)
    assert {entry.name for entry in known.splits} <= set(known.names)
    keys = [(*entry.steps, entry.ignore_merges) for entry in known.splits]
    assert len(set(keys)) == len(keys)


def test_a_known_fingerprint_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path, "gpt2")
    edit(tmp_path / "tokenizer.json", lambda document: document.update(post_processor=None))
    # A name by splitting comes with what llama.cpp would otherwise guess from it.
    assert read(tmp_path, "gpt2")[f"{GGML}.add_bos_token"] is False
    monkeypatch.setattr(pre_tokenizer, "fingerprint", lambda *_: next(iter(table().hashes)))
    metadata = read(tmp_path, "gpt2")
    assert metadata[f"{GGML}.pre"] == next(iter(table().hashes.values()))
    assert f"{GGML}.add_bos_token" not in metadata


def test_a_fingerprint_is_overruled_where_words_are_taken_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 3's first tokenizer.json has the fingerprint of smaug-bpe, which splits alike."""
    write_tokenizer(tmp_path, "llama3")
    smaug = next(digest for digest, name in table().hashes.items() if name == "smaug-bpe")
    monkeypatch.setattr(pre_tokenizer, "fingerprint", lambda *_: smaug)
    # As long as merges reach every token, it makes no difference.
    assert read(tmp_path, "llama3")[f"{GGML}.pre"] == "smaug-bpe"
    file = tmp_path / "tokenizer.json"
    edit(file, lambda document: document["model"]["merges"].pop())
    assert read(tmp_path, "llama3")[f"{GGML}.pre"] == "llama-bpe"
    edit(file, lambda document: document["model"].update(ignore_merges=False))
    assert read(tmp_path, "llama3")[f"{GGML}.pre"] == "smaug-bpe"


@pytest.mark.parametrize("contractions", CONTRACTIONS)
def test_contractions_in_every_spelling(contractions: str) -> None:
    regex = LLAMA3.replace("{contractions}", contractions)
    assert steps_of(split(regex), byte_level()) == [LLAMA3]


def test_spellings_of_the_same_steps() -> None:
    regex = QWEN2.replace("{contractions}", CONTRACTIONS[0])
    line_ends = regex.replace(r"\r\n", "\r\n")
    assert steps_of(split(line_ends), byte_level()) == [QWEN2]
    assert steps_of(split(regex, "Removed", invert=True), byte_level()) == [QWEN2]
    assert steps_of(byte_level(use_regex=True)) == ["{words}"]
    assert steps_of(split(GPT2_WORDS), byte_level()) == ["{words}"]
    digits = {"type": "Digits", "individual_digits": True}
    assert steps_of(digits, byte_level(use_regex=True)) == [r"\p{N}", "{words}"]


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [split("a")],
        [split("a", "Removed"), byte_level()],
        [split("a", "MergedWithPrevious"), byte_level()],
        [split("a", invert=True), byte_level()],
        [byte_level(add_prefix_space=True)],
        [byte_level(), split("a")],
        [{"type": "Punctuation", "behavior": "Isolated"}, byte_level()],
        [{"type": "Whitespace"}, byte_level()],
    ],
)
def test_steps_that_no_regex_tells(steps: list[dict[str, Any]]) -> None:
    assert steps_of(*steps) is None


def test_ignore_merges_tells_names_apart(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama3")
    file = tmp_path / "tokenizer.json"
    assert read(tmp_path, "llama3")[f"{GGML}.pre"] == "llama-bpe"
    edit(file, lambda document: document["model"].update(ignore_merges=False))
    assert read(tmp_path, "llama3")[f"{GGML}.pre"] == "smaug-bpe"


def test_ignore_merges_is_nothing_where_merges_reach_every_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    file = tmp_path / "tokenizer.json"
    edit(file, lambda document: document["model"].update(ignore_merges=True))
    assert read(tmp_path, "qwen2")[f"{GGML}.pre"] == "qwen2"
    # Without its last merge the last token can only be taken whole.
    edit(file, lambda document: document["model"]["merges"].pop())
    with pytest.raises(UnsupportedError, match=r"closest: qwen2.*--pre-tokenizer qwen2"):
        read(tmp_path, "qwen2")


@pytest.mark.parametrize("style", ["llama2", "gemma"])
def test_tokenizer_json_gives_what_tokenizer_model_gives(style: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, style)
    theirs = read(tmp_path, style)
    (tmp_path / "tokenizer.model").unlink()
    ours = read(tmp_path, style)
    assert ours[f"{GGML}.tokens"] == theirs[f"{GGML}.tokens"]
    for key in ("scores", "token_type"):
        np.testing.assert_array_equal(ours[f"{GGML}.{key}"], theirs[f"{GGML}.{key}"])
    assert ours.get(f"{GGML}.add_space_prefix") is (False if style == "gemma" else None)


def test_scores_follow_the_merges_where_ids_do_not(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.model").unlink()

    def swap(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        vocab["the"], vocab["he"] = vocab["he"], vocab["the"]

    edit(tmp_path / "tokenizer.json", swap)
    metadata = read(tmp_path, "llama2")
    scores = dict(zip(metadata[f"{GGML}.tokens"], metadata[f"{GGML}.scores"], strict=True))
    assert scores["he"] > scores["the"]


def test_a_sentencepiece_model_alone_is_enough(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    whole = read(tmp_path, "llama2")
    (tmp_path / "tokenizer.json").unlink()
    alone = read(tmp_path, "llama2")
    assert alone[f"{GGML}.tokens"] == whole[f"{GGML}.tokens"]


@pytest.mark.parametrize("style", STYLES)
def test_padding_up_to_the_embedding(style: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, style)
    metadata = read_tokenizer(FolderSource(tmp_path), 700)
    assert len(metadata[f"{GGML}.tokens"]) == len(metadata[f"{GGML}.token_type"]) == 700
    assert metadata[f"{GGML}.tokens"][-1].removeprefix("▁") == "[PAD699]"
    assert metadata[f"{GGML}.token_type"][-1] == 5


def test_what_the_converter_adds_for_llama(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(add_prefix_space=False))
    source = FolderSource(tmp_path)
    assert f"{GGML}.add_space_prefix" not in read_tokenizer(source, 32016)
    source.config = {"architectures": ["LlamaForCausalLM"]}
    code = read_tokenizer(source, 32016)
    assert code[f"{GGML}.add_space_prefix"] is False
    assert code[f"{GGML}.eot_token_id"] == np.uint32(32010)
    assert code[f"{GGML}.add_bos_token"] is True
    assert read_tokenizer(source, 49152)[f"{GGML}.add_bos_token"] is False


def test_where_chat_templates_come_from(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    key = "tokenizer.chat_template"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert read(tmp_path, "gpt2")[key] == "json"
    (tmp_path / "chat_template.jinja").write_bytes(b"jinja\r\n{{ 7 * 7 }}")
    assert read(tmp_path, "gpt2")[key] == "jinja\n{{ 7 * 7 }}"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool-use.jinja").write_text("tools")
    metadata = read(tmp_path, "gpt2")
    assert (metadata[f"{key}.tool_use"], metadata[f"{key}s"]) == ("tools", ["tool_use"])
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template="config"))
    metadata = read(tmp_path, "gpt2")
    assert metadata[key] == "config"
    assert f"{key}s" not in metadata
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=None))
    assert key not in read(tmp_path, "gpt2")


def test_special_ids_that_name_nothing_are_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt2")
    source = FolderSource(tmp_path)
    source.config = {"pad_token_id": -1, "sep_token_id": 448, "mask_token_id": True}
    source.config["text_config"] = {"mask_token_id": 7}
    metadata = read_tokenizer(source, 448)
    assert not {f"{GGML}.padding_token_id", f"{GGML}.seperator_token_id"} & metadata.keys()
    del source.config["mask_token_id"]
    assert read_tokenizer(source, 448)[f"{GGML}.mask_token_id"] == np.uint32(7)


def test_a_unigram_model_of_a_decoder(tmp_path: Path) -> None:
    """Nothing but the file tells what goes around a text; T5 would end it."""
    write_tokenizer(tmp_path, "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "spiece.model").rename(tmp_path / "tokenizer.model")
    source = FolderSource(tmp_path)
    assert f"{GGML}.add_eos_token" not in read_tokenizer(source, 448)
    source.config = {"architectures": ["LlamaForCausalLM"]}
    metadata = read_tokenizer(source, 448)
    assert metadata[f"{GGML}.model"] == "t5"
    assert metadata[f"{GGML}.add_eos_token"] is metadata[f"{GGML}.add_bos_token"] is False
    # This one has no <s>; with one a text begins with it, as long as the files say nothing else.
    model = read_sentencepiece((tmp_path / "tokenizer.model").read_bytes(), "tokenizer.model")
    pieces = {**model.pieces, 0: Token("<s>", 0.0, TokenType.CONTROL)}
    files = Files(source, None, {})
    metadata, known = unigram_metadata(files, replace(model, pieces=pieces), "x", 448)
    assert metadata[f"{GGML}.add_bos_token"] is True
    assert known == {"unk": 2, "bos": 0, "eos": 1}
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    source = FolderSource(tmp_path)
    source.config = {"architectures": ["LlamaForCausalLM"]}
    assert read_tokenizer(source, 448)[f"{GGML}.add_bos_token"] is False
