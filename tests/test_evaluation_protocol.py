"""The mathematics of evaluation against a float64 brute force over whole rows of logits."""

import numpy as np
import pytest

from quantcli.evaluation import predictions
from quantcli.evaluation.predictions import Predictions, read_predictions
from quantcli.evaluation.protocol import mean, perplexity, scored, targets
from quantcli.evaluation.quality import against, alone
from quantcli.progress import Silent

N, N_EMBD, N_VOCAB = 301, 16, 1013


class Head:
    """logits = hidden @ W.T + shift."""

    def __init__(self, w: np.ndarray, shift: float = 0.0) -> None:
        self.w, self.shift, self.asked = w, np.float32(shift), 0

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        self.asked += len(hidden)
        return hidden @ self.w.T + self.shift


@pytest.fixture
def case() -> tuple[list[Head], list[np.ndarray], np.ndarray]:
    """A reference and two models near it; one that shifts its logits."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(N_VOCAB, N_EMBD)).astype(np.float32)
    hidden = rng.normal(size=(N, N_EMBD)).astype(np.float32)
    heads, states = [Head(w)], [hidden]
    for noise, shift in ((0.02, 0.0), (0.3, 50.0)):
        error = rng.normal(scale=noise, size=w.shape).astype(np.float32)
        heads.append(Head(w + error, shift))
        states.append(hidden + error[:N, :N_EMBD])
    return heads, states, rng.integers(0, N_VOCAB, N).astype(np.int32)


def read(
    case: tuple[list[Head], list[np.ndarray], np.ndarray], threads: int = 1
) -> list[Predictions]:
    return read_predictions(*case, N_VOCAB, threads, Silent())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, all at once."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    "tile", [N * N_VOCAB, 100 * N_VOCAB, 1], ids=["whole", "tiles", "smallest"]
)
def test_tiles_give_what_whole_rows_give(
    case: tuple[list[Head], list[np.ndarray], np.ndarray],
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictions, "TILE_LOGITS", tile)
    monkeypatch.setattr(predictions, "PIECE_LOGITS", 5000)
    found = read(case)
    heads, states, wanted = case
    assert [head.asked for head in heads] == [N] * 3
    log_p = [log_softmax(h.logits(s)) for h, s in zip(heads, states, strict=True)]
    for ours, exact in zip(found, log_p, strict=True):
        np.testing.assert_allclose(ours.nll, -exact[np.arange(N), wanted], atol=2e-5)
        np.testing.assert_array_equal(ours.top, exact.argmax(axis=1))
    assert np.isnan(found[0].kld).all()
    for ours, exact in zip(found[1:], log_p[1:], strict=True):
        kld = (np.exp(log_p[0]) * (log_p[0] - exact)).sum(axis=1)
        np.testing.assert_allclose(ours.kld, kld, rtol=1e-4, atol=1e-5)
        assert kld.mean() > 1e-3


def test_a_model_does_not_diverge_from_itself(
    case: tuple[list[Head], list[np.ndarray], np.ndarray],
) -> None:
    heads, states, wanted = case
    base, same = read(([heads[0], heads[0]], [states[0], states[0]], wanted))
    np.testing.assert_array_equal(same.kld, 0)
    np.testing.assert_array_equal(same.nll, base.nll)


def test_threads_change_nothing(
    case: tuple[list[Head], list[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "PIECE_LOGITS", 5000)
    one, three = read(case, 1), read(case, 3)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a.nll, b.nll)
    np.testing.assert_array_equal(one[2].kld, three[2].kld)


@pytest.mark.parametrize(("context", "first", "count"), [(512, 257, 255), (7, 4, 3), (4, 3, 1)])
def test_the_second_half_is_scored(context: int, first: int, count: int) -> None:
    """Logits at positions n/2 … n-2 predict the tokens at n/2+1 … n-1."""
    windows = np.arange(2 * context).reshape(2, context)
    place = np.arange(first, first + count)
    assert targets(windows).tolist() == [*place, *(context + place)]
    assert windows[:, scored(context)].reshape(-1).tolist() == [t - 1 for t in targets(windows)]


def test_errors_are_standard_errors() -> None:
    """sqrt((mean of squares - square of mean) / (n - 1)), as llama-perplexity computes it."""
    x = np.random.default_rng(2).normal(3.0, 1.0, 400)
    stderr = np.sqrt(((x * x).mean() - x.mean() ** 2) / 399)
    assert mean(x).stderr == pytest.approx(stderr)
    assert perplexity(x).value == pytest.approx(np.exp(x.mean()))
    assert perplexity(x).stderr == pytest.approx(np.exp(x.mean()) * stderr)
    assert mean(np.ones(1)).stderr == 0


def test_fields_of_quality() -> None:
    rng = np.random.default_rng(3)
    nll, base = rng.uniform(1, 9, 1000), rng.uniform(1, 9, 1000)
    kld, same = np.arange(1000) / 1000.0, np.arange(1000) < 900
    fields = alone(nll) | against(nll, base, kld, same)
    assert fields["perplexity_ratio"] == pytest.approx(
        fields["perplexity"] / fields["reference_perplexity"]
    )
    assert fields["kld_mean"] == pytest.approx(0.4995)
    assert fields["kld_median"] == pytest.approx(0.4995)
    assert fields["kld_p99"] == pytest.approx(0.98901)
    assert fields["kld_p999"] == pytest.approx(0.998001)
    assert fields["kld_max"] == 0.999
    assert fields["top1_agreement"] == 0.9
    assert fields["top1_stderr"] == pytest.approx(np.sqrt(0.9 * 0.1 / 999))
