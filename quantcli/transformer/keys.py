"""Checked access to GGUF metadata that nobody has checked yet."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantcli.errors import BadInputError, UnsupportedError


class Keys:
    """The numbers below "<arch>."."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._prefix = str(metadata["general.architecture"])

    def name(self, key: str) -> str:
        """The full key."""
        return f"{self._prefix}.{key}"

    def get(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._metadata.get(self.name(key))

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number above 0; with least = 0 it may be 0, which is what no value means then.

        Raises BadInputError, UnsupportedError for one per block.
        """
        value = self.get(key)
        if not least and (value is None or (isinstance(value, np.integer) and value == 0)):
            return 0
        if value is None and default is not None:
            return default
        if isinstance(value, np.ndarray):
            raise UnsupportedError(
                f"metadata: {self.name(key)} differs from block to block: the forward pass does"
                " not compute that, converting works"
            )
        if not isinstance(value, np.integer) or not 0 < value < 2**31:
            raise BadInputError(f"metadata: {self.name(key)} = {value!r:.80} is not a count")
        return int(value)

    def flag(self, key: str) -> bool:
        """True or false. Raises BadInputError."""
        value = self.get(key)
        if not isinstance(value, bool | np.bool_):
            raise BadInputError(f"metadata: {self.name(key)} = {value!r:.80} is not true or false")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Raises BadInputError."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, np.floating) or not (value > 0 and np.isfinite(value)):
            raise BadInputError(f"metadata: {self.name(key)} = {value!r:.80} is not above 0")
        return float(value)
