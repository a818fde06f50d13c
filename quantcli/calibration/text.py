"""Texts to calibrate and evaluate on: where they come from, and how they are cut into windows."""

import hashlib
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.checkpoint.files import parse_json_object, show
from quantcli.errors import BadInputError, UsageError
from quantcli.gguf_file import open_regular
from quantcli.tokenizer.encode import Encoder, bos_token, closing_token

BUILTIN = "builtin"
LIMIT = 256 << 20
_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
# Enough characters for nearly any text's tokens, so that no more is encoded than is asked for.
_CHARACTERS_PER_TOKEN = 8
# The end of a piece of text may be encoded otherwise than in the whole.
_MARGIN = 64


@dataclass(frozen=True)
class Text:
    """A text and its name, without folders."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Of the content in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(source: str) -> Text:
    """A plain text in UTF-8, or a .jsonl file's `text` fields, one below the other.

    source: a file, hf://datasets/org/name[@revision]/path, or "builtin": a text of our own.

    Raises: BadInputError (empty, not UTF-8, not JSON lines, over 256 MiB), UsageError (a malformed
    hf:// address), AccessError, NetworkError, IntegrityError, ResourceError.
    """
    name, data = _content(source)
    if name.lower().endswith(".jsonl"):
        content = _json_lines(data, name)
    else:
        # llama.cpp's tools drop the last line end, too.
        content = _decode(data, name).removesuffix("\n")
    if not content.strip():
        raise BadInputError(f"{show(name)} holds no text: give another one")
    return Text(name, content)


def _content(source: str) -> tuple[str, bytes]:
    if source == BUILTIN:
        return BUILTIN, files("quantcli.calibration").joinpath("builtin.txt").read_bytes()
    if source.startswith("hf://"):
        return _hub_content(source)
    path = Path(source)
    with open_regular(path) as fd, os.fdopen(os.dup(fd), "rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise BadInputError(f"{show(path.name)} is over the limit of {LIMIT} bytes: give a part")
    return path.name, data


def _hub_content(source: str) -> tuple[str, bytes]:
    match = _HUB.fullmatch(source)
    if match is None or not source.isprintable() or ".." in source.split("/"):
        raise UsageError(
            f"{show(source)} is no text on the hub: give hf://datasets/org/name/path/of/file.txt"
        )
    from quantcli.checkpoint.hub_dataset import fetch_dataset_file

    repo_id, revision, name = match.groups()
    return name.rpartition("/")[2], fetch_dataset_file(repo_id, name, revision, LIMIT)


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{show(name)} is not UTF-8 at byte {error.start}: save it as UTF-8 text"
        ) from error
    # Text in UTF-16 often is valid UTF-8.
    if (at := text.find("\0")) >= 0:
        raise BadInputError(
            f"{show(name)} is no text: character {at} is NUL; save it as UTF-8 text"
        )
    return text


def _json_lines(data: bytes, name: str) -> str:
    texts = []
    for number, line in enumerate(_decode(data, name).split("\n"), 1):
        if not line.strip():
            continue
        text = parse_json_object(line.encode(), f"{name} line {number}").get("text")
        if not isinstance(text, str) or not _is_whole(text):
            raise BadInputError(f"{show(name)}: line {number} has no `text` that is a text")
        texts.append(text)
    return "\n".join(texts)


def _is_whole(text: str) -> bool:
    """Tell whether a text is free of halves of surrogate pairs, which JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def cut_windows(
    text: Text, metadata: dict[str, Any], context: int, tokens: int | None = None
) -> np.ndarray:
    """Non-overlapping windows, int32 [n, context], of the first `tokens` tokens (None: all).

    As llama-imatrix and llama-perplexity cut them: where the model adds BOS, the text begins with
    it, and it takes the place of each window's first token; what fills no window is left out.
    Where a token closes texts (BERT's SEP), it takes the place of each window's last token.
    metadata: the model's GGUF keys.

    Raises: UsageError (context longer than the model's or than `tokens`), BadInputError (the text
    is too short), UnsupportedError (a tokenizer that is not known).
    """
    if tokens is not None and tokens < context:
        raise UsageError(f"--tokens {tokens} is less than one window of --context {context}")
    most = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if most is not None and context > most:
        raise UsageError(f"--context {context} is more than the model's {most} tokens")
    encoder, bos = Encoder.from_metadata(metadata), bos_token(metadata)
    ids = ([] if bos is None else [bos]) + _encode(encoder, text.content, tokens)
    count = min(len(ids), tokens or len(ids)) // context
    if count == 0:
        raise BadInputError(
            f"{show(text.name)} has {len(ids)} tokens, too few for one window of {context}: "
            "give a longer text or a smaller --context"
        )
    windows = np.array(ids[: count * context], np.int32).reshape(count, context)
    if bos is not None:
        windows[:, 0] = bos
    if (closing := closing_token(metadata)) is not None:
        windows[:, -1] = closing
    return windows


def _encode(encoder: Encoder, text: str, count: int | None) -> list[int]:
    """The ids of at least the first `count` tokens, all if None."""
    end = len(text) if count is None else _CHARACTERS_PER_TOKEN * (count + _MARGIN)
    while True:
        ids = encoder.encode(text[:end])
        if end >= len(text) or count is None:
            return ids
        if len(ids) >= count + _MARGIN:
            return ids[:count]
        end *= 2
