"""What to do about tensors whose row does not divide into the blocks of the wanted type."""

from collections.abc import Sequence

from quantcli.errors import BadInputError, UsageError
from quantcli.recipes.choose import Choice

POLICIES = ("error", "warn", "allow")


def check_fallbacks(choices: Sequence[Choice], policy: str) -> list[str]:
    """Lines to show to the user: one per kind of fallback with "warn", none with "allow".

    Raises:
        BadInputError: with "error", when there is a fallback; names all kinds.
        UsageError: for an unknown policy.
    """
    if policy not in POLICIES:
        raise UsageError(f"--on-fallback {policy[:40]!r}: expected one of {', '.join(POLICIES)}")
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for choice in choices:
        if choice.fallback:
            key = (choice.wanted, choice.type, choice.fallback)
            kinds.setdefault(key, []).append(choice.name)
    lines = [_line(*key, names) for key, names in kinds.items()]
    if lines and policy == "error":
        raise BadInputError(
            f"{'; '.join(lines)}; choose another type for them with --tensor-type, "
            "or accept the fallback with --on-fallback warn"
        )
    return lines if policy == "warn" else []


def _line(wanted: str, used: str, reason: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}: {used} instead of {wanted} ({reason})"
