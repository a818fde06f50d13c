"""Stock llama.cpp turns text into the same ids through our metadata as `tokenizers` does."""

import json
import re
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_tokenizers import CASES, DATA, STYLES, VOCAB_SIZE, edit, text, write_tokenizer
from tokenizer_source import FolderSource
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.pre_tokenizer import CHECK_TEXT, CONTRACTIONS, regexes, table
from quantcli.tokenizer.sentencepiece import NAMES

pytestmark = pytest.mark.runtime
xllamacpp = pytest.importorskip("xllamacpp")

WIDTH = 32
SENTENCEPIECE = json.loads((DATA / "sentencepiece.json").read_text("utf-8"))["ids"]
MORE = "\n".join(
    [
        "    indented\n\t\ttabs  and \t mixed \n\n\n\n  blank lines\r\nand\r\rreturns",
        "\u00a0no break \u3000wide",
        "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F ١٢٣ १२३ Ⅷ ½",
        "ΑΒΓαβγ ÀÉÎõü ДЖдж ǅ ﬁ HTTPServer iPhone's THEY'LL we'VE it'S Don'T ''s 'x",
        "naïve café 中文字符，标点。「日本語」カタカナ 한국어 ภาษาไทย हिन्दी বাংলা עִבְרִית العَرَبِيَّة",
        "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳 a\u200bb\ufeffc",
        "----==== /// ... !?!? ((())) [[x]] {{y}} <<z>> __init__ $1.00 ~^`|\\",
    ]
)


def write_model(path: Path, metadata: dict[str, Any], n_vocab: int) -> None:
    """A llama of zeros with the given tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case np.uint32():
                writer.add_uint32(key, int(value))
            case np.ndarray(dtype=np.uint8):
                writer.add_array(key, value.tobytes())
            case _:
                writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
    shapes = {"token_embd": (n_vocab, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (WIDTH, WIDTH) for name in names}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_cpp(
    folder: Path, n_vocab: int, pre_tokenizer: str | None = None, **extra: Any
) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenization with the tokenizer in `folder`, BOS included."""
    metadata = read_tokenizer(FolderSource(folder), n_vocab, pre_tokenizer) | extra
    templates = [key for key in metadata if "chat_template" in key]
    for key in templates:
        del metadata[key]
    write_model(folder / "model.gguf", metadata, n_vocab)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
    server = xllamacpp.Server(params)

    def tokenize(content: str) -> list[int]:
        body = {"content": content, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["tokens"]

    yield tokenize


MARKS = "".join(chr(c) for c in range(0x110000) if unicodedata.category(chr(c))[0] == "M")
# BERT's accents: llama.cpp drops every mark and leaves Hangul whole.
UNLIKE = re.compile(f"[{MARKS}\uac00-\ud7a3]")


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_styles(style: str, with_model: bool, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, style)
    if not with_model:
        for name in NAMES:
            (tmp_path / name).unlink(missing_ok=True)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    extra = {"tokenizer.ggml.add_space_prefix": False} if style == "gemma" else {}
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    specials = "".join(
        f"{token}word" for token in added if "<" in token and not {"Ġ", "▁"} & set(token)
    )
    with llama_cpp(tmp_path, VOCAB_SIZE[style], **extra) as tokenize:
        # llama.cpp does not normalize: it is on its own with decomposed characters.
        for sample in (text(), CHECK_TEXT, MORE, specials):
            sample = unicodedata.normalize("NFC", sample) if style == "qwen2" else sample
            sample = UNLIKE.sub("", sample) if style == "bert" else sample
            assert tokenize(sample) == reference.encode(sample).ids


def test_gemma4(tmp_path: Path) -> None:
    CASES["gemma4"].write(tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with llama_cpp(tmp_path, VOCAB_SIZE["gemma4"]) as tokenize:
        for sample in (text(), CHECK_TEXT, MORE, "a<|turn>b<turn|>\n<|channel>c<|image|>"):
            assert tokenize(sample)[1:] == reference.encode(sample).ids


@pytest.mark.parametrize(("style", "name"), [("qwen1", "qwen2"), ("kimi", "kimi-k2")])
def test_ranks(style: str, name: str, tmp_path: Path) -> None:
    """The ranks are those of the qwen2 tokenizer: its ids are the reference."""
    write_tokenizer(tmp_path, style)
    document = json.loads((DATA / "qwen2" / "tokenizer.json").read_text(encoding="utf-8"))
    reference = Tokenizer.from_str(json.dumps({**document, "normalizer": None, "added_tokens": []}))
    reference.pre_tokenizer = pre_tokenizer(regexes(name).steps)
    with llama_cpp(tmp_path, VOCAB_SIZE[style], name) as tokenize:
        for sample in (text(), CHECK_TEXT, MORE):
            sample = re.sub(f"[{MARKS}]", "", sample) if style == "kimi" else sample
            assert tokenize(sample) == reference.encode(sample).ids
        assert tokenize("a<|im_end|>")[-1] == 492


@pytest.mark.parametrize("style", ["llama2", "gemma", "t5"])
def test_a_sentencepiece_model_alone(style: str, tmp_path: Path) -> None:
    """Against the ids that the library gave."""
    write_tokenizer(tmp_path, style)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()
    with llama_cpp(tmp_path, VOCAB_SIZE[style]) as tokenize:
        for sample, expected in SENTENCEPIECE[style]:
            ids = tokenize(sample)
            assert (ids[:-1] if style == "t5" else ids[1:]) == expected, sample


@pytest.fixture(scope="module")
def unsplit() -> dict[str, Any]:
    """tokenizer.json whose merges run across any border that a pre-tokenizer may draw."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    samples = (text(), CHECK_TEXT, MORE)
    pieces = [sample[i : i + 40] for sample in samples for i in range(0, len(sample), 10)]
    tokenizer.train_from_iterator(pieces, trainer)
    return json.loads(tokenizer.to_str())


def pre_tokenizer(steps: list[str]) -> pre_tokenizers.PreTokenizer:
    """The steps of the table as a repository has them."""
    found: list[pre_tokenizers.PreTokenizer] = []
    bytes_done = False
    for step in steps:
        if step == "{words}":
            found.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
            bytes_done = True
        elif step in (r"\p{N}", r"\p{N}+"):
            found.append(pre_tokenizers.Digits(individual_digits=step == r"\p{N}"))
        else:
            regex = step.replace("{contractions}", CONTRACTIONS[0])
            found.append(pre_tokenizers.Split(Regex(regex), "isolated"))
    if not bytes_done:
        found.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(found)


# Characters that llama.cpp itself treats otherwise under a name, whoever names it.
LIMITS = {
    "kimi-k2": re.compile(rf"[{MARKS}]|(?<=[^\W\d_])[A-Z]"),
    "tekken": re.compile(f"[{MARKS}]"),
    "gpt-4o": re.compile(f"[{MARKS}]"),
    "deepseek-coder": re.compile("\u3000"),
}


@pytest.mark.parametrize("split", table().splits, ids=lambda split: split.name)
def test_names_by_splitting_steps(split: Any, unsplit: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(unsplit))
    tokenizer.pre_tokenizer = pre_tokenizer(split.steps)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    edit(file, lambda document: document["model"].update(ignore_merges=split.ignore_merges))
    reference = Tokenizer.from_file(str(file))
    n_vocab = reference.get_vocab_size()
    source = FolderSource(tmp_path)
    assert read_tokenizer(source, n_vocab)["tokenizer.ggml.pre"] == split.name
    with llama_cpp(tmp_path, n_vocab) as tokenize:
        for sample in (text(), CHECK_TEXT, MORE, *re.findall(r"\S+\s+\S+", text() + MORE)):
            sample = LIMITS.get(split.name, re.compile("$^")).sub("", sample)
            assert tokenize(sample) == reference.encode(sample).ids, sample
