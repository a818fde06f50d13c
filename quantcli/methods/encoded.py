"""What a method returns: bytes, and what they cost against the weights they stand for."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from quantcli.errors import IntegrityError
from quantcli.tensor_types import Deviation, TensorType


@dataclass(frozen=True)
class Cost:
    """Error sums over some weights of a tensor; pieces of a tensor add up.

    Methods that look at outputs give the squared error of those, and that of rounding to nearest.
    """

    weights: int = 0
    squared_weight: float = 0.0
    squared_error: float = 0.0
    max_error: float = 0.0
    flushed: int = 0  # blocks of non-zero weights too small for their type's scale
    output_error: float = 0.0
    rounding_error: float = 0.0
    unreached: int = 0  # matrices of experts that saw too few tokens for the method

    def __add__(self, other: Self) -> "Cost":
        return Cost(
            self.weights + other.weights,
            self.squared_weight + other.squared_weight,
            self.squared_error + other.squared_error,
            max(self.max_error, other.max_error),
            self.flushed + other.flushed,
            self.output_error + other.output_error,
            self.rounding_error + other.rounding_error,
            self.unreached + other.unreached,
        )

    @property
    def of_rounding(self) -> float | None:
        """Squared error of the outputs relative to that of rounding to nearest, if both are known.

        1 where the method did no better, and rounding to nearest was kept.
        """
        return self.output_error / self.rounding_error if self.rounding_error else None

    @property
    def rmse(self) -> float:
        """Root of the mean squared error per weight."""
        return (self.squared_error / self.weights) ** 0.5 if self.weights else 0.0

    @property
    def relative_error(self) -> float:
        """||w - w'|| / ||w||, 0 for an all-zero tensor."""
        return (self.squared_error / self.squared_weight) ** 0.5 if self.squared_weight else 0.0


@dataclass(frozen=True)
class Encoded:
    """Rows of one tensor in one tensor type: packed uint8 [rows, row_bytes] and its cost."""

    packed: np.ndarray
    cost: Cost


def rounded(
    w: np.ndarray, importance: np.ndarray | None, kind: TensorType, *, first_row: int = 0
) -> Encoded:
    """Rows w float32 [rows, n] by kind.encode, with what that costs.

    Raises IntegrityError for a stored scale that is not finite, BadInputError as encode does.
    """
    deviation = Deviation()
    packed = kind.encode(w, importance, first_row=first_row, deviation=deviation)
    return _encoded(packed, kind, w.size, deviation)


def measured(w: np.ndarray, packed: np.ndarray, kind: TensorType) -> Encoded:
    """Decode what was packed and compare it with the float32 rows w [rows, n].

    Raises IntegrityError for a stored scale that is not finite.
    """
    return _encoded(packed, kind, w.size, kind.deviation_of(packed, w))


def _encoded(packed: np.ndarray, kind: TensorType, weights: int, found: Deviation) -> Encoded:
    if not kind.scales_finite(packed):
        raise IntegrityError(f"a scale of {kind.name} is not finite")
    sums = found.squared_weight, found.squared_error, found.max_error, found.flushed
    return Encoded(packed, Cost(weights, *sums))
