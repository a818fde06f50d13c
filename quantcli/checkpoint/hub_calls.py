"""Talking to the Hugging Face hub: bounded retries, and every failure as one line.

huggingface_hub retries some requests by itself (the look before a download, broken connections,
which it resumes by Range), without jitter, and obeys any Retry-After however long. What is added
here: retries for everything else, jitter, a limit to the waiting, and a common rate of requests.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from quantcli.checkpoint.files import show
from quantcli.checkpoint.rate import SharedBucket, shared_bucket
from quantcli.errors import (
    AccessError,
    NetworkError,
    QuantcliError,
    ResourceError,
)

ATTEMPTS = 5
FIRST_WAIT = 1.0
# The hub counts requests in windows of five minutes.
LONGEST_WAIT = 300.0

WORTH_A_RETRY = (408, 429, 500, 502, 503, 504)
_T = TypeVar("_T")
Explain = Callable[[BaseException, str, str | None], tuple[QuantcliError, bool]]


def host() -> str:
    """Return the hub's name for messages, without credentials a proxy URL may carry."""
    return urlsplit(constants.ENDPOINT).hostname or show(constants.ENDPOINT)


def explain(error: BaseException, repo_id: str, revision: str | None) -> tuple[QuantcliError, bool]:
    """Return the failure to report, and whether another attempt may succeed."""
    name = show(repo_id)
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # The client has looked, has retried, has found nothing in the cache: what was it?
        return explain(error.__cause__, repo_id, revision)[0], False
    if isinstance(error, GatedRepoError):
        return AccessError(
            f"{name} is gated: accept its terms at {host()}/{repo_id} and set HF_TOKEN"
        ), False
    if isinstance(error, RevisionNotFoundError):
        which = f"revision {show(revision)}" if revision else "such revision"
        return AccessError(f"{name} has no {which} on {host()}: check --revision"), False
    if isinstance(error, RepositoryNotFoundError):
        return AccessError(
            f"{name} is neither a folder here nor a model on {host()}: check the spelling,"
            " or set HF_TOKEN if it is private"
        ), False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return AccessError(
            f"{host()} denies access to {name} (HTTP {status}): set HF_TOKEN to a valid token"
        ), False
    if status in WORTH_A_RETRY:
        return NetworkError(f"{host()} fails for {name} (HTTP {status}): try again later"), True
    if status is not None:
        return AccessError(f"{host()} refuses a request for {name} (HTTP {status})"), False
    return _explain_without_answer(error, name)


def _explain_without_answer(error: BaseException, name: str) -> tuple[QuantcliError, bool]:
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return AccessError(f"{name} is not in the cache and HF_HUB_OFFLINE is set"), False
    if isinstance(error, HFValidationError):
        return AccessError(f"{name} is neither a folder here nor a valid hub id"), False
    if isinstance(error, (FileMetadataError, ValueError)):
        return NetworkError(
            f"{host()} does not answer like a Hugging Face hub (HF_ENDPOINT?)"
        ), False
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: free space in {show(constants.HF_HUB_CACHE)}"
        ), False
    if isinstance(error, OSError) and number is not None and not isinstance(error, HTTPError):
        why = f"{os.strerror(number)}: set HF_HOME to a folder that can be written"
        return AccessError(f"the cache {show(constants.HF_HUB_CACHE)} fails: {why}"), False
    return NetworkError(
        f"the transfer of {name} from {host()} broke off ({type(error).__name__}):"
        " try again, or set HF_HUB_OFFLINE=1 to use the cache"
    ), True


def call(
    repo_id: str,
    function: Callable[[], _T],
    revision: str | None = None,
    explain: Explain = explain,
) -> _T:
    """Return `function()`, retried while that makes sense; the names are for messages.

    Raises: AccessError (missing, gated, not authorised), NetworkError, ResourceError (disk full).
    """
    for attempt in range(1, ATTEMPTS + 1):
        _guard_session()
        try:
            return function()
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            failure, retry = explain(error, repo_id, revision)
            if not retry or attempt == ATTEMPTS:
                raise failure from error
            asked = _asked_wait(getattr(error, "response", None))
            # Full jitter on top of what was asked for, so that many clients do not return at once.
            time.sleep((asked or 0.0) + random.uniform(0.5, 1.0) * FIRST_WAIT * 2 ** (attempt - 1))
    raise NetworkError(f"{host()} did not answer")


def _asked_wait(response: Any) -> float | None:
    """Return the seconds a response asks to wait, by Retry-After or the hub's `ratelimit`."""
    if response is None:
        return None
    if match := re.search(
        r'"\w+"\s*;\s*r=0\s*;\s*t=(\d{1,9})', response.headers.get("ratelimit", "")
    ):
        return float(match[1])
    value = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _check_answer(response: Any) -> None:
    """Refuse answers that would make the client wait for hours or write outside its cache."""
    wait = _asked_wait(response) if response.status_code in WORTH_A_RETRY else None
    if wait and response.status_code == 429 and (bucket := _bucket_of(response.request)):
        bucket.close(min(wait, LONGEST_WAIT))
    if wait is not None and wait > LONGEST_WAIT:
        raise NetworkError(
            f"{host()} asks to wait {wait:.0f} s before the next request: come back then"
        )
    for header in ("etag", "x-linked-etag"):
        # The client names files in its cache after it.
        tag = response.headers.get(header, "").removeprefix("W/")
        if "/" in tag or "\\" in tag or tag.strip('"').startswith("."):
            raise NetworkError(f"{host()} sends the hostile {header} {show(tag)}")


def _wait_for_token(request: Any) -> None:
    if bucket := _bucket_of(request):
        bucket.take(time.sleep)


def _bucket_of(request: Any) -> SharedBucket | None:
    """The tokens for requests to the hub; other hosts, such as its CDN, do not count."""
    return shared_bucket() if request.url.host == urlsplit(constants.ENDPOINT).hostname else None


def _guard_session() -> None:
    session = get_session()
    hooks = session.event_hooks
    if _check_answer not in hooks["response"]:
        hooks["request"].append(_wait_for_token)
        hooks["response"].append(_check_answer)
        session.event_hooks = hooks
