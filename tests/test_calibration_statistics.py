"""Statistics of sites: against plain formulas, whatever the pieces and the threads."""

from collections.abc import Sequence

import numpy as np
import pytest

from quantcli.blas import one_thread
from quantcli.calibration.statistics import PANEL, PIECE_TOKENS, Statistics, Wanted
from quantcli.errors import BadInputError
from quantcli.transformer import Site

SITE = Site("blk.3.ffn", ("blk.3.ffn_gate.weight", "blk.3.ffn_up.weight"))
EVERYTHING = Wanted(squares=True, mean_abs=True, hessian=True)


def activations(count: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (rng.standard_normal((count, n)) * rng.uniform(0.1, 9, n)).astype(np.float32)


def gather(x: np.ndarray, cuts: Sequence[int], threads: int = 1) -> Statistics:
    statistics = Statistics(EVERYTHING, threads)
    with one_thread():
        for part in np.split(x, cuts):
            statistics(SITE, part)
    return statistics


@pytest.mark.parametrize("count", [1, PIECE_TOKENS, 3 * PIECE_TOKENS + 17])
def test_against_float64(count: int) -> None:
    x = activations(count, 48)
    found = gather(x, []).take(SITE.name)
    wide = x.astype(np.float64)
    assert found.count == count
    assert found.weights == SITE.weights
    np.testing.assert_allclose(found.squares, (wide**2).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.mean_abs, np.abs(wide).mean(axis=0), rtol=1e-5)
    expected = wide.T @ wide
    assert found.hessian.dtype == np.float32
    assert np.abs(found.hessian - expected).max() < 1e-5 * expected.max()
    np.testing.assert_array_equal(found.hessian, found.hessian.T)


@pytest.mark.parametrize("cuts", [[5], [511, 512, 513], list(range(0, 1700, 100)), [1699]])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pieces_and_threads_change_no_bit(cuts: list[int], threads: int) -> None:
    x = activations(1700, 2 * PANEL + 40)[:, ::2]
    expected, found = (
        gather(np.ascontiguousarray(x), c, t).take(SITE.name) for c, t in (([], 1), (cuts, threads))
    )
    np.testing.assert_array_equal(found.squares, expected.squares)
    np.testing.assert_array_equal(found.mean_abs, expected.mean_abs)
    np.testing.assert_array_equal(found.hessian, expected.hessian)


def test_panels_make_one_symmetric_matrix() -> None:
    x = activations(40, 2 * PANEL + 40)
    found = gather(x, [], threads=2).take(SITE.name).hessian
    expected = x.T.astype(np.float64) @ x
    assert np.abs(found - expected).max() < 1e-5 * expected.max()
    np.testing.assert_array_equal(found, found.T)


def test_only_what_is_asked() -> None:
    statistics = Statistics(Wanted(mean_abs=True))
    statistics(SITE, activations(10, 8))
    found = statistics.take(SITE.name)
    assert found.squares is None
    assert found.hessian is None
    assert found.mean_abs is not None
    assert statistics.sites == []


def test_sites_are_kept_apart_and_arguments_untouched() -> None:
    statistics = Statistics(Wanted(squares=True))
    x, other = activations(600, 8), Site("blk.4.ffn", ("blk.4.ffn_up.weight",))
    before = x.copy()
    for start in range(0, 600, 150):
        statistics(SITE, x[start : start + 150])
        statistics(other, 2 * x[start : start + 150])
    np.testing.assert_array_equal(x, before)
    assert statistics.sites == [SITE.name, other.name]
    one, four = (statistics.take(site.name).squares for site in (SITE, other))
    np.testing.assert_allclose(4 * one, four, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, np.float32(1e30)])
def test_values_that_are_not_finite_name_the_site(value: float) -> None:
    x = activations(5, 8)
    x[3, 2] = value
    statistics = Statistics(Wanted(squares=True))
    statistics(SITE, x)
    with pytest.raises(BadInputError, match=r"'blk\.3\.ffn' are not finite"):
        statistics.take(SITE.name)
