"""Kernels: tiles, rounding, bit fields, and the two scale searches on data with known answers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli.kernels import affine, bits, rounding, scratch, search, symmetric, tiles
from quantcli.kernels.codebook import Codebook

F32 = np.float32
RNG = np.random.default_rng(20)
START = RNG.bit_generator.state
EIGHT = symmetric.Integers(-8, 7)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Every test draws the same numbers, whichever ran before it in its process."""
    RNG.bit_generator.state = START


def lanes(*values: float) -> np.ndarray:
    """[S=1, R=8] of the values, repeated."""
    return np.resize(np.array(values, F32), (1, 8))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 41])
@pytest.mark.parametrize("block_size", [256, 32, 1])
def test_load_puts_every_weight_where_the_layout_says(count: int, block_size: int) -> None:
    blocks = RNG.standard_normal((count, block_size)).astype(F32)
    tile = tiles.load(blocks)
    lanes = min(block_size, 4)
    assert tile.shape == (block_size // lanes, lanes * tiles.padded(count))
    assert tile.flags.c_contiguous
    for r in range(count):
        assert np.array_equal(tile[:, lanes * r : lanes * (r + 1)].reshape(-1), blocks[r])
    assert not tile[:, lanes * count :].any()
    out = np.empty_like(blocks)
    tiles.store(tile, out)
    assert np.array_equal(out, blocks)


@pytest.mark.parametrize("sub_blocks", [1, 8, 16])
def test_planes_hold_one_position_of_all_blocks_each(sub_blocks: int) -> None:
    blocks = RNG.standard_normal((24, 256)).astype(F32)
    planes = tiles.planes(tiles.load(blocks), sub_blocks)
    assert np.array_equal(planes, blocks.reshape(24, sub_blocks, -1).transpose(2, 1, 0))


def test_padded_is_an_odd_multiple_of_8() -> None:
    for count in range(1, 200):
        r = tiles.padded(count)
        assert r >= count > r - 16
        assert r % 16 == 8
        assert tiles.padded(r) == r


def test_spread_and_extremes_go_between_blocks_and_their_lanes() -> None:
    values = RNG.standard_normal((3, 24)).astype(F32)
    assert np.array_equal(tiles.spread(values), values.repeat(4, axis=1))
    blocks = RNG.standard_normal((24, 32)).astype(F32)
    high, low = tiles.extremes(tiles.load(blocks))
    assert np.array_equal(high, blocks.max(axis=1))
    assert np.array_equal(low, blocks.min(axis=1))


def test_scratch_is_taken_back_at_the_end_of_a_frame_and_only_inside_one() -> None:
    for _ in range(2):  # the second time it is this thread's memory
        with scratch.frame():
            first = scratch.empty((3, 5))
            second = scratch.empty((1000,), np.uint8)
            with scratch.frame():
                inner = scratch.empty((7,))
            again = scratch.empty((7,))
            assert not np.shares_memory(first, second)
            assert again.ctypes.data == inner.ctypes.data or not scratch.held()
    with scratch.frame():
        assert scratch.empty((3, 5)).ctypes.data == first.ctypes.data
    outside = scratch.empty((4, 4))
    assert {x.ctypes.data % scratch.LINE for x in (first, second, again, outside)} == {0}
    with scratch.frame():
        assert not np.shares_memory(outside, scratch.empty((4, 4)))
    assert np.getbufsize() == 8192


def test_scratch_belongs_to_one_thread() -> None:
    def address() -> int:
        for _ in range(2):
            with scratch.frame():
                held = scratch.empty((1 << 16,)).ctypes.data
        return held

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(address).result() != address()


@given(st.integers(1, 5000), st.integers(1, 900), st.sampled_from([1, 32, 256]))
def test_spans_cover_all_blocks_once_and_keep_short_rows_whole(n: int, row: int, size: int) -> None:
    runs = list(tiles.spans(n, row, size))
    assert [b for run in runs for b in range(*run)] == list(range(n))
    if row * size <= tiles.TILE_WEIGHTS:
        assert all(start % row == 0 for start, _ in runs)


def test_importance_tiles_follow_the_columns_of_each_block() -> None:
    row = RNG.random(768).astype(F32)
    whole = np.tile(row, 20).reshape(-1, 256)
    shared = tiles.ImportanceTiles(row, 256, 8)
    for start, stop in [(0, 9), (9, 18), (5, 6), (20, 41), (0, 9)]:
        tile = shared.tile(start, stop)
        assert np.array_equal(
            tile[:, :, : stop - start],
            tiles.planes(tiles.load(whole[start:stop]), 8)[:, :, : stop - start],
        )
        assert (tile > 0).all()  # padding too: sums of weights are divisors
    assert shared.tile(0, 9) is shared.tile(9, 18)


def test_importance_is_normalized_and_floored() -> None:
    row = np.array([0, 1, 3, 0], F32)
    assert tiles.normalized_importance(row) == pytest.approx([1e-6, 1, 3, 1e-6])
    assert tiles.normalized_importance(np.zeros(4, F32)) is None


def all_halves() -> np.ndarray:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return np.sort(halves[np.isfinite(halves)].astype(F32))


def test_to_half_equals_ieee_on_every_half_every_tie_and_beside_them() -> None:
    exact = all_halves()
    ties = (exact[1:] + exact[:-1]) / 2
    x = np.concatenate([exact, ties, np.nextafter(ties, F32(9e9)), np.nextafter(ties, F32(-9e9))])
    assert rounding.to_half(x).tobytes() == x.astype(np.float16).astype(F32).tobytes()


def test_half_bits_are_those_of_to_half() -> None:
    exact = all_halves()
    assert rounding.half_bits(exact).tobytes() == exact.astype(np.float16).tobytes()
    x = np.concatenate([np.linspace(-70000, 70000, 9999), np.linspace(-1e-4, 1e-4, 9999)])
    x = np.append(x, [65504, 65519, 65520, 1e30, -1e30, -0.0]).astype(F32)
    assert rounding.half_bits(x).tobytes() == rounding.to_half(x).astype(np.float16).tobytes()


def test_from_half_equals_ieee_on_every_half() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    for x in (finite, halves, halves[:0]):
        assert rounding.from_half(x).tobytes() == x.astype(F32).tobytes()


def test_to_half_saturates() -> None:
    assert rounding.to_half(np.array([65519, 65520, 1e30, -1e30], F32)).tolist() == [
        *(65504, 65504, 65504, -65504)
    ]


def test_to_half_scale_never_rounds_a_subnormal_towards_zero() -> None:
    x = np.concatenate([RNG.random(5000) * 2.0**-14, [1e-30, 2**-24, 2**-14, 0.1]]).astype(F32)
    x = np.concatenate([x, -x])
    scale = rounding.to_half_scale(x)
    assert (scale.astype(np.float16) == scale).all()
    small = np.abs(x) < 2**-14
    assert (np.abs(scale) >= np.abs(x))[small].all()
    assert (np.abs(scale - x) <= 2**-24).all(where=small)
    assert np.array_equal(scale[~small], rounding.to_half(x[~small]))
    assert rounding.to_half_scale(np.zeros(1, F32))[0] == 0


def test_reciprocal_of_nothing_is_nothing() -> None:
    x = np.array([0, -0.0, 1e-45, -1e-39, 4, -0.5], F32)
    assert rounding.reciprocal(x).tolist() == [0, 0, 0, 0, 0.25, -2]


def test_signed_extreme_takes_the_first_of_two_opposites() -> None:
    x = np.array([[-1, 1, 2, -0.0], [1, -1, -3, 0], [0, 0.5, 1, -0.0]], F32)
    extreme = rounding.signed_extreme(x)
    assert extreme.tolist() == [-1, 1, -3, 0]
    assert not np.signbit(extreme[3])


def test_nearest_rounds_half_to_even_and_clips() -> None:
    x = np.array([0.5, 1.5, 2.5, -1, 99], F32)
    out = np.empty_like(x)
    assert rounding.nearest(x, F32(1), None, 0, 15, out=out).tolist() == [0, 2, 2, 0, 15]
    assert rounding.nearest(x, F32(2), F32(1), 0, 15, out=out).tolist() == [3, 5, 7, 0, 15]


def test_small_scales_are_rounded_up_sooner_and_large_ones_to_the_nearest() -> None:
    x = np.array([0, 0.4, 1.3, 1.4, -1.4, 20.4, 20.6, -40, 40], F32)
    assert rounding.small_up(x, -32, 31).tolist() == [1, 1, 1, 2, -2, 20, 21, -32, 31]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_merge_and_split_are_inverse_and_place_field_i_at_bit_i_times_width(
    width: int, axis: int
) -> None:
    count = 8 // width
    codes = RNG.integers(0, 1 << width, (count, count, 24)).astype(np.uint8)
    merged = bits.merge(codes, axis, width)
    shifts = np.arange(count).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)) * width
    assert np.array_equal(merged, (codes.astype(int) << shifts).sum(axis=axis))
    assert np.array_equal(bits.split(merged, axis, width), codes)


def test_field_on_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8)
    for shift, width in [(0, 4), (4, 4), (4, 1), (2, 1), (4, 2)]:
        assert np.array_equal(bits.field(every, shift, width), every >> shift & (1 << width) - 1)


def test_units_of_a_field_move_to_records_and_back() -> None:
    units = RNG.integers(0, 256, (3, 32)).astype(np.uint8)
    records = np.zeros(8, np.dtype([("d", "<f2"), ("qs", "u1", (3, 4))]))
    bits.store(units, records, "qs")
    assert np.array_equal(records["qs"], units.reshape(3, 8, 4).swapaxes(0, 1))
    assert not records["d"].any()
    assert np.array_equal(bits.load(records, "qs"), units)


def test_fifth_bits_put_bit_4_of_code_j_at_bit_j() -> None:
    codes = RNG.integers(0, 32, (8, 64)).astype(np.uint8)
    packed = bits.fifth_bits(codes)
    for j in range(32):
        assert np.array_equal(packed >> np.uint32(j) & 1, codes[j // 4, j % 4 :: 4] >> 4)
    assert np.array_equal(bits.from_fifth_bits(packed), codes & 16)


def test_six_bit_pairs_keep_every_value_in_every_place() -> None:
    scales = (np.arange(64) + 9 * np.arange(8)[:, None]).astype(F32) % 64
    mins = (np.arange(64)[::-1] + 5 * np.arange(8)[:, None]).astype(F32) % 64
    packed = bits.six_bit_pairs(scales, mins)
    again = bits.from_six_bit_pairs(packed)
    assert packed.shape == (64, 12)
    assert np.array_equal(again[0], scales)
    assert np.array_equal(again[1], mins)


def test_codebook_takes_the_nearest_value_and_the_upper_of_two() -> None:
    book = Codebook(-7, -2, 0, 3, 8)
    x = np.linspace(-12, 12, 24 * 64 + 1).astype(F32)
    expected = np.abs(x[:, None] - book.values)[:, ::-1].argmin(axis=1)
    assert np.array_equal(book.codes(x, F32(1)), 4 - expected)
    found = book.nearest(x, F32(0.5), out=np.empty_like(x))
    assert np.array_equal(found, book.values[book.codes(x / 2, F32(1))])


def test_best_of_takes_the_first_of_equals() -> None:
    gain = np.array([[1, 5, 2], [3, 5, 1], [3, 4, 0]], F32)
    value = np.array([[10, 11, 12], [20, 21, 22], [30, 31, 32]], F32)
    assert search.best_of(gain, value)[0].tolist() == [20, 11, 12]


def test_sums_do_not_depend_on_the_blocks_beside() -> None:
    x = RNG.standard_normal((32, 8, 64)).astype(F32)
    whole = search.total(x)
    for r in range(0, 64, 8):
        assert np.array_equal(
            search.total(np.ascontiguousarray(x[:, :, r : r + 8])), whole[:, r : r + 8]
        )
        part = np.ascontiguousarray(x[:, :, r : r + 8])
        for factors in ((x, x), (x, x, x)):
            products = search.total_of_products(*[part] * len(factors))
            assert np.array_equal(products, search.total_of_products(*factors)[:, r : r + 8])


def test_affine_blocks_on_a_grid_are_recovered() -> None:
    codes = np.concatenate([[0, 15], RNG.integers(0, 16, 30)]).astype(F32).reshape(32, 1, 1)
    d, m = lanes(0.25, 0.5, 2), lanes(-3, 1, 0)
    weights = RNG.random((32, 1, 8)).astype(F32) + F32(0.1)
    fitted = affine.fit_blocks(codes * d + m, weights, 15, [(-0.5, 0), (0, 0), (0.5, 0)])
    np.testing.assert_allclose(fitted[0], d, rtol=1e-6)
    np.testing.assert_allclose(fitted[1], m, atol=1e-6)
    np.testing.assert_allclose(fitted[2], 1, rtol=1e-5)


def test_symmetric_blocks_on_a_grid_are_recovered() -> None:
    codes = np.concatenate([[-8, 7], RNG.integers(-8, 8, 30)]).astype(F32).reshape(32, 1, 1)
    d = lanes(0.25, -0.5, 2)
    weights = RNG.random((32, 1, 8)).astype(F32) + F32(0.1)
    fitted, gain = symmetric.fit_blocks(codes * d, weights, EIGHT, [-1, 0, 1])
    np.testing.assert_allclose(fitted, d, rtol=1e-6)
    np.testing.assert_allclose(gain, 1, rtol=1e-5)


def test_candidates_that_need_no_clipping_stay_within_the_codes() -> None:
    x = RNG.standard_normal((16, 1, 800)).astype(F32)
    extreme = np.abs(x).max(axis=0)
    for largest in (7.49, 7.51, 9.0):
        codes = EIGHT.nearest(x, F32(largest) / extreme, np.empty_like(x), largest)
        assert (codes.min(), codes.max()) == (-8 if largest > 7.5 else -7, 7)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-30, 15))
def test_more_candidates_never_raise_the_error_of_a_sub_block(seed: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((32, 1, 8)) * 2.0**exponent).astype(F32)
    weights = rng.random(x.shape).astype(F32) + F32(0.01)

    def error(deltas: list[float]) -> np.ndarray:
        data = symmetric._Weighted(x, weights, EIGHT)
        scale, _ = symmetric.search(data, deltas)
        data.moments(rounding.reciprocal(scale), out=np.empty((2, *scale.shape), F32))
        return (weights * (x - scale * data.codes) ** 2).sum(axis=0, dtype=np.float64)

    few, many = error([0.0]), error([0.0, -1.5, -0.7, 0.7])
    # The judgement is on the codes before the last rounding, which can only lower the error.
    assert many.sum() <= few.sum() * 1.02


def test_fits_leave_their_arguments_alone() -> None:
    x = RNG.standard_normal((16, 16, 8)).astype(F32)
    weights = RNG.random(x.shape).astype(F32) + F32(0.1)
    before = x.copy(), weights.copy()
    x.flags.writeable = weights.flags.writeable = False
    for w in (None, weights):
        affine.fit_super_blocks(x, w, 3, 15, [(0, 0), (0, 0.3)], passes=2)
        symmetric.fit_super_blocks(x, w, EIGHT, 32, [0, 0.5])
    assert np.array_equal(x, before[0])
    assert np.array_equal(weights, before[1])
