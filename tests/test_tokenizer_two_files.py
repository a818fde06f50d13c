"""vocab.json and merges.txt without a tokenizer.json."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import CASES, VOCAB_SIZE, edit, text, write_tokenizer
from tokenizer_samples import MORE
from tokenizer_source import FolderSource
from tokenizers import Tokenizer

from quantcli.errors import BadInputError, QuantcliError, UnsupportedError, UsageError
from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.encode import Encoder

GGML = "tokenizer.ggml"


@pytest.mark.parametrize("style", ["gpt2", "qwen2"])
def test_the_same_as_with_tokenizer_json(style: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, style)
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE[style])
    CASES[f"{style}-two-files"].write(tmp_path)
    ours = read_tokenizer(FolderSource(tmp_path), VOCAB_SIZE[style])
    for key in ("model", "pre", "tokens", "merges", "eos_token_id", "add_bos_token"):
        assert ours[f"{GGML}.{key}"] == theirs[f"{GGML}.{key}"], key
    assert ours[f"{GGML}.token_type"].tolist() == theirs[f"{GGML}.token_type"].tolist()
    for sample in (unicodedata.normalize("NFC", text()), MORE):
        ids = original.encode(sample, add_special_tokens=False).ids
        assert Encoder.from_metadata(ours).encode(sample) == ids


def test_a_pre_tokenizer_can_be_given(tmp_path: Path) -> None:
    CASES["gpt2-two-files"].write(tmp_path)
    source = FolderSource(tmp_path)
    assert read_tokenizer(source, 448, "starcoder")[f"{GGML}.pre"] == "starcoder"


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda c: c.update(values))


def _merges(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "merges.txt").write_text(content) and None


def _vocab(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "vocab.json", lambda vocab: vocab.update(values))


def _added(names: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        edit(folder / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder"))
        (folder / "added_tokens.json").write_text(json.dumps(names))

    return write


BAD: list[tuple[Callable[[Path], None], type[QuantcliError], str]] = [
    (_merges("#version: 0.2\n"), BadInputError, "merges.txt has no merges"),
    (_merges("Ġ t\nx\n"), BadInputError, "merges.txt: merge 1 is 'x', not two tokens"),
    (_merges("a qqq\n"), BadInputError, "merges.txt: merge 0 needs the token 'qqq'"),
    (_vocab(x=1, y=1), BadInputError, "vocab.json: tokens .* share the id 1"),
    (_vocab(x=-1), BadInputError, "vocab.json: token 'x' has the id -1"),
    (_vocab(x=9999), BadInputError, "'x' with the id 9999"),
    (_config(add_prefix_space=True), UnsupportedError, "sets add_prefix_space"),
    (_config(eos_token="<end>"), BadInputError, "needs the token '<end>', which neither vocab"),
    (_config(added_tokens_decoder={"x": {"content": "a"}}), BadInputError, "added token 'x' is"),
    (_config(added_tokens_decoder={"1": 2}), BadInputError, "added token '1' is 2"),
    (
        _config(added_tokens_decoder={"490": {"content": "<|endoftext|>"}, "0490": "a"}),
        BadInputError,
        "added token '0490' is 'a'",
    ),
    (_added({"<|endoftext|>": "1"}), BadInputError, "added_tokens.json gives"),
    (
        _added({"<|endoftext|>": 490, "<|im_end|>": 490}),
        BadInputError,
        "two added tokens have the same id",
    ),
    (_config(tokenizer_class="OtherTokenizer"), UnsupportedError, "vocab.json but no tokenizer"),
    (lambda folder: (folder / "merges.txt").unlink(), UnsupportedError, "save it as a fast one"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_what_is_refused(
    change: Callable[[Path], None], error: type[QuantcliError], message: str, tmp_path: Path
) -> None:
    CASES["qwen2-two-files"].write(tmp_path)
    change(tmp_path)
    with pytest.raises(error) as found:
        read_tokenizer(FolderSource(tmp_path), 512)
    assert re.search(message, str(found.value))
    assert "\n" not in str(found.value)


def test_a_sentencepiece_model_goes_first(tmp_path: Path) -> None:
    """As with the converter, which looks for it before anything else."""
    CASES["qwen2-two-files"].write(tmp_path)
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.json").unlink()
    assert read_tokenizer(FolderSource(tmp_path), 641)[f"{GGML}.model"] == "llama"
    with pytest.raises(UsageError, match="--pre-tokenizer is for byte-level BPE"):
        read_tokenizer(FolderSource(tmp_path), 641, "gpt-2")
