"""GPTQ: against float64 textbook code, brute force and rounding to nearest; what breaks others."""

from itertools import product

import numpy as np
import pytest

from quantcli import tensor_types
from quantcli.errors import BadInputError
from quantcli.kernels import sweep as sweep_module
from quantcli.kernels.descent import descend
from quantcli.kernels.lattice import Lattice, Ranges
from quantcli.kernels.sweep import sweep
from quantcli.kernels.symmetric import Integers
from quantcli.methods.gptq import Correction, Metric, output_error, quantize
from quantcli.tensor_types import TensorType

F32 = np.float32
QUANTIZED = [t for name in tensor_types.names() if (t := tensor_types.get(name)).quantized]
every_type = pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
Q2_K, Q3_K, Q4_K, Q4_0 = (tensor_types.get(name) for name in ("Q2_K", "Q3_K", "Q4_K", "Q4_0"))


def inputs(seed: int, n: int, tokens: int = 2000) -> np.ndarray:
    """Correlated inputs of unequal strength, one of them much stronger: X f32[tokens, n]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, n // 8)) @ rng.standard_normal((n // 8, n)) / (n // 8) ** 0.5
    x += 0.5 * rng.standard_normal((tokens, n))
    x *= np.exp(0.7 * rng.standard_normal(n))
    x[:, n // 3] *= 20
    return x.astype(F32)


def hessian(seed: int, n: int, tokens: int = 2000) -> np.ndarray:
    x = inputs(seed, n, tokens)
    return x.T @ x / F32(tokens)


def weights(seed: int, rows: int, n: int) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_t(5, (rows, n))).astype(F32)


def error_of(packed: np.ndarray, w: np.ndarray, h: np.ndarray, kind: TensorType) -> float:
    return float(output_error(w, kind.decode(packed), h).sum())


def rtn(w: np.ndarray, h: np.ndarray, kind: TensorType) -> np.ndarray:
    return kind.encode(w, np.ascontiguousarray(np.diag(h)))


def integers(d: np.ndarray, block: int, lowest: int = -8, highest: int = 7) -> Lattice:
    """A lattice of blocks whose own scales are d f32[n / block, rows]."""
    ones = np.ones_like(d)
    return Lattice(Integers(lowest, highest), Ranges(), block, 1, d, ones, None, None)


# Lattices


@every_type
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_packed_lattices_decode_to_what_they_stand_for(kind: TensorType, rows: int) -> None:
    w = weights(rows, rows, 768)
    w[0, :256] = 0
    lattice = kind.lattice(w, 1 + np.square(w))
    levels = lattice.nearest(np.ascontiguousarray(w.T))
    decoded = kind.decode(kind.pack_lattice(levels, lattice))
    expected = np.ascontiguousarray(lattice.dequantize(levels).T)
    assert decoded.tobytes() == expected.tobytes()
    assert np.square(decoded - w).sum() < 1.05 * np.square(kind.decode(kind.encode(w)) - w).sum()


@every_type
def test_all_levels_and_scales_survive_packing(kind: TensorType) -> None:
    rng = np.random.default_rng(1)
    lattice = kind.lattice(weights(1, 64, 512), np.ones((64, 512), F32))
    (low, high), (lowest, highest) = lattice.ranges
    lattice.scales[:] = rng.integers(low, high + 1, lattice.scales.shape)
    if lattice.mins is not None:
        lattice.mins[:] = rng.integers(lowest, highest + 1, lattice.mins.shape)
    levels = lattice.nearest(rng.normal(0, 5, (512, 64)).astype(F32))  # mostly clipped
    levels[::2] = lattice.nearest(0.05 * rng.standard_normal((512, 64)).astype(F32))[::2]
    decoded = kind.decode(kind.pack_lattice(levels, lattice))
    assert np.array_equal(decoded, lattice.dequantize(levels).T)


def test_lattices_refuse_what_encode_refuses() -> None:
    w = weights(1, 4, 256)
    w[2, 5] = np.inf
    with pytest.raises(BadInputError, match="row 12, column 5"):
        Q4_K.lattice(w, np.ones_like(w), first_row=10)
    with pytest.raises(BadInputError, match="not a multiple"):
        Q4_K.lattice(weights(1, 4, 64), np.ones((4, 64), F32))


# The sweep


def textbook(w: np.ndarray, h: np.ndarray, d: np.ndarray, block: int) -> np.ndarray:
    """Levels [n, rows] by GPTQ as it is usually told: inverse once, eliminated column by column."""
    w, inverse = w.astype(np.float64).copy(), np.linalg.inv(h.astype(np.float64))
    levels = np.empty(w.shape)
    for j in range(len(w)):
        step = d[j // block]
        levels[j] = np.clip(np.rint(w[j] / step), -8, 7)
        error = (w[j] - levels[j] * step) / inverse[j, j]
        w -= inverse[:, j, None] * error
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return levels


def damped(h: np.ndarray) -> np.ndarray:
    return h + F32(0.01) * np.diag(h).mean() * np.eye(len(h), dtype=F32)


@pytest.mark.parametrize("n", [64, 320, 608])
@pytest.mark.parametrize("descending", [False, True])
def test_sweep_is_the_textbook_algorithm(n: int, descending: bool) -> None:
    """In runs and blocks of columns, in any order: codes end up in their own places."""
    h, w = damped(hessian(n, n)), np.ascontiguousarray(weights(n, 9, n).T)
    d = np.random.default_rng(2).uniform(0.005, 0.01, (n // 32, 9)).astype(F32)
    order = np.argsort(-np.diag(h)) if descending else np.arange(n)
    permuted = h[np.ix_(order, order)]
    u = np.linalg.cholesky(np.linalg.inv(permuted.astype(np.float64)), upper=True).astype(F32)
    levels = sweep(w.copy(), u, order, integers(d, 32))
    # block = 1: the textbook permutes the scales together with the columns.
    expected = textbook(w[order], permuted, d.repeat(32, axis=0)[order], 1)
    agree = (levels[order] == expected).mean(axis=0)
    assert np.median(agree) == 1  # a tie that rounds the other way changes the rest of its row
    assert agree.mean() > 0.99


def test_sweep_leaves_its_loss_behind() -> None:
    n = 320
    h, w = damped(hessian(3, n)), np.ascontiguousarray(weights(3, 5, n).T)
    u = np.linalg.cholesky(np.linalg.inv(h.astype(np.float64)), upper=True).astype(F32)
    lattice, errors = integers(np.full((10, 5), 0.01, F32), 32), w.copy()
    decoded = lattice.dequantize(sweep(errors, u, np.arange(n), lattice))
    expected = output_error(w.T, decoded.T, h)
    np.testing.assert_allclose(np.square(errors).sum(axis=0), expected, rtol=1e-3)


def test_run_and_block_lengths_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 512
    h, w = damped(hessian(4, n)), np.ascontiguousarray(weights(4, 40, n).T)
    u = np.linalg.cholesky(np.linalg.inv(h.astype(np.float64)), upper=True).astype(F32)
    lattice = integers(np.full((16, 40), 0.01, F32), 32)
    first = sweep(w.copy(), u, np.arange(n), lattice)
    monkeypatch.setattr(sweep_module, "BLOCK", 96)
    monkeypatch.setattr(sweep_module, "RUN", 7)
    assert (sweep(w.copy(), u, np.arange(n), lattice) == first).mean() > 0.98


def test_near_the_optimum_of_a_toy() -> None:
    """All 8**5 codes of five weights: the sweep closes most of the gap to the best."""
    rng = np.random.default_rng(5)
    n, rows = 5, 40
    x = rng.standard_normal((50, 2)) @ rng.standard_normal((2, n))
    h = damped(((x.T @ x) / 50 + 0.05 * np.eye(n)).astype(F32))
    w = rng.uniform(-0.02, 0.01, (n, rows)).astype(F32)
    lattice = integers(np.full((1, rows), 0.01, F32), n, -4, 3)
    u = np.linalg.cholesky(np.linalg.inv(h.astype(np.float64)), upper=True).astype(F32)
    levels = sweep(w.copy(), u, np.arange(n), lattice)
    every = 0.01 * np.array(list(product(range(-4, 4), repeat=n)))
    best = np.array([output_error(every, np.broadcast_to(r, every.shape), h).min() for r in w.T])
    found = output_error(w.T, lattice.dequantize(levels).T, h)
    nearest = output_error(w.T, lattice.dequantize(lattice.nearest(w)).T, h)
    assert (found >= best - 1e-9).all()
    assert found.sum() - best.sum() < 0.25 * (nearest.sum() - best.sum())


# Descent


@every_type
def test_descent_never_climbs(kind: TensorType) -> None:
    """From scales and codes that are far from good, every row's error falls pass by pass."""
    h, w = hessian(6, 512), weights(6, 33, 512)
    ridge = np.full(512, 0.01 * np.diag(h).mean(), F32)
    target, full = np.ascontiguousarray(w.T), h + np.diag(ridge)
    lattice = kind.lattice(w * F32(1.3), np.ones_like(w))
    levels = lattice.nearest(target)
    last = output_error(w, lattice.dequantize(levels).T, full)
    for number in range(4):
        descend(levels, lattice, target, h, ridge, 1)
        now = output_error(w, lattice.dequantize(levels).T, full)
        assert (now <= last * (1 + 1e-4)).all()
        assert now.sum() < (0.8 if number == 0 else 1) * last.sum()
        last = now
    (low, high), (lowest, highest) = lattice.ranges
    assert lattice.scales.min() >= low
    assert lattice.scales.max() <= high
    if lattice.mins is not None:
        assert lattice.mins.min() >= lowest
        assert lattice.mins.max() <= highest
    packed = kind.pack_lattice(levels, lattice)
    assert np.array_equal(kind.decode(packed), lattice.dequantize(levels).T)


# Whole tensors


@every_type
def test_beats_rounding_to_nearest(kind: TensorType) -> None:
    """On inputs that were not used, each by at least half."""
    x = inputs(7, 768, 6000)
    used, fresh = (part.T @ part / F32(3000) for part in (x[:3000], x[3000:]))
    w = weights(7, 200, 768)
    ours = error_of(quantize(w, Metric.of(used), kind), w, fresh, kind)
    assert ours < 0.5 * error_of(rtn(w, used, kind), w, fresh, kind)


@pytest.mark.parametrize("kind", [Q2_K, Q4_0], ids=lambda kind: kind.name)
def test_each_step_gains(kind: TensorType) -> None:
    h, w = hessian(8, 768), weights(8, 200, 768)
    metric = Metric.of(h)
    errors = [error_of(quantize(w, metric, kind, passes=p), w, h, kind) for p in (0, 1, 2)]
    assert errors[0] < 0.5 * error_of(rtn(w, h, kind), w, h, kind)
    assert errors[1] < 0.97 * errors[0]
    assert errors[2] < errors[1]


@every_type
def test_bytes_do_not_depend_on_threads(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.methods.gptq.STRIP", 48)
    h, w = hessian(9, 512), weights(9, 149, 512)
    packed = [quantize(w, Metric.of(h, threads=t), kind, threads=t).tobytes() for t in (1, 2, 5)]
    assert packed[0] == packed[1] == packed[2]


@pytest.mark.parametrize("kind", [Q3_K, Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 3, 131])
def test_any_number_of_rows(kind: TensorType, rows: int) -> None:
    n = 256 + kind.block_size
    h, w = hessian(10, n), weights(10, rows, n)
    packed = quantize(w, Metric.of(h), kind)
    assert packed.shape == (rows, kind.row_bytes(n))
    assert error_of(packed, w, h, kind) < 0.7 * error_of(rtn(w, h, kind), w, h, kind)


def test_dead_inputs_are_rounded_as_average_ones() -> None:
    x = inputs(11, 512)
    x[:, 100:140] = 0
    h, w = x.T @ x / F32(len(x)), weights(11, 60, 512)
    metric = Metric.of(h)
    assert metric.factor is not None
    decoded = Q4_K.decode(quantize(w, metric, Q4_K))
    assert float(output_error(w, decoded, h).sum()) < 0.5 * error_of(rtn(w, h, Q4_K), w, h, Q4_K)
    plain = Q4_K.decode(Q4_K.encode(w)) - w
    assert np.square(decoded - w)[:, 100:140].sum() < 1.5 * np.square(plain)[:, 100:140].sum()


@pytest.mark.parametrize("tokens", [1, 10])
def test_few_tokens(tokens: int) -> None:
    """H of rank one or ten: those outputs are met, and the weights stay near."""
    h, w = hessian(12, 512, tokens), weights(12, 60, 512)
    decoded = Q4_K.decode(quantize(w, Metric.of(h), Q4_K))
    assert output_error(w, decoded, h).sum() < 0.02 * error_of(rtn(w, h, Q4_K), w, h, Q4_K)
    assert np.square(decoded - w).sum() < 4 * np.square(Q4_K.decode(Q4_K.encode(w)) - w).sum()


@every_type
def test_zeros_stay_zeros(kind: TensorType) -> None:
    h, w = hessian(13, 512), np.zeros((5, 512), F32)
    assert not kind.decode(quantize(w, Metric.of(h), kind)).any()
    assert not kind.decode(quantize(w, Metric.of(np.zeros_like(h)), kind)).any()


@every_type
@pytest.mark.parametrize("size", [1e-12, 1e-5, 1e3])
def test_any_size_of_weights_and_inputs(kind: TensorType, size: float) -> None:
    h, w = hessian(14, 256), weights(14, 8, 256) * F32(size)
    for strength in (1e-8, 1e6):
        decoded = kind.decode(quantize(w, Metric.of(h * F32(strength)), kind))
        nearest = output_error(w, kind.decode(kind.encode(w)), h).sum()
        assert output_error(w, decoded, h).sum() <= nearest


def test_damping_grows_until_there_is_a_factor() -> None:
    h = hessian(15, 256)
    h -= F32(0.1) * np.diag(h).mean() * np.eye(256, dtype=F32)
    h[np.diag_indices(256)] = np.maximum(np.diag(h), 0.1)
    metric = Metric.of(h)
    assert metric.factor is not None
    assert metric.ridge[0] > 0.05 * np.diag(h).mean()


def test_without_a_factor_descent_is_left() -> None:
    """A matrix that no damping mends, never taken for the identity."""
    h, w = hessian(16, 512), weights(16, 60, 512)
    broken = h.copy()
    broken[0, 1] = broken[1, 0] = 100 * np.diag(h).max()
    metric = Metric.of(broken)
    assert metric.factor is None
    fallback = Metric(h, metric.ridge, metric.order, None, np.diag(h) / np.diag(h).mean())
    for kind in (Q2_K, Q4_0):
        found = error_of(quantize(w, fallback, kind), w, h, kind)
        assert found < 0.6 * error_of(rtn(w, h, kind), w, h, kind)
    assert np.isfinite(Q4_K.decode(quantize(w, metric, Q4_K))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1])
def test_broken_statistics_are_refused(value: float) -> None:
    h = hessian(17, 64)
    h[5, 5] = value
    with pytest.raises(BadInputError, match="not finite or negative"):
        Metric.of(h)


def test_arguments_stay_as_they_are() -> None:
    h, w = hessian(18, 256), weights(18, 20, 256)
    before = h.copy(), w.copy()
    metric = Metric.of(h)
    quantize(w, metric, Q4_K)
    Correction.of(h, h.copy()).target(w)
    assert np.array_equal(before[0], h)
    assert np.array_equal(before[1], w)


# Targets


def test_a_corrected_target_meets_the_float_outputs() -> None:
    """Inputs that the quantized stream has bent linearly are bent back."""
    n, tokens = 128, 4000
    float_inputs = np.random.default_rng(19).standard_normal((tokens, n)).astype(F32)
    bend = np.eye(n) + 0.05 * np.random.default_rng(20).standard_normal((n, n))
    x = (float_inputs @ bend).astype(F32)
    h, c = x.T @ x / tokens, (float_inputs - x).T @ x / tokens
    w = weights(19, 30, n)
    target = Correction.of(h, c).target(w)
    wanted = float_inputs @ w.T
    missed = [np.square(x @ rows.T - wanted).sum() for rows in (w, target)]
    assert missed[1] < 0.03 * missed[0]
    ridge = 0.03 * np.diag(h).mean() * np.eye(n)
    exact = w + w.astype(np.float64) @ c @ np.linalg.inv((h + ridge).astype(np.float64))
    np.testing.assert_allclose(target, exact, atol=1e-5 * np.abs(exact).max())


def test_no_difference_no_correction() -> None:
    h, w = hessian(21, 256), weights(21, 10, 256)
    assert np.array_equal(Correction.of(h, np.zeros_like(h)).target(w), w)


def test_output_error_is_that_of_the_outputs() -> None:
    x, w = inputs(22, 96, 500), weights(22, 10, 96)
    decoded = w + F32(0.01) * weights(23, 10, 96)
    outputs = x.astype(np.float64) @ (decoded - w).astype(np.float64).T
    expected = np.square(outputs).mean(axis=0)
    np.testing.assert_allclose(output_error(w, decoded, x.T @ x / F32(500)), expected, rtol=1e-4)
