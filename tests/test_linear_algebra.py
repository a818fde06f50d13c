"""Factors on GEMM: against numpy in float64, in place, the same bytes on any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantcli.blas import one_thread
from quantcli.kernels.linear_algebra import inverse_factor


def activations_like(seed: int, n: int, tokens: int, damping: float = 0.01) -> np.ndarray:
    """A damped Hessian: correlated inputs, a few of them fifty times as strong."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, n)) + rng.standard_normal((tokens, 1))
    x *= np.exp(rng.standard_normal(n))
    x[:, :3] *= 50
    h = x.T @ x / tokens
    h[np.diag_indices(n)] += damping * np.diag(h).mean()
    return h.astype(np.float32)


def factored(h: np.ndarray, threads: int = 1) -> np.ndarray:
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return inverse_factor(h.copy(), pool)


@pytest.mark.parametrize("n", [1, 2, 31, 256, 257, 700, 1300])
def test_is_the_factor_of_the_inverse(n: int) -> None:
    h = activations_like(n, n, 2 * n + 1)
    u = factored(h)
    expected = np.linalg.cholesky(np.linalg.inv(h.astype(np.float64)), upper=True)
    assert np.array_equal(u, np.triu(u))
    scale = np.sqrt(np.square(expected).sum(axis=0))
    assert np.abs((u - expected) / scale).max() < 1e-3
    # What GPTQ uses: by how much the error of a column moves those after it.
    moves, wanted = (f / np.diag(f)[:, None] for f in (u, expected))
    assert np.abs(moves - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_reads_the_upper_triangle_only() -> None:
    h = activations_like(1, 600, 900)
    assert np.array_equal(factored(np.triu(h)), factored(h))


def test_works_in_place() -> None:
    h = activations_like(2, 300, 400)
    with ThreadPoolExecutor(1) as pool:
        assert inverse_factor(h, pool) is h


def test_bytes_do_not_depend_on_threads() -> None:
    h = activations_like(3, 2300, 2400)
    first = factored(h).tobytes()
    assert factored(h, 2).tobytes() == first
    assert factored(h, 5).tobytes() == first


def test_rank_deficient_but_damped() -> None:
    """One token: a matrix of rank one, and a ridge."""
    h = activations_like(4, 400, 1)
    u = factored(h).astype(np.float64)
    assert np.abs(u.T @ u @ h - np.eye(400)).max() < 1e-2


@pytest.mark.parametrize("place", [0, 255, 256, 699])
def test_indefinite_matrices_are_refused(place: int) -> None:
    h = activations_like(5, 700, 900)
    h[place, place] = -1
    with pytest.raises(np.linalg.LinAlgError):
        factored(h)


def test_nan_is_refused() -> None:
    h = activations_like(6, 300, 400)
    h[100, 200] = np.nan
    with pytest.raises(np.linalg.LinAlgError):
        factored(h)
