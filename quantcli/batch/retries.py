"""Which failures are worth another attempt, when, and with how much memory: by exit code."""

import random
from dataclasses import dataclass

NETWORK, RESOURCES, INTEGRITY, BUSY = 6, 7, 8, 9
KILLED = 137  # by SIGKILL, most likely for want of memory
# What trying again cannot change: neither now nor when the batch is run again.
PERMANENT = frozenset((1, 2, 3, 4, 5))


@dataclass(frozen=True)
class Retry:
    """Wait so many seconds, then try with `memory` times what was planned."""

    delay: float
    memory: int = 1


def retry(exit_code: int, attempt: int) -> Retry | None:
    """What follows failed attempt number `attempt` (from 1); None: nothing.

    Jitter keeps the jobs of many machines from coming back at the same moment.
    """
    jitter = random.uniform(0.5, 1.0)
    if exit_code == NETWORK and attempt <= 3:
        return Retry(jitter * 15 * 4 ** (attempt - 1))
    if exit_code in (RESOURCES, KILLED) and attempt <= 1:
        return Retry(jitter, memory=2)
    if exit_code == INTEGRITY and attempt <= 1:
        return Retry(jitter)  # what was damaged is out of the cache: it is downloaded again
    if exit_code == BUSY and attempt <= 3:
        return Retry(jitter * 2)  # a child of a killed run may still be cleaning up
    return None
