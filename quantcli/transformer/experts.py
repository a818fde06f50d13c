"""The sizes of a mixture of experts, read from GGUF metadata."""

from dataclasses import dataclass

import numpy as np

from quantcli.architectures import Wiring
from quantcli.architectures.wiring import Mixture
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.transformer.keys import Keys


@dataclass(frozen=True)
class Experts:
    """Of each block: their number, how many a token sees, inner sizes (n_ff_shared: 0 for none).

    scale: of the weights of a token's experts.
    """

    count: int
    used: int
    n_ff: int
    n_ff_shared: int
    scale: float


def read_experts(keys: Keys, wiring: Wiring) -> Experts | None:
    """None without experts. Raises BadInputError, UnsupportedError (a routing not computed)."""
    if wiring.mixture is None or not keys.get("expert_count"):
        return None
    count, used = keys.count("expert_count"), keys.count("expert_used_count")
    if used > count:
        raise BadInputError(
            f"metadata: {keys.name('expert_used_count')} = {used}, but there are {count} experts"
        )
    for key, computed in (("gating_func", 1), ("weights_norm", False), ("group_count", 1)):
        found = keys.get(f"expert_{key}")
        if found is not None and (np.ndim(found) or found != computed):
            raise UnsupportedError(
                f"metadata: {keys.name('expert_' + key)} = {found!r:.80}: the forward pass does not"
                " compute that for this architecture, converting works"
            )
    n_ff = keys.count("feed_forward_length")
    each = n_ff // used if wiring.mixture.divided else n_ff
    n_ff = keys.count("expert_feed_forward_length", each)
    return Experts(
        count=count,
        used=used,
        n_ff=n_ff,
        n_ff_shared=_shared(keys, wiring.mixture, n_ff),
        scale=keys.number("expert_weights_scale", 1.0) if wiring.mixture.scaled else 1.0,
    )


def _shared(keys: Keys, mixture: Mixture, n_ff: int) -> int:
    if not mixture.shared:
        return 0
    if mixture.shared_optional:
        return keys.count("expert_shared_feed_forward_length", least=0)
    if not mixture.shared_gate:  # several as wide as the others, in one
        return n_ff * keys.count("expert_shared_count")
    return keys.count("expert_shared_feed_forward_length", keys.count("feed_forward_length"))
