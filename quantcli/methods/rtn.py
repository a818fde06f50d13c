"""Round to nearest: every weight goes to the closest code of its block's searched scale."""

from collections.abc import Iterable

import numpy as np

from quantcli.methods.encoded import Encoded, measured
from quantcli.tensor_types import TensorType


def quantize(
    w: np.ndarray,
    importance: np.ndarray | None,
    types: Iterable[TensorType],
    *,
    first_row: int = 0,
) -> dict[str, Encoded]:
    """Encode float32 rows w [rows, n] in each type; importance is float32 [n] or None.

    `first_row` is where w begins in its tensor. Raises BadInputError for values that a type
    cannot hold, see tensor_types.check_values.
    """
    return {
        kind.name: measured(w, kind.encode(w, importance, first_row=first_row), kind)
        for kind in types
    }
