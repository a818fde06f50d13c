"""How long work tells the outside where it stands; the command line draws it."""

from typing import Protocol


class Progress(Protocol):
    """One stage at a time: `start`, any number of `advance`, `finish`. Amounts are bytes."""

    def start(self, description: str, total_bytes: int) -> None:
        """A new stage begins."""

    def advance(self, n: int) -> None:
        """n more bytes are done; negative when a part starts over."""

    def finish(self) -> None:
        """The stage is over."""


class Silent:
    """Tells nobody."""

    def start(self, description: str, total_bytes: int) -> None:
        """Say nothing."""

    def advance(self, n: int) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""
