"""The knapsack of tensor types against brute force and dynamic programming."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli.errors import UsageError
from quantcli.recipes.allocate import Point, allocate

Points = dict[str, list[Point]]


def make(seed: int, tensors: int, types: int = 5, unit: int = 32) -> Points:
    """Tensors of very different sizes and effects, with errors that about halve per step."""
    rng = np.random.default_rng(seed)
    points = {}
    for i in range(tensors):
        weights = unit * int(rng.integers(1, 40))
        sizes = np.cumsum(rng.integers(1, 4, types)) * weights
        errors = 10 ** rng.uniform(-6, -2) * np.cumprod(rng.uniform(0.1, 0.9, types))
        points[f"t{i}"] = [
            Point(f"Q{j}", int(size), float(error))
            for j, (size, error) in enumerate(zip(sizes, errors, strict=True))
        ]
    return points


def total(points: Points, types: dict[str, str]) -> tuple[int, float]:
    """Bytes and error of an allocation."""
    found = [next(p for p in points[name] if p.type == kind) for name, kind in types.items()]
    return sum(p.nbytes for p in found), sum(p.error for p in found)


def span(points: Points) -> tuple[int, int]:
    """Bytes in the smallest and in the largest types."""
    sizes = [[p.nbytes for p in found] for found in points.values()]
    return sum(map(min, sizes)), sum(map(max, sizes))


def best_by_brute_force(points: Points, budget: int) -> float:
    return min(
        sum(p.error for p in combination)
        for combination in itertools.product(*points.values())
        if sum(p.nbytes for p in combination) <= budget
    )


def best_by_dynamic_programming(points: Points, budget: int, unit: int) -> float:
    """Exact where all sizes are multiples of `unit`."""
    room = budget // unit
    least = np.zeros(room + 1)
    for found in points.values():
        after = np.full(room + 1, np.inf)
        for p in found:
            size = p.nbytes // unit
            if size <= room:
                after[size:] = np.minimum(after[size:], least[: room + 1 - size] + p.error)
        least = after
    return float(least[room])


def test_close_to_brute_force() -> None:
    ratios = []
    for seed, share in itertools.product(range(12), (0.1, 0.3, 0.5, 0.7, 0.9)):
        points = make(seed, 6, 4)
        least, most = span(points)
        budget = least + int(share * (most - least))
        nbytes, error = total(points, allocate(points, budget))
        assert nbytes <= budget
        ratios.append(error / best_by_brute_force(points, budget))
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) <= 1.02
    assert max(ratios) <= 1.25


@pytest.mark.parametrize("seed", range(4))
def test_very_close_to_the_optimum_for_many_tensors(seed: int) -> None:
    points = make(seed, 60)
    least, most = span(points)
    for share in (0.2, 0.5, 0.8):
        budget = least + int(share * (most - least))
        nbytes, error = total(points, allocate(points, budget))
        assert 0.99 * budget <= nbytes <= budget
        assert error <= 1.005 * best_by_dynamic_programming(points, budget, 32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tensors=st.integers(1, 12), share=st.floats(0, 1.2))
def test_never_above_the_budget_nor_worse_than_one_type_for_all(
    seed: int, tensors: int, share: float
) -> None:
    points = make(seed, tensors)
    least, most = span(points)
    budget = least + int(share * (most - least))
    types = allocate(points, budget)
    nbytes, error = total(points, types)
    assert types.keys() == points.keys()
    assert nbytes <= budget
    for kind in ("Q0", "Q1", "Q2", "Q3", "Q4"):
        same_bytes, same_error = total(points, dict.fromkeys(points, kind))
        assert same_bytes > budget or error <= same_error * 1.02


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), tensors=st.integers(1, 10))
def test_more_bytes_hardly_ever_cost_quality(seed: int, tensors: int) -> None:
    points = make(seed, tensors)
    least, most = span(points)
    budgets = np.linspace(least, most, 7).astype(int)
    errors = [total(points, allocate(points, int(budget)))[1] for budget in budgets]
    for small, large in itertools.pairwise(errors):
        assert large <= 1.1 * small
    assert errors[-1] == pytest.approx(sum(found[-1].error for found in points.values()))


def test_a_type_that_another_beats_is_never_chosen() -> None:
    points = {"a": [Point("small", 10, 2.0), Point("bad", 20, 3.0), Point("large", 30, 1.0)]}
    assert allocate(points, 25) == {"a": "small"}
    assert allocate(points, 30) == {"a": "large"}


def test_a_step_that_does_not_fit_hinders_no_other_tensor() -> None:
    points = {
        "large": [Point("s", 1000, 9.0), Point("m", 9000, 1.0), Point("l", 9010, 0.5)],
        "small": [Point("s", 10, 0.3), Point("l", 20, 0.1)],
    }
    assert allocate(points, 1050) == {"large": "s", "small": "l"}


def test_rest_of_the_budget_is_spent_on_what_gains_most() -> None:
    # No step along the hulls fits, but the point above the hull does.
    points = {"a": [Point("s", 0, 8.0), Point("m", 60, 7.0), Point("l", 100, 0.0)]}
    assert allocate(points, 80) == {"a": "m"}


def test_two_tensors_exchange_bytes() -> None:
    # By gain per byte the first step is a's, which leaves no room for b; b alone is better.
    points = {
        "a": [Point("s", 0, 10.0), Point("l", 60, 0.0)],
        "b": [Point("s", 0, 15.0), Point("l", 100, 0.0)],
    }
    assert allocate(points, 100) == {"a": "s", "b": "l"}


def test_a_budget_too_small_says_what_is_needed() -> None:
    points = {"a": [Point("s", 70, 1.0)], "b": [Point("s", 50, 1.0), Point("l", 90, 0.0)]}
    with pytest.raises(UsageError, match=r"budget of 119 bytes.* need 120"):
        allocate(points, 119)
    assert allocate(points, 120) == {"a": "s", "b": "s"}


def test_nothing_to_allocate() -> None:
    assert allocate({}, 0) == {}


def test_many_tensors_of_equal_points_are_settled_quickly_and_alike() -> None:
    found = [Point(f"Q{j}", 1000 * (j + 2), 0.3**j) for j in range(7)]
    points = {f"t{i}": list(found) for i in range(300)}
    first, second = (allocate(points, 1_500_000) for _ in range(2))
    assert first == second
    assert total(points, first)[0] == 1_500_000
