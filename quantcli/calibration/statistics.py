"""Statistics of what flows into the linears, gathered while a transformer runs.

Tokens are cut into pieces of PIECE_TOKENS, counted from each site's first token on, and H into
panels of PANEL columns: results do not depend on how many tokens come at a time nor, with BLAS at
one thread, on the number of threads. What single experts see comes in odd numbers and is added at
once, lest the rests of thousands pile up: there the tiles of the transformer are the pieces.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantcli.errors import BadInputError
from quantcli.transformer import Site

PIECE_TOKENS = 512
PANEL = 1024


@dataclass(frozen=True)
class Wanted:
    """What to compute: sums of x^2, means of |x|, H = XᵀX."""

    squares: bool = False
    mean_abs: bool = False
    hessian: bool = False


@dataclass(frozen=True)
class SiteStatistics:
    """Of one site's input x float32 [count, n]; None where it was not asked for.

    squares: sums of x^2, float64 [n]; mean_abs: float64 [n]; hessian: XᵀX, float32 [n, n].
    weights: GGUF names of the linears that share the input; expert: see Site.
    """

    weights: tuple[str, ...]
    expert: int | None
    count: int
    squares: np.ndarray | None
    mean_abs: np.ndarray | None
    hessian: np.ndarray | None


class Statistics:
    """A tap: call it with (site, x float32 [tokens, n]), then `take` what came together."""

    def __init__(self, wanted: Wanted, threads: int = 1) -> None:
        self._wanted, self._threads = wanted, threads
        self._sums: dict[str, _Sums] = {}

    def __call__(self, site: Site, x: np.ndarray) -> None:
        """Add tokens.

        Raises: BadInputError (a value is not finite; naming the site).
        """
        if site.name not in self._sums:
            self._sums[site.name] = _Sums(site, x.shape[1], self._wanted, self._threads)
        self._sums[site.name].add(x)

    @property
    def sites(self) -> list[str]:
        """Names of the sites seen and not yet taken, in order."""
        return list(self._sums)

    def take(self, name: str) -> SiteStatistics:
        """The statistics of one site, which are forgotten here."""
        return self._sums.pop(name).finish()


class _Sums:
    """Running sums of one site."""

    def __init__(self, site: Site, n: int, wanted: Wanted, threads: int) -> None:
        self._site, self._threads, self._count = site, threads, 0
        self._squares = np.zeros(n) if wanted.squares else None
        self._abs = np.zeros(n) if wanted.mean_abs else None
        self._hessian = np.zeros((n, n), np.float32) if wanted.hessian else None
        self._rest = np.empty((0, n), np.float32)

    def add(self, x: np.ndarray) -> None:
        """Add whole pieces; keep the rest for later."""
        if self._site.expert is not None:
            self._add_piece(x)
            return
        if len(self._rest):
            missing = PIECE_TOKENS - len(self._rest)
            self._rest = np.concatenate([self._rest, x[:missing]])
            x = x[missing:]
            if len(self._rest) < PIECE_TOKENS:
                return
            self._add_piece(self._rest)
        whole = len(x) - len(x) % PIECE_TOKENS
        for start in range(0, whole, PIECE_TOKENS):
            self._add_piece(x[start : start + PIECE_TOKENS])
        self._rest = x[whole:].copy()

    def finish(self) -> SiteStatistics:
        """Everything, the rest included."""
        if len(self._rest):
            self._add_piece(self._rest)
        if self._hessian is not None:
            _mirror(self._hessian)
        return SiteStatistics(
            weights=self._site.weights,
            expert=self._site.expert,
            count=self._count,
            squares=self._squares,
            mean_abs=None if self._abs is None else self._abs / self._count,
            hessian=self._hessian,
        )

    def _add_piece(self, x: np.ndarray) -> None:
        self._count += len(x)
        with np.errstate(all="ignore"):  # what is not finite is found below
            squares = np.add.reduce(np.square(x), axis=0)
        if not np.isfinite(squares).all():
            raise BadInputError(
                f"activations at {self._site.name!r} are not finite: the model's weights or its "
                "configuration are broken"
            )
        if self._squares is not None:
            self._squares += squares
        if self._abs is not None:
            self._abs += np.add.reduce(np.abs(x), axis=0)
        if self._hessian is not None:
            _add_gram(self._hessian, x, self._threads)


def _add_gram(h: np.ndarray, x: np.ndarray, threads: int) -> None:
    """Add XᵀX to the lower triangle of h, panel by panel."""

    def add(start: int) -> None:
        stop = min(start + PANEL, len(h))
        h[start:stop, :stop] += x[:, start:stop].T @ x[:, :stop]

    # The longest panels first, so that threads finish together.
    starts = range(0, len(h), PANEL)[::-1]
    if threads == 1 or len(starts) == 1:
        for start in starts:
            add(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(add, starts))


def _mirror(h: np.ndarray) -> None:
    """Copy the lower triangle to the upper one, in place."""
    for start in range(0, len(h), PANEL):
        stop = start + PANEL
        square = h[start:stop, start:stop]
        square[:] = np.tril(square) + np.tril(square, -1).T
        h[start:stop, stop:] = h[stop:, start:stop].T
