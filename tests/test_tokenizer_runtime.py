"""Stock llama.cpp turns text into the same ids through our metadata as `tokenizers` does."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_tokenizer import llama_cpp
from real_tokenizers import FAMILIES, samples_of, write_real
from tiny_tokenizers import CASES, DATA, STYLES, VOCAB_SIZE, edit, text, write_tokenizer
from tokenizer_samples import MORE
from tokenizer_source import FolderSource
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from quantcli.tokenizer import read_tokenizer
from quantcli.tokenizer.pre_tokenizer import CHECK_TEXT, CONTRACTIONS, regexes, table
from quantcli.tokenizer.sentencepiece import NAMES

pytestmark = pytest.mark.runtime
SENTENCEPIECE = json.loads((DATA / "sentencepiece.json").read_text("utf-8"))["ids"]
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


def test_a_unigram_model_of_a_decoder(tmp_path: Path) -> None:
    """Its converter would have llama.cpp merge pieces, which tears words apart."""
    (tmp_path / "tokenizer.model").write_bytes((DATA / "t5" / "spiece.model").read_bytes())
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with llama_cpp(tmp_path, VOCAB_SIZE["t5"]) as tokenize:
        for sample, expected in SENTENCEPIECE["t5"]:
            assert tokenize(sample) == expected, sample


def test_internlm2(tmp_path: Path) -> None:
    """Against the ids that the library gave."""
    CASES["internlm2"].write(tmp_path)
    with llama_cpp(tmp_path, VOCAB_SIZE["internlm2"]) as tokenize:
        for sample, expected in SENTENCEPIECE["internlm2"]:
            assert tokenize(sample)[1:] == expected, sample
        assert tokenize("a<|im_end|>")[-1] == 7


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
    "deepseek-llm": re.compile("\u3000"),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Recorded with the whole files; here with what is left of them."""
    write_real(tmp_path, family)
    found = FAMILIES[family]
    with llama_cpp(tmp_path, len(found["kept"])) as tokenize:
        for i, (sample, ids) in enumerate(zip(samples_of(family), found["ids"], strict=True)):
            if i not in found["unlike"]:
                assert tokenize(sample) == ids, sample
