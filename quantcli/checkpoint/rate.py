"""A token bucket that all processes of a batch on one machine share: one token per hub request.

Who runs a batch sets QUANTCLI_HUB_RATE, requests per five minutes, and QUANTCLI_HUB_BUCKET, the
path of a small file, for its children; without them nobody waits.
"""

import fcntl
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants

from quantcli.errors import UsageError

WINDOW = 300.0  # seconds in which the hub counts requests
BURST_SHARE = 1 / 20  # of the rate
# No honest file says more: it is of another boot, or no bucket.
HORIZON = 12 * WINDOW
_NAME = "QUANTCLI_HUB_"
_FORM = "{:24.6f} {:24.6f}\n"


@dataclass(frozen=True)
class Bucket:
    """Tokens for `rate` requests per window, a twentieth of which may come at once.

    Times are seconds of one clock. `next` is when the next token is there, `closed_until` when the
    hub said it would answer again. In any window at most `rate` + `burst` tokens become due.
    """

    rate: float
    next: float = 0.0
    closed_until: float = 0.0

    @property
    def burst(self) -> float:
        """How many tokens a bucket holds that was left alone."""
        return max(1.0, self.rate * BURST_SHARE)

    def take(self, now: float) -> tuple["Bucket", float]:
        """The bucket without its next token, and the seconds until that is there.

        Tokens are promised: first come, first served, and who dies waiting wastes one.
        """
        every = WINDOW / self.rate
        due = max(self.next, now - (self.burst - 1) * every)
        return replace(self, next=due + every), max(0.0, due - now)

    def close(self, now: float, seconds: float) -> "Bucket":
        """The bucket empty for so long."""
        until = max(self.closed_until, now + seconds)
        return replace(self, next=max(self.next, until), closed_until=until)

    def breaks(self, promised: "Bucket", now: float) -> bool:
        """Whether a token does not count that is due by now: it was closed since the promise."""
        return self.closed_until > max(promised.closed_until, now)

    def checked(self, now: float) -> "Bucket":
        """This one or, if its times make no sense, an empty one."""
        sane = all(0 <= at < now + HORIZON for at in (self.next, self.closed_until))
        return self if sane else Bucket(self.rate, now + WINDOW / self.rate)


Change = Callable[[Bucket, float], tuple[Bucket, float]]


class SharedBucket:
    """The bucket in a file, locked while it is read and written; the kernel unlocks for the dead.

    Methods raise UsageError if the file cannot be opened.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate

    def take(self, sleep: Callable[[float], object]) -> None:
        """Take a token: `sleep` until it is there."""
        promised, wait = self._change(Bucket.take)
        while wait:
            sleep(wait)

            def again(
                found: Bucket, now: float, promised: Bucket = promised
            ) -> tuple[Bucket, float]:
                return found.take(now) if found.breaks(promised, now) else (found, 0.0)

            promised, wait = self._change(again)

    def close(self, seconds: float) -> None:
        """Let nobody have a token for so many seconds."""
        self._change(lambda bucket, now: (bucket.close(now, seconds), 0.0))

    def _change(self, change: Change) -> tuple[Bucket, float]:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise UsageError(f"QUANTCLI_HUB_BUCKET={self._path} cannot be opened: {why}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            now = time.monotonic()  # of the machine: alike in all processes, and never set
            bucket, wait = change(self._parse(os.pread(fd, 4096, 0)).checked(now), now)
            os.pwrite(fd, _FORM.format(bucket.next, bucket.closed_until).encode(), 0)
            os.ftruncate(fd, len(_FORM.format(0, 0)))
            return bucket, wait
        finally:
            os.close(fd)

    def _parse(self, content: bytes) -> Bucket:
        try:
            at, closed_until = map(float, content.split()) if content else (0.0, 0.0)
        except ValueError:
            at = closed_until = math.nan
        return Bucket(self._rate, at, closed_until)


def rate_environment(rate: float) -> dict[str, str]:
    """What makes child processes, and all of this user on a machine, share one bucket per hub."""
    hub = hashlib.sha256(constants.ENDPOINT.encode()).hexdigest()[:8]
    path = Path(tempfile.gettempdir()) / f"quantcli-hub-{os.getuid()}-{hub}"
    return {f"{_NAME}BUCKET": str(path), f"{_NAME}RATE": str(max(1.0, rate))}


def rate_among(environment: dict[str, str], machines: int) -> dict[str, str]:
    """The environment for so many machines, which have one rate together but a bucket each."""
    rate = float(environment[f"{_NAME}RATE"]) / machines
    return environment | {f"{_NAME}RATE": str(max(1.0, rate))}


def shared_bucket() -> SharedBucket | None:
    """The bucket that the environment names, if it does.

    Raises UsageError if that makes no sense.
    """
    path, rate = (os.environ.get(f"{_NAME}{name}", "") for name in ("BUCKET", "RATE"))
    if not path and not rate:
        return None
    try:
        number = float(rate)
    except ValueError:
        number = math.nan
    if not path or not 1 <= number < math.inf:
        raise UsageError(
            f"QUANTCLI_HUB_RATE={rate!r} and QUANTCLI_HUB_BUCKET={path!r}: a number from 1 on and "
            "a file are needed, or neither"
        )
    return SharedBucket(Path(path), number)
