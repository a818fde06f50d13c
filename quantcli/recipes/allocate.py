"""Tensor types for a byte budget: a multiple-choice knapsack.

Minimise the sum of the tensors' errors subject to the sum of their bytes. Steps along the lower
convex hull of each tensor's (bytes, error) points, taken by gain per byte, are the Lagrangian
relaxation's optimum at every budget that they hit (Sinha and Zoltners 1979); what is left of the
budget goes to the best steps that fit, and to exchanges between two tensors.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from quantcli.errors import UsageError

MOST_EXCHANGES = 1000


class Point(NamedTuple):
    """One tensor in one type: its size in bytes and the error it adds to the model."""

    type: str
    nbytes: int
    error: float


class Step(NamedTuple):
    """A tensor's change to another point of its front."""

    name: str
    to: int
    nbytes: int
    gain: float


def allocate(points: Mapping[str, Sequence[Point]], budget: int) -> dict[str, str]:
    """The type of each tensor, in at most `budget` bytes together.

    Raises:
        UsageError: when even the smallest types need more.
    """
    fronts = {name: _front(found) for name, found in points.items()}
    chosen = dict.fromkeys(fronts, 0)
    room = budget - sum(front[0].nbytes for front in fronts.values())
    if room < 0:
        raise UsageError(
            f"a budget of {budget} bytes is too small: the smallest types need {budget - room}"
        )
    for name, to in _hull_steps(fronts):
        if _bytes_to(fronts, chosen, name, to) <= room:
            room -= _moved(fronts, chosen, name, to)
    room = _fill(fronts, chosen, room)
    for _ in range(MOST_EXCHANGES):
        if (pair := _exchange(fronts, chosen, room)) is None:
            break
        for step in pair:
            room -= _moved(fronts, chosen, step.name, step.to)
    return {name: fronts[name][index].type for name, index in chosen.items()}


Fronts = Mapping[str, list[Point]]


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both bytes and error, smallest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, point.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    return front


def _hull(front: list[Point]) -> list[int]:
    """The places in a front of its lower convex hull's corners."""
    hull: list[int] = []
    for index, point in enumerate(front):
        while len(hull) > 1 and _slope(front[hull[-2]], front[hull[-1]]) <= _slope(
            front[hull[-2]], point
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(small: Point, large: Point) -> float:
    """Gain per byte."""
    return (small.error - large.error) / (large.nbytes - small.nbytes)


def _hull_steps(fronts: Fronts) -> list[tuple[str, int]]:
    """All steps along the hulls as (tensor, place to go to), the largest gain per byte first."""
    steps = [
        (_slope(front[i], front[j]), name, j)
        for name, front in fronts.items()
        for i, j in pairwise(_hull(front))
    ]
    return [(name, j) for _, name, j in sorted(steps, key=lambda step: -step[0])]


def _bytes_to(fronts: Fronts, chosen: Mapping[str, int], name: str, to: int) -> int:
    return fronts[name][to].nbytes - fronts[name][chosen[name]].nbytes


def _moved(fronts: Fronts, chosen: dict[str, int], name: str, to: int) -> int:
    """Move a tensor in `chosen`; the bytes that it takes."""
    taken = _bytes_to(fronts, chosen, name, to)
    chosen[name] = to
    return taken


def _changes(fronts: Fronts, chosen: Mapping[str, int]) -> list[Step]:
    """Every change of one tensor."""
    return [
        Step(name, j, point.nbytes - front[i].nbytes, front[i].error - point.error)
        for (name, front), i in zip(fronts.items(), chosen.values(), strict=True)
        for j, point in enumerate(front)
        if j != i
    ]


def _fill(fronts: Fronts, chosen: dict[str, int], room: int) -> int:
    """Take the steps that gain most while any fits; the room that stays."""
    while fitting := [s for s in _changes(fronts, chosen) if 0 < s.nbytes <= room]:
        best = max(fitting, key=lambda step: step.gain)
        room -= _moved(fronts, chosen, best.name, best.to)
    return room


def _exchange(fronts: Fronts, chosen: Mapping[str, int], room: int) -> tuple[Step, Step] | None:
    """The changes of two tensors that fit and together gain most; None if none gains."""
    steps = _changes(fronts, chosen)
    nbytes = np.array([step.nbytes for step in steps])
    gains = np.array([step.gain for step in steps])
    owner = np.unique([step.name for step in steps], return_inverse=True)[1] if steps else gains
    least = 1e-9 * sum(fronts[name][index].error for name, index in chosen.items())
    best, pair = least, None
    for i in np.flatnonzero(nbytes > 0):
        fits = (nbytes + nbytes[i] <= room) & (owner != owner[i])
        both = np.where(fits, gains + gains[i], 0.0)
        j = int(both.argmax())
        if both[j] > best:
            best, pair = both[j], (steps[i], steps[j])
    return pair
