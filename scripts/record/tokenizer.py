"""Record what llama.cpp's own converter writes for the tokenizers of the tests.

    python scripts/record/tokenizer.py LLAMA_CPP_FOLDER

Needs the converter's requirements (torch, transformers, sentencepiece). Writes
tests/data/tokenizer/converter.json: case -> GGUF key -> [value type, value], arrays with the type
of their items, bytes as a text of characters below 256; and style -> fingerprint of those that
have one. The converter refuses fingerprints it does not know, so the name of the pre-tokenizer is
given to it; nor is any repository's code run: a stand-in has what such code would read from the
file with the ranks. The names of chat templates are sorted: the converter has them in a set.
"""

import json
import sys
import tempfile
from base64 import b64decode
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
PRE_TOKENIZERS = {"llama3": "llama-bpe", "qwen2": "qwen2", "gpt2": "gpt-2"}
PRE_TOKENIZERS |= {"bert": "default", "qwen1": "qwen2", "kimi": "kimi-k2", "glm": "llama-bpe"}


def main(llama_cpp: Path) -> None:
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py"), str(ROOT / "tests")]
    import gguf
    from conversion import base, get_model_class
    from tiny_tokenizers import CASES, DATA, Case

    fingerprints: dict[str, str] = {}

    def record(name_of: str, case: Case) -> dict[str, list[object]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            case.write(folder)
            model_class = get_model_class(case.architecture)
            model = model_class(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf")
            original = model.get_vocab_base_pre

            def fingerprint(tokenizer: object) -> str:
                if case.style in ("qwen1", "kimi"):
                    return PRE_TOKENIZERS[case.style]
                with suppress(NotImplementedError), patch.object(base, "sha256") as digest:
                    digest.side_effect = lambda data: SimpleNamespace(
                        hexdigest=lambda: fingerprints.setdefault(name_of, sha256(data).hexdigest())
                    )
                    original(tokenizer)
                return PRE_TOKENIZERS[case.style]

            model.get_vocab_base_pre = fingerprint
            with code_of(case, folder):
                model.set_vocab()
            return {
                key: [
                    kind(field),
                    sorted(field.value) if key.endswith("templates") else plain(field.value),
                ]
                for fields in model.gguf_writer.kv_data
                for key, field in fields.items()
                if key.startswith("tokenizer.")
            }

    def code_of(case: Case, folder: Path) -> AbstractContextManager[object]:
        """What the converter asks of a tokenizer that only its repository's code can read."""
        file = next(folder.glob("*tiktoken*"), None)
        if file is None:
            return nullcontext()
        lines = [line.split() for line in file.read_bytes().splitlines()]
        ranks = {b64decode(token): int(rank) for token, rank in lines}
        named = json.loads((folder / "tokenizer_config.json").read_text())
        if case.style == "qwen1":
            names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            names += [f"<|extra_{i}|>" for i in range(205)]
        else:
            described = named["added_tokens_decoder"]
            names = [
                described.get(str(i), {}).get("content", f"<|reserved_token_{i}|>")
                for i in range(len(ranks), len(ranks) + 256)
            ]
        special = {name: len(ranks) + i for i, name in enumerate(names)}
        stand_in = SimpleNamespace(
            mergeable_ranks=ranks,
            special_tokens=special,
            model=SimpleNamespace(_mergeable_ranks=ranks),
            get_vocab=lambda: ranks | special,
            encode=lambda text: [0],
        )
        import transformers

        return patch.object(
            transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: stand_in
        )

    def kind(field: gguf.gguf_writer.GGUFValue) -> str:
        if isinstance(field.value, bytes):
            return "UINT8"
        if field.type is gguf.GGUFValueType.ARRAY:
            return gguf.GGUFValueType.get_type(field.value[0]).name
        return field.type.name

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return value.decode("latin-1" if b"\0" in value else "utf-8")
        return [plain(item) for item in value] if isinstance(value, list) else value

    packages = ("torch", "transformers", "tokenizers", "sentencepiece")
    made_with = {package: version(package) for package in packages}
    result = {
        "made_with": {
            "script": "scripts/record/tokenizer.py",
            "converter": llama_cpp.parent.parent.name,
            **made_with,
        },
        "cases": {name: record(name, case) for name, case in CASES.items()},
        "fingerprints": fingerprints,
    }
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    (DATA / "converter.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
