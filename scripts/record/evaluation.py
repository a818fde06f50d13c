"""Record what transformers and llama.cpp predict, as figures that an evaluation must reach.

    python -m pip install torch transformers llama-cpp-python .
    python scripts/record/evaluation.py [tests/data/evaluation]

On the first windows of text.txt, for the checkpoint tests/models/demo: transformers on the crudely
rounded weights of tests/crude_model.py against the weights as they are, both in float32; and
llama.cpp on a Q8_0 file against the F32 file. All figures are computed here in float64.
"""

import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]

import quantcli
from quantcli.planning import Job

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # after the packages: it has a llama_cpp of its own

from crude_model import build_crude  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

DEMO = ROOT / "tests/models/demo"
CHUNKS = 8
PACKAGES = ("llama_cpp_python", "numpy", "torch", "transformers")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data/evaluation"
    text = (target / "text.txt").read_text()
    loader = SourceFileLoader("quality", str(ROOT / "scripts/quality"))
    spec = importlib.util.spec_from_loader("quality", loader)
    assert spec is not None
    quality = importlib.util.module_from_spec(spec)
    loader.exec_module(quality)

    with tempfile.TemporaryDirectory() as scratch:
        crude = build_crude(DEMO, Path(scratch) / "crude")
        files = quantcli.convert(Job(str(DEMO), ("F32", "Q8_0"), Path(scratch))).outputs
        runs = []
        for output in files:
            runtime = quality.Runtime(Path(output.paths[0]), 1)
            windows = list(runtime.windows(text, CHUNKS))
            runs.append(np.concatenate([runtime.logits(window) for window in windows]))
            runtime.close()
        exact, rounded = (torch_logits(folder, windows) for folder in (DEMO, crude))
    wanted = np.concatenate([window[257:] for window in windows])
    about = {
        "made_by": "scripts/record/evaluation.py",
        "context": 512,
        "chunks": CHUNKS,
        "transformers": figures(wanted, exact, rounded),
        "llama.cpp": figures(wanted, *runs),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    (target / "demo.json").write_text(json.dumps(about, indent=2) + "\n")


def torch_logits(folder: Path, windows: list[np.ndarray]) -> np.ndarray:
    """Logits at positions 256 to 510 of each window, one after the other."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.from_numpy(np.array(windows, np.int64))
    with torch.no_grad():
        return np.concatenate([model(one[None]).logits[0, 256:-1].numpy() for one in ids])


def figures(wanted: np.ndarray, base: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """The fields of a quality."""
    log_p, log_q = log_softmax(base), log_softmax(other)
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    nll, base_nll = (-log[np.arange(len(wanted)), wanted] for log in (log_q, log_p))
    same = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    ordered = np.sort(kld)
    return {
        "perplexity": np.exp(nll.mean()),
        "perplexity_stderr": np.exp(nll.mean()) * stderr(nll),
        "reference_perplexity": np.exp(base_nll.mean()),
        "perplexity_ratio": np.exp(nll.mean()) / np.exp(base_nll.mean()),
        "kld_mean": kld.mean(),
        "kld_stderr": stderr(kld),
        "kld_median": np.median(kld),
        "kld_p99": np.interp(0.99 * (len(kld) - 1), np.arange(len(kld)), ordered),
        "kld_p999": np.interp(0.999 * (len(kld) - 1), np.arange(len(kld)), ordered),
        "kld_max": ordered[-1],
        "top1_agreement": same.mean(),
        "top1_stderr": stderr(same.astype(np.float64)),
    }


def stderr(x: np.ndarray) -> float:
    """As llama-perplexity: sqrt((mean of squares - square of mean) / (n - 1))."""
    return float(np.sqrt(((x * x).mean() - x.mean() ** 2) / (len(x) - 1)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    main()
