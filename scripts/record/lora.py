"""Record what PEFT and llama.cpp make of every tiny adapter of tests/tiny_adapters.py.

    python -m pip install torch transformers sentencepiece peft
    python scripts/record/lora.py llama.cpp/convert_lora_to_gguf.py [tests/data/lora]

logits.npz: PEFT's logits with the adapter on its base and without, weights in float32, attention
"eager", of the tokens KEPT of one prompt of fixed ids. <adapter>.json: metadata and tensors of the
converter's files, where it converts what PEFT computes: it knows neither rsLoRA nor patterns.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]
from peft import PeftModel  # type: ignore[import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
CONVERTER = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import converter  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from tiny_adapters import (  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
    ADAPTERS,
    build_adapter,
)
from tiny_models import build  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

N_TOKENS = 80
KEPT = (0, 1, 40, 79)
CONVERTED = ("llama", "llama-embedding", "mistral-bf16")
OUT_TYPES = ("f32", "f16", "bf16", "q8_0")


def main() -> None:
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "tests/data/lora"
    target.mkdir(parents=True, exist_ok=True)
    versions = converter.versions() | {"peft": converter.importlib.metadata.version("peft")}
    arrays: dict[str, np.ndarray] = {}
    for name, spec in ADAPTERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            base = build(Path(scratch) / f"{spec.family}-{spec.variant}", spec.family, spec.variant)
            adapter = build_adapter(Path(scratch) / f"tiny-{name}", name)
            arrays |= logits(name, base, adapter)
            if name in CONVERTED:
                record: dict[str, Any] = {
                    "made_by": "scripts/record/lora.py",
                    "command": f"convert_lora_to_gguf.py --base {base.name} {adapter.name}"
                    " --outfile X.gguf --outtype T",
                    "versions": versions,
                }
                for out_type in OUT_TYPES:
                    record[out_type] = converted(base, adapter, out_type)
                (target / f"{name}.json").write_text(converter.compact(record, OUT_TYPES))
        print(name)
    np.savez_compressed(target / "logits.npz", **arrays)  # type: ignore[arg-type, unused-ignore]
    about = {
        "made_by": "scripts/record/lora.py",
        "kept_tokens": KEPT,
        "compute": "PEFT on transformers, float32, CPU, attn_implementation=eager",
        "versions": versions,
    }
    (target / "logits.json").write_text(json.dumps(about, indent=2) + "\n")


def logits(name: str, base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Ids, logits of some of them, and those of the base without the adapter."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = np.arange(N_TOKENS) * 7919 % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        plain = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval().float()
        found = adapted(torch.from_numpy(ids)[None]).logits[0].numpy()
    return {
        f"{name}/ids": ids.astype(np.int32),
        f"{name}/rows": found[list(KEPT)],
        f"{name}/base": plain[list(KEPT)],
    }


def converted(base: Path, adapter: Path, out_type: str) -> dict[str, Any]:
    """What is in the converter's file."""
    output = adapter.parent / f"{out_type}.gguf"
    command = [sys.executable, str(CONVERTER), "--base", str(base), str(adapter)]
    options = ["--outfile", str(output), "--outtype", out_type]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return converter.contents(output)


if __name__ == "__main__":
    main()
