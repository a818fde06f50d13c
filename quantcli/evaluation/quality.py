"""Quality: what is said about one model on one text, alone or against a reference."""

from dataclasses import dataclass

import numpy as np

from quantcli.evaluation.protocol import mean, perplexity


@dataclass(frozen=True)
class Quality:
    """Perplexity, and against a reference: KL divergence in nats and same-top-1, a fraction.

    All of `reference_perplexity` and what follows is None where there was no reference.
    """

    text_sha256: str
    context: int
    chunks: int
    activations: str  # "float", or "llama-cpu": rounded as llama.cpp's CPU runtime does
    perplexity: float
    perplexity_stderr: float
    reference_perplexity: float | None = None
    perplexity_ratio: float | None = None
    kld_mean: float | None = None
    kld_stderr: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_p999: float | None = None
    kld_max: float | None = None
    top1_agreement: float | None = None
    top1_stderr: float | None = None


def alone(nll: np.ndarray) -> dict[str, float]:
    """The fields that need no reference; nll float64 [n]."""
    found = perplexity(nll)
    return {"perplexity": found.value, "perplexity_stderr": found.stderr}


def against(
    nll: np.ndarray, reference_nll: np.ndarray, kld: np.ndarray, same_top: np.ndarray
) -> dict[str, float]:
    """The fields that compare with a reference; all [n], same_top bool."""
    divergence, agreement = mean(kld), mean(same_top)
    median, p99, p999 = np.quantile(kld, (0.5, 0.99, 0.999)).tolist()
    return {
        "reference_perplexity": perplexity(reference_nll).value,
        "perplexity_ratio": float(np.exp((nll - reference_nll).mean())),
        "kld_mean": divergence.value,
        "kld_stderr": divergence.stderr,
        "kld_median": median,
        "kld_p99": p99,
        "kld_p999": p999,
        "kld_max": float(kld.max()),
        "top1_agreement": agreement.value,
        "top1_stderr": agreement.stderr,
    }
