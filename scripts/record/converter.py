"""Record what llama.cpp's own converter makes of every tiny checkpoint of tests/tiny_models.py and
tests/tiny_encoders.py.

    python -m pip install torch transformers sentencepiece gguf
    python scripts/record/converter.py llama.cpp/convert_hf_to_gguf.py [folder [family ...]]

The folder is tests/data/architectures unless told, the families are all.

One file per variant: the sha256 of every input file, all metadata and all tensors (numpy shape,
type and sha256 of the bytes) of the F32 and the BF16 output. An array of more than 16 values is
kept as its length, its first values and the sha256 of its JSON text (no spaces, ASCII only).

The tiny tokenizers have no hash that the converter knows, and it dies on those. Where it does, the
pre-tokenizer name is supplied from outside and the record says so.
"""

import hashlib
import importlib.metadata
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CONVERTER = Path(sys.argv[1]).resolve()
# The converter's folder holds the packages that it imports, its own version of gguf among them.
sys.path[:0] = [str(ROOT / "tests"), str(CONVERTER.parent), str(CONVERTER.parent / "gguf-py")]

import convert_hf_to_gguf  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
import gguf  # noqa: E402
import transformers  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from conversion.base import ModelBase, TextModel  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from tiny_encoders import ENCODERS, build_encoder  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from tiny_models import VARIANTS, build  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

PRE_TOKENIZERS = {"llama3": "llama-bpe", "qwen2": "qwen2", "gpt2": "gpt-2", "glm": "llama-bpe"}
PRE_TOKENIZERS |= {"bert": "default"}
# Families of which the converter reads a key that this version of transformers renames, or fills
# in (Falcon's num_kv_heads): it gets config.json as it is, as it does for classes that transformers
# does not know.
RAW_CONFIGS = ("gpt_neox", "exaone", "falcon", "nomic_bert")
OUT_TYPES = ("f32", "bf16")
PACKAGES = ("numpy", "sentencepiece", "tokenizers", "torch", "transformers")


def main() -> None:
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "tests/data/architectures"
    target.mkdir(parents=True, exist_ok=True)
    for (family, variant), spec in {**VARIANTS, **ENCODERS}.items():
        if sys.argv[3:] and family not in sys.argv[3:]:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            write = build_encoder if (family, variant) in ENCODERS else build
            folder = write(Path(scratch) / f"{family}-{variant}", family, variant)
            record: dict[str, Any] = {
                "made_by": "scripts/record/converter.py",
                "command": f"convert_hf_to_gguf.py {folder.name} --outfile X.gguf --outtype T",
                "versions": versions(),
                "raw_config": family in RAW_CONFIGS,
                "pre_tokenizer": pre_tokenizer(spec.tokenizer),
                "source": {
                    str(path.relative_to(folder)): digest(path.read_bytes())
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                },
            }
            for out_type in OUT_TYPES:
                output = Path(scratch) / f"{out_type}.gguf"
                convert(folder, output, out_type, record["pre_tokenizer"], record["raw_config"])
                record[out_type] = contents(output)
        (target / f"{family}-{variant}.json").write_text(compact(record))
        print(family, variant, len(record["f32"]["tensors"]), "tensors")


def convert(folder: Path, output: Path, out_type: str, pre: str | None, raw: bool) -> None:
    """Run the converter in a forked process: it keeps state in class attributes."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("config.json is to be read as it is")

    load = TextModel.load_hparams

    def load_raw(*arguments: Any) -> Any:
        with mock.patch.object(transformers.AutoConfig, "from_pretrained", refuse):
            return load(*arguments)

    def run() -> None:
        if raw:
            ModelBase.load_hparams = staticmethod(load_raw)
        if pre is not None:
            TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
        sys.argv = ["convert", str(folder), "--outfile", str(output), "--outtype", out_type]
        convert_hf_to_gguf.main()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    if process.exitcode != 0 or not output.is_file():
        sys.exit(f"converter failed on {folder.name}")


def pre_tokenizer(style: str) -> str | None:
    """Name to supply; SentencePiece-style tokenizers need none."""
    return PRE_TOKENIZERS.get(style)


def contents(path: Path) -> dict[str, Any]:
    """Metadata {key: [type, value]} and tensors {name: [type, shape, sha256]} in file order."""
    reader = gguf.GGUFReader(path)
    metadata = {
        field.name: [type_name(field), shortened(field.contents())]
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(n) for n in reversed(tensor.shape)],
            digest(tensor.data.tobytes()),
        ]
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def type_name(field: gguf.ReaderField) -> str:
    return " ".join(kind.name for kind in field.types)


def shortened(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list) or len(value) <= 16:
        return value
    text = json.dumps(value, separators=(",", ":"))
    return {"length": len(value), "first": value[:8], "sha256": digest(text.encode())}


def versions() -> dict[str, str]:
    command = ["git", "-C", str(CONVERTER.parent), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "llama.cpp": commit or "unknown",
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def compact(record: dict[str, Any], out_types: tuple[str, ...] = OUT_TYPES) -> str:
    """JSON with one line per key and tensor."""
    lines = []
    for key, value in record.items():
        if key not in out_types:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
            continue
        parts = []
        for part, entries in value.items():
            rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
            parts.append(f"{json.dumps(part)}: {{\n{rows}\n}}")
        lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(parts) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
