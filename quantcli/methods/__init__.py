"""Back-ends that choose the codes: one file each.

A method sees tensor types only through their contract, so every method works with every type.
"""

from dataclasses import dataclass

from quantcli.errors import UsageError


@dataclass(frozen=True)
class MethodInfo:
    """What `quantcli list methods` says about a back-end.

    folds: it moves scales from a linear's columns into what stands before it; compensates: it
    chooses a code so that it makes up for the errors of those before.
    """

    name: str
    summary: str
    folds: bool = False
    compensates: bool = False

    @property
    def calibrates(self) -> bool:
        """Whether it runs a text through the model while it quantizes."""
        return self.folds or self.compensates


METHODS = {
    "rtn": MethodInfo(
        "rtn",
        "round to nearest on scales searched per block, weighted by an imatrix if there is one",
    ),
    "gptq": MethodInfo(
        "gptq",
        "choose codes so that errors cancel in each layer's outputs, block by block",
        compensates=True,
    ),
    "awq": MethodInfo(
        "awq",
        "scale columns that see large inputs before rounding, folded into the layer before",
        folds=True,
    ),
    "awq+gptq": MethodInfo("awq+gptq", "awq's scales, then gptq", folds=True, compensates=True),
}


def method_info(name: str) -> MethodInfo:
    """The method of that name.

    Raises:
        UsageError: when there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; available: {', '.join(METHODS)}")
    return METHODS[name]
