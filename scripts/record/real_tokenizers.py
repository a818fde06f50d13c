"""Record the structure of tokenizers that people have, without their vocabularies.

    python scripts/record/real_tokenizers.py FOLDER

FOLDER/sources.json: family -> {"repository", "commit", "path"} of a public GitHub repository;
FOLDER/<family>/: that file as tokenizer.json, qwen.tiktoken or tiktoken.model, and the
tokenizer_config.json beside it. Writes tests/data/tokenizer/real.json: family -> where the file is
from, its SHA-256, its size, its parts but for the vocabulary, and the fingerprint of the check text
(computed here with the `tokenizers` library alone, special tokens included).
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_tokenizers import DATA  # noqa: E402
from tokenizer_source import FolderSource  # noqa: E402

from quantcli.tokenizer.encoder import build_encoder  # noqa: E402
from quantcli.tokenizer.pre_tokenizer import CHECK_TEXT  # noqa: E402
from quantcli.tokenizer.tiktoken import find_tiktoken, read_tiktoken  # noqa: E402

KEPT_ADDED = 6


def main(folder: Path) -> None:
    sources = json.loads((folder / "sources.json").read_text("utf-8"))
    families = {name: record(folder / name) | {"source": sources[name]} for name in sources}
    made_with = {"script": "scripts/record/real_tokenizers.py", "tokenizers": version("tokenizers")}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}"
        for name, found in sorted(families.items())
    )
    text = f'{{"made_with": {json.dumps(made_with)},\n"families": {{\n{lines}\n}}}}\n'
    (DATA / "real.json").write_text(text, encoding="utf-8")


def record(folder: Path) -> dict[str, Any]:
    source = FolderSource(folder)
    if (ranks := find_tiktoken(source)) is not None and "tokenizer.json" not in source.source_files:
        config = json.loads(source.file("tokenizer_config.json") or b"{}")
        bpe = read_tiktoken(source, ranks, config)
        encoder = build_encoder(bpe)
        assert encoder is not None
        found = {"file": ranks, "tokens": len(bpe.vocab), "merges": len(bpe.merges)}
        ids = encoder.encode(CHECK_TEXT, add_special_tokens=False).ids
        return {**found, **digests(folder / ranks, ids)}
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = document["model"]
    kind = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    structure = {
        key: document.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")
    }
    without_charsmap(structure)
    return {
        "file": "tokenizer.json",
        "tokens": len(model["vocab"]),
        "merges": len(model.get("merges") or []),
        "added": len(document["added_tokens"]),
        "added_first": document["added_tokens"][:KEPT_ADDED],
        "model": kind,
        **structure,
        **digests(file, tokenizer.encode(CHECK_TEXT).ids),
    }


def without_charsmap(part: Any) -> None:
    """240 KB of characters stay out."""
    if isinstance(part, dict):
        part.pop("precompiled_charsmap", None)
    for value in (
        part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    ):
        without_charsmap(value)


def digests(file: Path, ids: list[int]) -> dict[str, str]:
    return {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "fingerprint": hashlib.sha256(str(ids).encode()).hexdigest(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
