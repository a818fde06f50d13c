"""Rebuild the small tokenizers under tests/data/tokenizer/<style>/ from text.txt.

    python scripts/record/tokenizer_fixtures.py [STYLE...]

Needs `tokenizers`, `transformers` and `sentencepiece` (with protobuf). The result is stored, not
rebuilt by the tests: trainers change between versions, and a stored vocabulary does not.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

DATA = Path(__file__).parents[2] / "tests" / "data" / "tokenizer"
TEXT = DATA / "text.txt"

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] "
    "+ '<end_of_turn>\n' }}{% endfor %}"
)

ROLES = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def plain(content: str) -> AddedToken:
    return AddedToken(content, special=False, normalized=False)


def train_byte_level(tokenizer: Tokenizer, size: int, specials: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=specials or [],
        show_progress=False,
    )
    tokenizer.train([str(TEXT)], trainer)
    tokenizer.decoder = decoders.ByteLevel()


def write(style: str, tokenizer: Tokenizer, files: dict[str, object]) -> None:
    folder = DATA / style
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": json.loads(tokenizer.to_str()), **files}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text + "\n" if name.endswith(".json") else text, encoding="utf-8")


def llama3() -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, 504)
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "start_header_id"]
    names += ["end_header_id", "eot_id", "python_tag", "finetune_right_pad_id"]
    tokenizer.add_tokens([special(f"<|{name}|>") for name in names])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", bos)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "chat_template": HEADERS,
    }
    write("llama3", tokenizer, {"tokenizer_config.json": config})


def qwen2() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, 490)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.add_tokens([special(f"<|{n}|>") for n in ("endoftext", "im_start", "im_end")])
    names = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    tokenizer.add_tokens([plain(name) for name in names])
    # Names that llama.cpp's converter changes: written as bytes, or with a marked space.
    tokenizer.add_tokens([plain("Ġ<bytes>"), AddedToken("<▁marked>", normalized=True)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    templates = {"chat_template.jinja": CHATML, "additional_chat_templates/tool-use.jinja": CHATML}
    write("qwen2", tokenizer, {"tokenizer_config.json": config, **templates})


def gpt2() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    train_byte_level(tokenizer, 448, ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, **end}
    template = {"chat_template": CHATML}
    files = {"tokenizer_config.json": config, "special_tokens_map.json": end}
    write("gpt2", tokenizer, {**files, "chat_template.json": template})


def train_sentencepiece(
    style: str, lines: list[str], size: int, **options: object
) -> proto.ModelProto:
    folder = DATA / style
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.vocab").unlink()
    model = proto.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    return model


def from_sentencepiece(model: proto.ModelProto, unk: str, rename: dict[str, str]) -> Tokenizer:
    """The conversion of a SentencePiece BPE model that transformers' `SpmConverter` performs."""
    vocab = {rename.get(p.piece, p.piece): i for i, p in enumerate(model.pieces)}
    ranked = []
    for piece in model.pieces:
        halves = [(piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece))]
        pairs = [(a, b) for a, b in halves if a in vocab and b in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ranked += [(piece.score, pair) for pair in pairs]
    ranked.sort(key=lambda item: (item[0], len(item[1][0]), len(item[1][1])), reverse=True)
    merges = [pair for _, pair in ranked]
    return Tokenizer(models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))


def add_bos(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def added_tokens_decoder(tokenizer: Tokenizer) -> dict[str, object]:
    added = json.loads(tokenizer.to_str())["added_tokens"]
    return {str(token.pop("id")): token for token in added}


def llama2() -> None:
    model = train_sentencepiece("llama2", TEXT.read_text("utf-8").splitlines(), 640)
    tokenizer = from_sentencepiece(model, "<unk>", {})
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    tokenizer.add_tokens([special(t) for t in ("<unk>", "<s>", "</s>", "<pad>")])
    add_bos(tokenizer, "<s>")
    templates = [{"name": "default", "template": INST}, {"name": "rag", "template": INST}]
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added_tokens_decoder(tokenizer),
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "legacy": True,
        "chat_template": templates,
    }
    write("llama2", tokenizer, {"tokenizer_config.json": config})


def gemma() -> None:
    symbols = ["<mask>", *(f"<unused{i}>" for i in range(4)), "<start_of_turn>", "<end_of_turn>"]
    symbols += ["\n" * n for n in range(1, 5)] + ["▁" * n for n in range(2, 9)] + ["<table>"]
    # The original has no tab piece: its conversion gives the tab the id of the byte <0x09>.
    lines = TEXT.read_text("utf-8").replace("\t", "    ").splitlines()
    model = train_sentencepiece(
        "gemma",
        lines,
        680,
        add_dummy_prefix=False,
        user_defined_symbols=symbols,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
    )
    tokenizer = from_sentencepiece(model, "<unk>", {"<0x09>": "\t"})
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(undo)
    turns = ("<start_of_turn>", "<end_of_turn>")
    tokenizer.add_tokens([special(t) for t in ("<pad>", "<eos>", "<bos>", "<unk>", *turns)])
    tokenizer.add_tokens([plain(t) for t in symbols if t not in turns])
    add_bos(tokenizer, "<bos>")
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added_tokens_decoder(tokenizer),
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
        "chat_template": TURNS,
    }
    write("gemma", tokenizer, {"tokenizer_config.json": config})


def gemma4() -> None:
    """Gemma's vocabulary under the names and the files of Gemma 4: no model file, no BOS."""
    names = {"<start_of_turn>": "<|turn>", "<end_of_turn>": "<turn|>", "<unused0>": "<|channel>"}
    names |= {"<unused1>": "<channel|>", "<unused2>": "<|tool_call>", "<unused3>": "<|video|>"}
    document = json.loads((DATA / "gemma/tokenizer.json").read_text("utf-8"))
    vocab = document["model"]["vocab"]
    document["model"]["vocab"] = {names.get(text, text): i for text, i in vocab.items()}
    special = {*names.values(), "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"}
    added = [
        {**one, "content": names.get(one["content"], one["content"])}
        for one in document["added_tokens"]
    ]
    kept = [{**one, "special": True} for one in added if one["content"] in special]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    beyond = (("<|image|>", True), ("<more>", False))
    kept += [
        {"id": len(vocab) + i, "content": text, "special": named, **flags}
        for i, (text, named) in enumerate(beyond)
    ]
    document |= {"added_tokens": kept, "post_processor": None}
    config = {
        "backend": "tokenizers",
        "tokenizer_class": "GemmaTokenizer",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")},
        "image_token": "<|image|>",
        "sot_token": "<|turn>",
        "eot_token": "<turn|>",
        "soc_token": "<|channel>",
        "eoc_token": "<channel|>",
        "stc_token": "<|tool_call>",
        "extra_special_tokens": ["<|video|>"],
        "chat_template": TURNS,
    }
    write("gemma4", Tokenizer.from_str(json.dumps(document)), {"tokenizer_config.json": config})


def bert() -> None:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=410, special_tokens=specials, limit_alphabet=120, show_progress=False
    )
    tokenizer.train([str(TEXT)], trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_tokens([plain("<gold>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    config: dict[str, object] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    names = ("pad", "unk", "cls", "sep", "mask")
    config |= {f"{name}_token": f"[{name.upper()}]" for name in names}
    write("bert", tokenizer, {"tokenizer_config.json": config})


def train_unigram() -> tuple[bytes, proto.ModelProto]:
    """A Unigram model with a small character map; the usual one has 240 KB."""
    rules = {"\t": " ", "\n": " ", "\r": " ", "\u3000": " ", "\u00a0": " ", "ﬁ": "fi", "Ａ": "A"}
    rules |= {"ﬀ": "ff", "①": "1", "\u200b": " ", "e\u0301": "\u00e9"}
    lines = [
        " ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target)
        for source, target in sorted(rules.items())
    ]
    with tempfile.TemporaryDirectory() as scratch:
        tsv = Path(scratch) / "rules.tsv"
        tsv.write_text("\n".join(lines) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.read_text("utf-8").splitlines()),
            model_prefix=f"{scratch}/m",
            model_type="unigram",
            vocab_size=400,
            character_coverage=0.98,
            normalization_rule_tsv=str(tsv),
            num_threads=1,
            minloglevel=2,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
        )
        data = Path(f"{scratch}/m.model").read_bytes()
    model = proto.ModelProto()
    model.ParseFromString(data)
    return data, model


def end_with(tokenizer: Tokenizer, single: str, names: tuple[str, ...]) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in names],
    )


def t5() -> None:
    data, model = train_unigram()
    vocab = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    charsmap = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    strip = normalizers.Strip(left=False, right=True)
    steps = [charsmap, strip, normalizers.Replace(Regex(" {2,}"), "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_tokens([special(t) for t in ("<pad>", "</s>", "<unk>")])
    tokenizer.add_tokens([special(f"<extra_id_{i}>") for i in reversed(range(4))])
    end_with(tokenizer, "$A </s>", ("</s>",))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "added_tokens_decoder": added_tokens_decoder(tokenizer),
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 4,
    }
    write("t5", tokenizer, {"tokenizer_config.json": config})
    (DATA / "t5" / "spiece.model").write_bytes(data)


def xlmr() -> None:
    _, model = train_unigram()
    first = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    rest = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    tokenizer = Tokenizer(models.Unigram([*first, *rest, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_tokens([special(name) for name, _ in first])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    end_with(tokenizer, "<s> $A </s>", ("<s>", "</s>"))
    config = {"tokenizer_class": "XLMRobertaTokenizer", "cls_token": "<s>", "sep_token": "</s>"}
    config |= {f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")}
    config |= {"bos_token": "<s>", "eos_token": "</s>"}
    write("xlmr", tokenizer, {"tokenizer_config.json": config})


def ranks(style: str, name: str, config: dict[str, object]) -> None:
    """The vocabulary of qwen2 as a list of ranks."""
    document = json.loads((DATA / "qwen2" / "tokenizer.json").read_text("utf-8"))
    bytes_of = {char: byte for byte, char in bytes_to_unicode().items()}
    tokens = {bytes(map(bytes_of.__getitem__, t)): i for t, i in document["model"]["vocab"].items()}
    lines = [
        f"{base64.b64encode(t).decode()} {i}\n"
        for t, i in sorted(tokens.items(), key=lambda x: x[1])
    ]
    (DATA / style).mkdir(exist_ok=True)
    (DATA / style / name).write_text("".join(lines))
    (DATA / style / "tokenizer_config.json").write_text(json.dumps(config) + "\n")


def qwen1() -> None:
    code = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    config = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer", "auto_map": code}
    ranks("qwen1", "qwen.tiktoken", config)


def kimi() -> None:
    names = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>"]
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "added_tokens_decoder": {
            str(490 + i): {"content": name, "special": True} for i, name in enumerate(names)
        },
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
    }
    ranks("kimi", "tiktoken.model", config)


def glm() -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, 436)
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    names += [f"<|{role}|>" for role in ("system", "user", "assistant", "observation")]
    tokenizer.add_tokens([special(name) for name in names])
    first = ("[gMASK]", "<sop>")
    template = processors.TemplateProcessing(
        single="[gMASK]:0 <sop>:0 $A:0",
        pair="[gMASK]:0 <sop>:0 $A:0 $B:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in first],
    )
    processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([processor, template])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added_tokens_decoder(tokenizer),
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": ROLES,
    }
    write("glm", tokenizer, {"tokenizer_config.json": config})


def internlm2() -> None:
    """A model file with pieces that wait for a use, and what a chat model makes of them."""
    spare = [f"[UNUSED_TOKEN_{i}]" for i in range(6)]
    lines = TEXT.read_text("utf-8").splitlines()
    model = train_sentencepiece("internlm2", lines, 640, user_defined_symbols=["<nul>", *spare])
    for piece in model.pieces:  # the trainer takes no such symbol
        piece.piece = "\0" if piece.piece == "<nul>" else piece.piece
    folder = DATA / "internlm2"
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    start = next(i for i, piece in enumerate(model.pieces) if piece.piece == spare[0])
    names = {0: "<unk>", 1: "<s>", 2: "</s>", start + 2: "<|im_start|>", start + 3: "<|im_end|>"}
    added: dict[str, object] = {
        str(i): {"content": name, "special": True} for i, name in names.items()
    }
    added[str(start + 4)] = {"content": "<|tool▁use|>", "special": False}
    code = ["tokenization_internlm2.InternLM2Tokenizer", None]
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": code},
        "added_tokens_decoder": added,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False) + "\n")


BUILDERS = (llama3, qwen2, gpt2, llama2, gemma, gemma4, bert, t5, xlmr, qwen1, kimi, glm, internlm2)

if __name__ == "__main__":
    wanted = sys.argv[1:]
    for build in [build for build in BUILDERS if not wanted or build.__name__ in wanted]:
        build()
