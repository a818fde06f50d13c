"""Round to nearest: every weight goes to the closest code of its block's searched scale."""

from collections.abc import Iterable

import numpy as np

from quantcli.methods.encoded import Encoded, rounded
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
    return {kind.name: rounded(w, importance, kind, first_row=first_row) for kind in types}
