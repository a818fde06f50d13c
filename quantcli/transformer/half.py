"""What the files of attention and mixtures ask of the block that they are a half of."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from quantcli.architectures import Wiring
from quantcli.transformer.derivatives import Pull
from quantcli.transformer.experts import Experts
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.sites import Tap


class Half(Protocol):
    """See Block."""

    sizes: Hyperparameters
    wiring: Wiring
    experts: Experts | None
    rope_q: np.ndarray
    rope_k: np.ndarray

    def meet(self, short: str, y: np.ndarray, tap: Tap) -> list[np.ndarray]: ...

    def norm(self, x: np.ndarray, name: str) -> np.ndarray: ...


class HalfPass(Protocol):
    """See BlockPass."""

    sizes: Hyperparameters
    wiring: Wiring
    experts: Experts | None
    rope: dict[str, np.ndarray]

    def norm(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Pull]: ...

    def linears(
        self, shorts: Sequence[str], x: np.ndarray, expert: int | None = None
    ) -> tuple[list[np.ndarray], Callable[[Sequence[np.ndarray]], np.ndarray]]: ...

    def gated(
        self, both: Sequence[str], down: Sequence[str], x: np.ndarray, expert: int | None = None
    ) -> tuple[np.ndarray, Pull]: ...
