"""The inputs of linears of a block, by the names that messages and imatrix files give them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantcli.architectures import wiring
from quantcli.architectures.wiring import MLP
from quantcli.transformer.experts import Experts
from quantcli.transformer.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Site:
    """One input of linears: `name` like "blk.0.attn", `weights` the linears' GGUF names.

    expert: whose matrices of these stacks are meant (or of which head), None where a weight is one
    matrix.
    """

    name: str
    weights: tuple[str, ...]
    expert: int | None = None


Tap = Callable[[Site, np.ndarray], None]


def sites_of(sizes: Hyperparameters, number: int) -> dict[str, Site]:
    """The sites of a block by their short names, in the order in which they run."""

    def site(short: str, linears: tuple[str, ...], expert: int | None = None) -> Site:
        weights = tuple(f"blk.{number}.{name}.weight" for name in linears)
        return Site(f"blk.{number}.{short}", weights, expert)

    found: dict[str, Site] = {}
    experts = sizes.experts_of(number)
    linears_of = sizes.of(number).wiring.sites
    for short, linears in linears_of.items():
        if short == wiring.PER_HEAD[0]:  # one head after the other
            for head in range(sizes.n_head):
                for each in wiring.PER_HEAD:
                    found[f"{each}.{head}"] = site(f"{each}.{head}", linears_of[each], head)
        elif short not in wiring.PER_HEAD and not (experts and short in MLP):
            found[short] = site(short, linears)
    if experts is None:
        return found
    found["ffn"] = site("ffn", (wiring.ROUTER, *shared_linears(sizes, experts)))
    for expert in range(experts.count):
        for short, linears in wiring.EXPERT.items():
            found[f"{short}.{expert}"] = site(f"{short}.{expert}", linears, expert)
    if experts.n_ff_shared:
        found[wiring.SHARED_DOWN] = site(wiring.SHARED_DOWN, (wiring.SHARED_DOWN,))
    return found


def matrix(weights: Mapping[str, np.ndarray], name: str, site: Site) -> np.ndarray:
    """A site's weight, or its matrix of a stack."""
    return weights[name] if site.expert is None else weights[name][site.expert]


def shared_linears(sizes: Hyperparameters, experts: Experts) -> tuple[str, ...]:
    """Of a shared expert, those that read what the router reads; none without one."""
    mixture = sizes.wiring.mixture
    if mixture is None or not experts.n_ff_shared:
        return ()
    return (wiring.SHARED_GATE, *wiring.SHARED) if mixture.shared_gate else wiring.SHARED
