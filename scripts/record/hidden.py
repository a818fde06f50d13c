"""Record transformers' float32 hidden states for every tiny checkpoint of tests/tiny_encoders.py.

    python -m pip install torch transformers
    python scripts/record/hidden.py [tests/data/transformer]

Two windows of fixed token ids per variant, weights converted to float32, attention "eager", all
tokens of the first type. Kept are every value of the tokens in KEPT and, of the first window, the
mean over its tokens.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_encoders import ENCODERS, build_encoder  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

N_TOKENS = 140  # more than a tile of attention
KEPT = (0, 1, 64, 127, 128, 139)
PACKAGES = ("numpy", "torch", "transformers")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data/transformer"
    arrays: dict[str, np.ndarray] = {}
    for family, variant in ENCODERS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = build_encoder(Path(scratch) / f"{family}-{variant}", family, variant)
            arrays |= record(folder, family)
        print(family, variant)
    np.savez_compressed(target / "hidden.npz", **arrays)  # type: ignore[arg-type, unused-ignore]
    about = {
        "made_by": "scripts/record/hidden.py",
        "kept_tokens": KEPT,
        "compute": "transformers, float32, CPU, attn_implementation=eager",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    (target / "hidden.json").write_text(json.dumps(about, indent=2) + "\n")


def record(folder: Path, family: str) -> dict[str, np.ndarray]:
    """The arrays of one checkpoint."""
    config = read_config(folder, family)
    model, told = transformers.AutoModel.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    missing = {name for name in told["missing_keys"] if not name.startswith("pooler.")}
    if missing:
        sys.exit(f"{folder.name}: {missing} are missing")
    ids = (np.arange(2 * N_TOKENS) * 7919 % config.vocab_size).reshape(2, -1)
    with torch.no_grad():
        hidden = model.eval()(torch.from_numpy(ids)).last_hidden_state.numpy()
    return {
        f"{folder.name}/ids": ids.astype(np.int32),
        f"{folder.name}/rows": hidden[:, list(KEPT)],
        f"{folder.name}/mean": hidden[0].mean(axis=0),
    }


def read_config(folder: Path, family: str) -> "transformers.PretrainedConfig":
    """The configuration; of Nomic-BERT in the keys of transformers' own class."""
    if family != "nomic_bert":
        return transformers.AutoConfig.from_pretrained(folder)
    found = json.loads((folder / "config.json").read_text())
    return transformers.NomicBertConfig(
        vocab_size=found["vocab_size"],
        hidden_size=found["n_embd"],
        intermediate_size=found["n_inner"],
        num_hidden_layers=found["n_layer"],
        num_attention_heads=found["n_head"],
        layer_norm_eps=found["layer_norm_epsilon"],
        type_vocab_size=found["type_vocab_size"],
        rope_parameters={"rope_type": "default", "rope_theta": float(found["rotary_emb_base"])},
    )


if __name__ == "__main__":
    main()
