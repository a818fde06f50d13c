"""Back-ends that choose the codes: one file each.

A method sees tensor types only through their contract, so every method works with every type.
"""

from dataclasses import dataclass

from quantcli.errors import UsageError


@dataclass(frozen=True)
class MethodInfo:
    """What `quantcli list methods` says about a back-end."""

    name: str
    summary: str


METHODS = {
    "rtn": MethodInfo(
        "rtn",
        "round to nearest on scales searched per block; an imatrix weights the search",
    ),
}


def check_method(name: str) -> str:
    """The canonical name of a method.

    Raises:
        UsageError: when there is no such method.
    """
    if name.lower() not in METHODS:
        raise UsageError(f"unknown method {name!r}; available: {', '.join(METHODS)}")
    return name.lower()
