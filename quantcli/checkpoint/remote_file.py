"""A file that the hub announces, and how its content is known."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

_SHA1_LENGTH = 40


@dataclass(frozen=True)
class RemoteFile:
    """A file as announced by the hub; `digest` is its SHA-256 or, for small files, git's SHA-1."""

    name: str
    size: int
    digest: str | None


def usable_digest(text: object) -> str | None:
    """Return `text` if it is a SHA-256 or SHA-1 in hexadecimal; mirrors may send other tags."""
    if isinstance(text, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", text):
        return text
    return None


def hasher(file: RemoteFile) -> Any:
    """What hashes the content of a file of that size as its digest was made."""
    if file.digest is not None and len(file.digest) == _SHA1_LENGTH:
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return hashlib.sha256()
