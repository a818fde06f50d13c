"""Scales of a block's inputs (AWQ), found on what the float model sees, folded in beforehand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantcli.calibration.moments import hessian
from quantcli.methods.awq import Fold, Kinds, apply_fold, search
from quantcli.methods.experts import Matrices
from quantcli.methods.latent import attend
from quantcli.methods.streams import Stream
from quantcli.transformer.block import Block, rest_of
from quantcli.transformer.sites import Site, matrix

SAMPLE = 512  # tokens whose rounding is simulated


def fold_block(
    block: Block,
    folds: Sequence[Fold],
    stream: Stream,
    outputs: Sequence[Kinds],
    share: float,
    pool: ThreadPoolExecutor,
) -> None:
    """Fold all that can be folded into the weights of a block; its function stays the same.

    stream: the float model before the block; outputs: tensor types by name of each file to come,
    which share the scales; share: see awq.search.
    """
    probe = Stream(stream.x.shape)
    probe.x[...] = stream.x
    probe.enter(block, pool)
    by_site = {fold.site.name: fold for fold in folds}
    found = []

    def look(site: Site, y: np.ndarray) -> None:
        if site.name in by_site:
            fold = by_site.pop(site.name)
            found.append((fold, find_scales(fold, block.weights, y, outputs, share, pool)))

    def visit(site: Site, inputs: list[np.ndarray]) -> list[Matrices]:
        look(site, inputs[0])
        return [{name: matrix(block.weights, name, site) for name in site.weights}]

    if block.sizes.latent:
        attend(block, [probe], visit, pool)
    for short in rest_of(block):
        if not by_site:  # experts, whose inputs are not scaled, come last
            break
        look(block.sites[short], probe.y)
        probe.leave(short, block, pool)
    for fold, s in found:
        apply_fold(block.weights, fold, s)


def find_scales(
    fold: Fold,
    weights: dict[str, np.ndarray],
    y: np.ndarray,
    outputs: Sequence[Kinds],
    share: float,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """s float32 [n] for the inputs y float32 [tokens, n] of a fold's site."""
    step = max(1, len(y) // SAMPLE)
    return search(fold, weights, outputs, hessian(y, pool), y[::step], share=share).s
