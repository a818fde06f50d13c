"""Record transformers' float32 logits for every tiny checkpoint of tests/tiny_models.py.

    python -m pip install torch transformers
    python scripts/record/logits.py [tests/data/transformer [family ...]]

Families that are named get a file of their own, logits-<family>.npz, the others are in logits.npz.
One prompt of fixed token ids per variant, weights converted to float32, attention "eager". What is
kept of the logits: every value of the tokens in KEPT, as float32; and of every token its largest
magnitude and its sum of magnitudes, so that no value can be far off anywhere.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_models import VARIANTS, build  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

N_TOKENS = 80  # more than the sliding windows of 64
KEPT = (0, 1, 40, 63, 64, 65, 79)
PACKAGES = ("numpy", "torch", "transformers")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data/transformer"
    target.mkdir(parents=True, exist_ok=True)
    named = sys.argv[2:]
    files: dict[str, dict[str, np.ndarray]] = {}
    for family, variant in VARIANTS:
        own = (target / f"logits-{family}.npz").exists()
        if family not in named and (named or own):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = build(Path(scratch) / f"{family}-{variant}", family, variant)
            file = f"logits-{family}.npz" if family in named else "logits.npz"
            files[file] = files.get(file, {}) | record(folder)
        print(family, variant)
    for file, arrays in files.items():
        np.savez_compressed(target / file, **arrays)  # type: ignore[arg-type, unused-ignore]
    path = target / "logits.json"
    about: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    if named:  # the other records stay as they were made
        about.setdefault("own_versions", {}).update(dict.fromkeys(named, versions))
    else:
        about |= {
            "made_by": "scripts/record/logits.py",
            "kept_tokens": KEPT,
            "compute": "transformers, float32, CPU, attn_implementation=eager",
            "versions": versions,
        }
    path.write_text(json.dumps(about, indent=2) + "\n")


def record(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one checkpoint: ids, kept rows, and two norms of every row."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = np.arange(N_TOKENS) * 7919 % vocabulary
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    if logits.dtype != np.float32:
        sys.exit(f"{folder.name}: logits are {logits.dtype}")
    return {
        f"{folder.name}/ids": ids.astype(np.int32),
        f"{folder.name}/rows": logits[list(KEPT)],
        f"{folder.name}/largest": np.abs(logits).max(axis=1),
        f"{folder.name}/sum": np.abs(logits).sum(axis=1),
    }


if __name__ == "__main__":
    main()
