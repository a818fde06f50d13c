"""Record transformers' float32 logits for every tiny checkpoint of tests/tiny_models.py.

    python -m pip install torch transformers
    python scripts/record/logits.py [tests/data/transformer [family ...]]

Families that are named get a file of their own, logits-<family>.npz, the others are in logits.npz.
One prompt of fixed token ids per variant, weights converted to float32, attention "eager". What is
kept of the logits: every value of the tokens in KEPT, as float32; and of every token its largest
magnitude and its sum of magnitudes, so that no value can be far off anywhere. InternLM2 is not in
transformers: its weights are split here, apart from quantcli's code, and computed as a Llama.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch  # type: ignore[import-not-found, unused-ignore]
import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_models import VARIANTS, build  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

N_TOKENS = 80  # more than the sliding windows of 64
KEPT = (0, 1, 40, 63, 64, 65, 79)
LLAMA_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo.": "self_attn.o_proj.",
    "attention.": "self_attn.",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "output.weight": "lm_head.weight",
}
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
        if "internlm2" in named:
            about["internlm2"] = "wqkv is split by the script, a LlamaForCausalLM computes the rest"
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
    if json.loads((folder / "config.json").read_text())["model_type"] == "internlm2":
        model = internlm2_as_llama(folder).eval()
    else:
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


def internlm2_as_llama(folder: Path) -> torch.nn.Module:
    """InternLM2, which transformers lacks, as the Llama that computes the same.

    Of each kv head, wqkv holds the query heads of its group, one below the other, then k, then v.
    """
    config = json.loads((folder / "config.json").read_text())
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= {n: w.float() for n, w in safetensors.torch.load_file(path).items()}
    size = config["hidden_size"] // config["num_attention_heads"]
    per_group = config["num_attention_heads"] // config["num_key_value_heads"]
    weights = {}
    for name, w in stored.items():
        for old, new in LLAMA_NAMES.items():
            name = name.replace(old, new)
        if "wqkv" not in name:
            weights[name] = w
            continue
        heads = w.split(size)
        parts: dict[str, list[torch.Tensor]] = {"q_proj": [], "k_proj": [], "v_proj": []}
        for number, head in enumerate(heads):
            place = number % (per_group + 2)
            parts[{per_group: "k_proj", per_group + 1: "v_proj"}.get(place, "q_proj")].append(head)
        weights |= {name.replace("wqkv", p): torch.cat(found) for p, found in parts.items()}
    kept = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "bias")}
    llama = transformers.LlamaConfig(**kept, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(llama).float()
    model.load_state_dict(weights)
    return model


if __name__ == "__main__":
    main()
