"""Opening files nobody vouches for: regular, bounded in size, never blocking, never outside."""

import errno
import json
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from quantcli.errors import AccessError, BadInputError

# The largest tokenizer.json in the wild is about 40 MB.
SIDE_FILE_LIMIT = 128 << 20
JSON_LIMIT = 20 << 20
# Each object, list and element costs at most about 200 bytes once parsed.
JSON_VALUES_LIMIT = 500_000
LISTING_LIMIT = 100_000
TEMPLATE_FOLDER = "additional_chat_templates"
# What sentence-transformers keeps of how hidden states become an embedding.
MODULES, POOLING = "modules.json", "1_Pooling/config.json"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


def show(name: object, limit: int = 80) -> str:
    """Return `repr` of an untrusted name, shortened: control codes never reach a terminal."""
    text = repr(name)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[0]}"


def is_plain(name: str) -> bool:
    """Tell whether `name` is a relative path of at most two harmless parts."""
    parts = name.split("/")
    return len(parts) <= 2 and all(_PART.fullmatch(part) for part in parts)


def open_regular(folder: Path, name: str) -> BinaryIO:
    """Open `folder/name` for reading; `folder` is absolute and resolved.

    FIFOs, devices, sockets and folders are refused without being opened, and so is every symbolic
    link that the Hugging Face cache would not have made.

    Raises: BadInputError, AccessError (permissions).
    """
    label = show(name)
    try:
        path = _follow_cache_links(folder, name)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadInputError(f"{label} is not a regular file: give a folder of plain files")
        # Between the look and the opening the file may have changed into something else.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BadInputError(f"{label} is missing in {show(str(folder))}") from error
    except PermissionError as error:
        raise AccessError(
            f"{label} in {show(str(folder))} may not be read: {_why(error)}"
        ) from error
    except OSError as error:
        raise BadInputError(f"{label} cannot be opened: {_why(error)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadInputError(f"{label} is not a regular file: give a folder of plain files")
    return os.fdopen(fd, "rb")


def _why(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)


def _follow_cache_links(folder: Path, name: str) -> Path:
    """Follow the only two links the Hugging Face cache makes, else refuse.

    `snapshots/<commit>/name -> <repo>/blobs/<hash>`, and the latter possibly to the store shared by
    all repos of the cache, `<cache>/blobs/<xx>/<hash>`.
    """
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise BadInputError(f"{show(name)} lies behind a symbolic link: copy the folder instead")
    if not path.is_symlink():
        return path
    repo = folder.parent.parent
    target = Path(os.path.normpath(path.parent / path.readlink()))
    if folder.parent.name == "snapshots" and target.parent == repo / "blobs":
        if not target.is_symlink():
            return target
        target = Path(os.path.normpath(target.parent / target.readlink()))
        if target.parent.parent == repo.parent / "blobs":
            return target
    raise BadInputError(
        f"{show(name)} is a symbolic link to {show(str(target))}: put the file itself in its place"
    )


class Folder:
    """The side files of a checkpoint: everything in a folder but the weights, read with limits.

    `names`: files at the top level and in `additional_chat_templates/`, and POOLING, sorted; or
    those given.
    """

    def __init__(self, root: Path, names: tuple[str, ...] | None = None) -> None:
        self.root = root
        if names is None:
            pooling = [POOLING] if os.path.lexists(root / POOLING) else []
            names = tuple(sorted(self._list("") + self._list(f"{TEMPLATE_FOLDER}/") + pooling))
        self.names = names

    def _list(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if prefix and (folder.is_symlink() or not folder.is_dir()):
            return []
        names = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # A folder named like a weight file stays: opening it says what is wrong.
                    wanted = entry.name.endswith(".safetensors") or not entry.is_dir()
                    if wanted and is_plain(entry.name):
                        names.append(prefix + entry.name)
                    if len(names) > LISTING_LIMIT:
                        raise BadInputError(f"{show(str(folder))} holds over {LISTING_LIMIT} files")
        except OSError as error:
            raise AccessError(f"{show(str(folder))} may not be read: {_why(error)}") from error
        return names

    def read(self, name: str, limit: int = SIDE_FILE_LIMIT) -> bytes | None:
        """Return the content of a side file, None when there is none.

        Raises: BadInputError (not a regular file, over `limit` bytes), AccessError.
        """
        if not is_plain(name) or not os.path.lexists(self.root / name):
            return None
        with open_regular(self.root, name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BadInputError(f"{show(name)} is over the limit of {limit} bytes")
        return data

    def json(self, name: str, limit: int = JSON_LIMIT) -> dict[str, Any] | None:
        """Return a side file that holds one JSON object, None when there is none.

        Raises: BadInputError.
        """
        data = self.read(name, limit)
        return None if data is None else parse_json_object(data, name)


def parse_json_object(
    data: bytes, name: str, values_limit: int = JSON_VALUES_LIMIT
) -> dict[str, Any]:
    """Parse `data` as one JSON object of bounded depth and count, without duplicate keys.

    Raises: BadInputError, naming the file `name`.
    """
    value = parse_json(data, name, values_limit)
    if not isinstance(value, dict):
        raise BadInputError(f"{show(name)} is not a JSON object but a {type(value).__name__}")
    return value


def parse_json(data: bytes, name: str, values_limit: int = JSON_VALUES_LIMIT) -> Any:
    """The same of any JSON value."""
    label = show(name)
    if sum(map(data.count, (b",", b"[", b"{"))) > values_limit:
        raise BadInputError(f"{label} holds more than {values_limit} values")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise BadInputError(f"{label} has the key {show(twice)} twice")
        return result

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{label} is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadInputError(f"{label} is not JSON: line {error.lineno}, {error.msg}") from error
    except RecursionError as error:
        raise BadInputError(f"{label} is nested too deeply") from error
    except ValueError as error:
        raise BadInputError(f"{label} holds a number of too many digits") from error
