"""The contract of tensor types: round trips, independence of blocks, edge values, bad input."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli import tensor_types
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.kernels import tiles
from quantcli.tensor_types import Deviation, TensorType, check_values

F32 = np.float32
ALL = [tensor_types.get(name) for name in tensor_types.names()]
QUANTIZED = [type for type in ALL if type.quantized]
K_TYPES = [type for type in QUANTIZED if type.block_size == 256]
BLOCKS_OF_32 = [type for type in QUANTIZED if type.block_size == 32]
SEEDS = st.integers(0, 2**32 - 1)

every_type = pytest.mark.parametrize("type", ALL, ids=lambda type: type.name)
quantized_type = pytest.mark.parametrize("type", QUANTIZED, ids=lambda type: type.name)
k_type = pytest.mark.parametrize("type", K_TYPES, ids=lambda type: type.name)


def random_records(type: TensorType, rng: np.random.Generator, count: int) -> np.ndarray:
    """Records of random bits, their fp16 fields finite (for BF16 and F32: the weights)."""
    records = rng.integers(0, 256, (count, type.type_size), np.uint8).view(type.record)[:, 0]
    for field in type.record.names or ():
        if type.record[field].kind == "f" or type.name == "BF16":
            scales = 2.0 ** rng.integers(-14, 4, count) * rng.uniform(-1, 1, count)
            if type.name == "BF16":
                records[field] = scales.astype(F32).view(np.uint32) >> 16
            else:
                records[field] = scales
    return records


def code_limits(type: TensorType) -> tuple[int, int]:
    """The lowest and the highest code."""
    if type.name == "Q8_0":
        return -127, 127
    return 0, 2 ** int(type.name.removeprefix("I")[1]) - 1


def bell(seed: int, rows: int, cols: int, scale: float = 0.02) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, cols)) * scale).astype(F32)


def steep(seed: int, cols: int) -> np.ndarray:
    return np.exp(1.5 * np.random.default_rng(seed).standard_normal(cols)).astype(F32)


# Round trips


@every_type
@settings(max_examples=20)
@given(seed=SEEDS)
def test_pack_restores_every_record(type: TensorType, seed: int) -> None:
    records = random_records(type, np.random.default_rng(seed), 16)
    codes, grid = type.unpack(records)
    lanes = min(type.block_size, 4)
    assert codes.shape == (type.block_size // lanes, 16 * lanes)
    assert type.pack(codes, grid).tobytes() == records.tobytes()


@quantized_type
def test_every_code_and_every_integer_scale_survives(type: TensorType) -> None:
    codes, grid = type.unpack(random_records(type, np.random.default_rng(1), 256))
    lowest, highest = code_limits(type)
    span = highest - lowest + 1
    codes = (np.arange(codes.size).reshape(codes.shape) * 7 % span + lowest).astype(codes.dtype)
    assert set(np.unique(codes)) == set(range(lowest, highest + 1))
    sweep = np.arange(256) + 3 * np.arange(type.sub_blocks)[:, None]
    if hasattr(grid, "mins"):
        n = 16 if type.name == "Q2_K" else 64
        grid = grid._replace(
            scales=(sweep % n).astype(F32), mins=((sweep + 5) // 2 % n).astype(F32)
        )
    elif hasattr(grid, "scales"):
        n = 256 if type.name == "Q6_K" else 64
        grid = grid._replace(scales=(sweep % n - n // 2).astype(F32))
    again, grid_again = type.unpack(type.pack(codes, grid))
    assert np.array_equal(again, codes)
    for stored, kept in zip(grid_again, grid, strict=True):
        assert np.array_equal(stored, kept)


@quantized_type
@settings(max_examples=20)
@given(seed=SEEDS)
def test_round_finds_the_nearest_code_on_any_grid(type: TensorType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, grid = type.unpack(random_records(type, rng, 8))
    tile = rng.uniform(-1, 1, codes.shape) * np.abs(type.dequantize(codes, grid)).max() * 1.2
    tile = tile.astype(F32)
    rounded = type.round(tile.copy(), grid)
    error = np.abs(type.dequantize(rounded, grid) - tile)
    for change in (-1, 1):
        other = np.clip(rounded.astype(int) + change, *code_limits(type)).astype(codes.dtype)
        other_error = np.abs(type.dequantize(other, grid) - tile)
        assert (error <= other_error + 1e-5 * np.abs(tile).max()).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_fit_without_importance_leaves_nothing_to_clip(name: str, seed: int) -> None:
    type, rng = tensor_types.get(name), np.random.default_rng(seed)
    w = bell(seed, 64, 32).astype(np.float64)
    w /= np.abs(w).max(axis=1, keepdims=True)
    w[::2, rng.permutation(32)[:2]] = 1, -1
    w *= 2.0 ** rng.uniform(-149, np.log2(type.max_abs), (64, 1))  # down to subnormals
    tile = tiles.load(w.astype(F32))
    grid = type.fit(tile, None)
    assert grid.covers
    clipped = type.round(tile.copy(), grid._replace(covers=False))
    assert np.array_equal(type.round(tile, grid), clipped)


@every_type
@settings(max_examples=10)
@given(seed=SEEDS)
def test_codes_of_decoded_weights_are_the_codes(type: TensorType, seed: int) -> None:
    tile = tiles.load(bell(seed, 8, type.block_size))
    codes, grid = type.unpack(type.pack(type.round(tile, g := type.fit(tile, None)), g))
    w = type.dequantize(codes, grid)
    assert np.array_equal(type.dequantize(type.round(w.copy(), grid), grid), w)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_encoding_decoded_weights_changes_nothing(name: str) -> None:
    type = tensor_types.get(name)
    once = type.encode(bell(3, 16, 512))
    assert np.array_equal(type.encode(type.decode(once)), once)


# Every block stands alone


@every_type
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_do_not_depend_on_grouping(
    type: TensorType, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, importance = bell(4, 37, 768), steep(5, 768) if weighted else None
    w[::5] *= 100
    whole = type.encode(w, importance)
    decoded = type.decode(whole)
    assert whole.shape == (37, type.row_bytes(768))
    by_row = [type.encode(w[i : i + 1], importance) for i in range(37)]
    assert np.array_equal(np.concatenate(by_row), whole)
    for tile_weights in (1, 2048, 5000):  # tiles of parts of rows, of odd runs of blocks
        monkeypatch.setattr(tiles, "TILE_WEIGHTS", tile_weights)
        assert np.array_equal(type.encode(w, importance), whole)
        assert type.decode(whole).tobytes() == decoded.tobytes()


@every_type
def test_one_block_alone_and_no_block(type: TensorType) -> None:
    w = bell(6, 3, type.block_size)
    whole = type.encode(w)
    for i in range(3):
        assert np.array_equal(type.encode(w[i : i + 1]), whole[i : i + 1])
        assert np.array_equal(type.decode(whole[i : i + 1]), type.decode(whole)[i : i + 1])
    assert type.encode(w[:0]).shape == (0, type.type_size)
    assert type.decode(whole[:0]).shape[0] == 0


@every_type
def test_encode_takes_any_memory_layout_and_leaves_it_alone(type: TensorType) -> None:
    w, importance = bell(7, 6, 512), steep(8, 512)
    expected = type.encode(w.copy(), importance)
    strided = np.asfortranarray(w)
    strided.flags.writeable = importance.flags.writeable = False
    assert np.array_equal(type.encode(strided, importance), expected)


@every_type
def test_threads_make_the_same_bytes(type: TensorType) -> None:
    chunks, importance = [bell(seed, 64, 512) for seed in range(8)], steep(9, 512)
    alone = [type.encode(w, importance) for w in chunks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda w: type.encode(w, importance), chunks))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# Importance


def weighted_error(type: TensorType, w: np.ndarray, packed: np.ndarray, row: np.ndarray) -> float:
    error = (type.decode(packed) - w).astype(np.float64) ** 2
    return float(np.sqrt(np.average(error.mean(axis=0), weights=row)))


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        *(("Q4_0", 0.15), ("Q4_1", 0.15), ("Q5_0", 0.15), ("Q5_1", 0.15), ("Q2_K", 0.15)),
        *(("Q3_K", 0.15), ("Q4_K", 0.12), ("Q5_K", 0.15), ("Q6_K", 0.12)),
    ],
)
def test_importance_lowers_the_weighted_error(name: str, gain: float) -> None:
    type, w, row = tensor_types.get(name), bell(10, 64, 512), steep(11, 512)
    plain = weighted_error(type, w, type.encode(w), row)
    assert weighted_error(type, w, type.encode(w, row), row) < (1 - gain) * plain


@quantized_type
def test_only_the_ratios_of_importance_count(type: TensorType) -> None:
    w, row = bell(12, 8, 512), steep(13, 512)
    expected = type.encode(w, row)
    assert np.array_equal(type.encode(w, row * F32(2**20)), expected)
    assert np.array_equal(type.encode(w, row * F32(2**-60)), expected)
    assert np.array_equal(type.encode(w, np.zeros_like(row)), type.encode(w))


@quantized_type
@pytest.mark.parametrize("kept", [1, 40, 500])
def test_columns_without_importance_still_get_sensible_weights(type: TensorType, kept: int) -> None:
    w, row = bell(14, 16, 512), np.zeros(512, F32)
    row[np.random.default_rng(15).permutation(512)[:kept]] = 1e8
    decoded = type.decode(type.encode(w, row))
    assert np.isfinite(decoded).all()
    assert np.sqrt(np.mean((decoded - w) ** 2)) < 0.8 * w.std()
    important = row > 0
    plain = type.decode(type.encode(w))
    error, plain_error = (np.sum((x - w)[:, important] ** 2) for x in (decoded, plain))
    assert error <= plain_error


@every_type
def test_nothing_is_left_in_scratch_memory_that_changes_later_bytes(type: TensorType) -> None:
    w = bell(24, 7, 512)
    packed = type.encode(w)
    for other in ALL[::4]:
        other.decode(other.encode(bell(25, 40, 512, 3.0), steep(26, 512)))
        assert np.array_equal(type.encode(w), packed)
    assert type.decode(packed).tobytes() == type.decode(packed.copy()).tobytes()


@quantized_type
@settings(max_examples=6)
@given(
    seed=SEEDS,
    exponents=st.lists(st.integers(-40, 14), min_size=1, max_size=3),
    zeros=st.floats(0, 1),
    spikes=st.integers(0, 4),
)
def test_any_weights_and_importance_give_finite_weights_of_their_size(
    type: TensorType, seed: int, exponents: list[int], zeros: float, spikes: int
) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((2, 512)) * 2.0 ** rng.choice(exponents, (2, 512))
    w[rng.random(w.shape) < zeros] = 0
    importance = np.exp(3 * rng.standard_normal(512)) * (rng.random(512) < 0.7)
    importance[rng.permutation(512)[:spikes]] = 1e30
    w, importance = w.astype(F32), importance.astype(F32)
    for row in (None, importance):
        packed = type.encode(w, row)
        decoded = type.decode(packed)
        assert type.scales_finite(packed)
        largest = np.abs(w).reshape(-1, type.block_size).max(axis=1, keepdims=True)
        limit = np.maximum(2 * largest, 2.0**-24 * 128 * 128)
        assert (np.abs(decoded).reshape(-1, type.block_size) <= limit).all()
        by_row = [type.encode(w[i : i + 1], row) for i in range(2)]
        assert np.array_equal(np.concatenate(by_row), packed)


# Values


def edge_rows(cols: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(16)
    noise = rng.standard_normal(cols)
    lone, two = np.zeros(cols), 0.01 * noise
    lone[cols // 3] = -3.0
    two[5], two[cols - 1] = 50.0, -70.0
    return {
        "zeros": np.zeros(cols),
        "signed zeros": np.where(noise < 0, -0.0, 0.0),
        "float32 denormals": noise * 1e-41,
        "fp16 denormals": noise * 1e-6,
        "tiny": noise * 1e-20,
        "huge": noise * 1e4,
        "lone": lone,
        "two": two,
        "constant": np.full(cols, 0.37),
        "constant negative": np.full(cols, -0.37),
        "positive": np.abs(noise) + 0.5,
        "negative": -np.abs(noise) - 0.5,
        "mixed sizes": noise * 10.0 ** rng.integers(-9, 4, cols),
    }


@every_type
@pytest.mark.parametrize("weighted", [False, True])
def test_edge_values_are_finite_and_near(type: TensorType, weighted: bool) -> None:
    importance = steep(17, 512) if weighted else None
    for name, row in edge_rows(512).items():
        w = row.astype(F32)[None]
        packed = type.encode(w, importance)
        decoded = type.decode(packed)
        assert type.scales_finite(packed), name
        assert np.isfinite(decoded).all(), name
        if not w.any():
            assert not decoded.any(), name
        # About a step of the coarsest type, or the largest code times half an fp16 step.
        size = np.abs(w.reshape(-1, type.block_size)).max(axis=1, keepdims=True)
        error = np.abs(decoded - w).reshape(-1, type.block_size)
        limit = 0.8 if weighted else 0.55
        floor = 2.0**-25 * (127 if type.name in ("Q8_0", "IQ4_NL") else 16)
        assert (error <= np.maximum(limit * size, floor)).all(), name


@quantized_type
def test_constant_blocks_are_kept(type: TensorType) -> None:
    for value in (0.5, -0.5, 0.37, -0.37):
        decoded = type.decode(type.encode(np.full((1, 512), value, F32)))
        assert np.abs(decoded - F32(value)).max() <= 0.004 * abs(value)


@k_type
def test_small_super_blocks_are_not_lost_to_a_subnormal_d(type: TensorType) -> None:
    w = bell(18, 8, 512, 2e-6)
    decoded = type.decode(type.encode(w))
    assert type.deviation_of(type.encode(w), w).flushed == 0
    assert np.sqrt(np.mean((decoded - w) ** 2)) < 0.5 * w.std()


@every_type
@pytest.mark.parametrize("weighted", [False, True])
def test_max_abs_encodes_without_overflow(type: TensorType, weighted: bool) -> None:
    top = F32(type.max_abs)
    shapes = np.random.default_rng(19).uniform(-1, 1, (6, 512)).astype(F32)
    shapes[1], shapes[2] = 1, -1
    shapes[3] = np.where(np.arange(512) % 2, 1, -1)
    shapes[4, 1:] = 0
    shapes[5] = np.abs(shapes[5])
    shapes[:, 0] = 1
    w = shapes * top
    packed = type.encode(w, steep(20, 512) if weighted else None)
    assert type.scales_finite(packed)
    decoded = type.decode(packed)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded[1:4] / top - shapes[1:4])[:, 1:].max() < 0.2
    if type.name != "F32":
        w[4, 7] = np.nextafter(top, F32(np.inf))
        with pytest.raises(BadInputError, match=r"row 4, column 7 is beyond .*BF16 or F32"):
            type.encode(w)


# Bad input


@every_type
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_position(type: TensorType, value: float) -> None:
    w = bell(21, 4, 512)
    w[2, 300] = value
    with pytest.raises(BadInputError, match=r"^weight -?(nan|inf) at row 1002, column 300 is not"):
        type.encode(w, first_row=1000)


def test_bfloat16_beyond_fp16_is_refused_for_f16() -> None:
    w = np.zeros((2, 256), F32)
    w[1, 3] = -65536
    type = tensor_types.get("F16")
    with pytest.raises(BadInputError, match=r"-65536 at row 1, column 3 is beyond 65504.*F16"):
        check_values(w, type)
    check_values(w, tensor_types.get("BF16"))
    check_values(w[:0], type)


@quantized_type
def test_rows_that_are_not_whole_blocks_are_refused(type: TensorType) -> None:
    with pytest.raises(BadInputError, match=f"row of 272 weights .* {type.name}'s block"):
        type.encode(np.zeros((2, 272), F32))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.ones(511, F32), "another model"),
        (np.ones((1, 512), F32), "another model"),
        (np.full(512, -1, F32), "-1 of column 0"),
        (np.where(np.arange(512) == 9, np.nan, 1).astype(F32), "nan of column 9"),
        (np.where(np.arange(512) == 8, np.inf, 1).astype(F32), "inf of column 8"),
    ],
)
def test_bad_importance_is_refused(row: np.ndarray, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        tensor_types.get("Q4_K").encode(bell(22, 1, 512), row)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'Q9_K' is not one of F32"):
        tensor_types.get("Q9_K")
    with pytest.raises(UnsupportedError, match="id 99 is not one of"):
        tensor_types.by_id(99)


# Verification of written files


@every_type
def test_scales_finite_sees_each_bad_scale(type: TensorType) -> None:
    packed = type.encode(bell(23, 2, 512))
    assert type.scales_finite(packed)
    for field in type.record.names or ():
        if type.record[field].kind != "f" and type.name != "BF16":
            continue
        for bad in (np.inf, -np.inf, np.nan):
            broken = packed.copy()
            records = broken.reshape(-1).view(type.record)
            value = np.array([bad], F32)
            records[field][1] = value.view(np.uint32)[0] >> 16 if type.name == "BF16" else bad
            assert not type.scales_finite(broken)


# What encoding cost


@every_type
@pytest.mark.parametrize("weighted", [False, True])
def test_encode_tells_what_its_bytes_decode_to(type: TensorType, weighted: bool) -> None:
    w = bell(27, 37, 768) * np.exp(bell(28, 37, 1, 2.0))
    w[3], w[5, 256:512], w[:, 7] = 0, 1e-9, -0.0
    found = Deviation()
    packed = type.encode(w, steep(29, 768) if weighted else None, deviation=found)
    assert found == type.deviation_of(packed, w)
    decoded = type.decode(packed)
    error = decoded.astype(np.float64) - w
    assert found.squared_weight == pytest.approx(np.square(w, dtype=np.float64).sum(), rel=1e-5)
    assert found.squared_error == pytest.approx(np.square(error).sum(), rel=1e-5)
    assert found.max_error == np.abs(decoded - w).max()
    if type.quantized:
        before, after = (x.reshape(-1, type.block_size).any(axis=1) for x in (w, decoded))
        assert found.flushed == (before & ~after).sum()
        assert found.flushed or type.block_size != 32


@every_type
def test_deviations_of_tiles_add_up(type: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    w = bell(30, 37, 768)
    packed = type.encode(w)
    whole, parts = type.deviation_of(packed, w), Deviation()
    packed.flags.writeable = w.flags.writeable = False
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", 5000)
    type.encode(w, deviation=parts)
    for found in (parts, type.deviation_of(packed, w)):
        assert vars(found) == pytest.approx(vars(whole), rel=1e-5)


def test_flushed_blocks_are_counted() -> None:
    w = np.zeros((2, 64), F32)
    w[0, 5], w[0, 31], w[1, 40] = 1e-9, -1e-9, 0.5
    type = tensor_types.get("Q4_0")
    assert type.deviation_of(type.encode(w), w).flushed == 1
    assert type.deviation_of(type.encode(np.zeros_like(w)), w).flushed == 2
    assert type.deviation_of(type.encode(w), np.zeros_like(w)).flushed == 0


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_rounding_keeps_the_strength_of_the_weights(name: str) -> None:
    """<x, x'> equals <x, x>, where the best fit would fall short by its squared relative error."""
    type = tensor_types.get(name)
    w = np.random.default_rng(11).standard_normal((64, 2048)).astype(np.float32)
    kept = float(np.vdot(w, type.decode(type.encode(w))) / np.vdot(w, w))
    assert kept == pytest.approx(1, abs=1e-3)
