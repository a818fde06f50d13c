"""The precompiled character map of a SentencePiece model: which characters become which.

Layout: the size of the trie in bytes (uint32, little-endian), the trie (a double array of uint32),
and the replacements, each UTF-8 text closed by a zero byte. In an entry of the trie: bits 10-30 the
offset to its children (shifted by 8 more if bit 9 is set), bit 8 "a replacement follows", bits 0-7
the byte that leads to it; bit 31 marks a value, the position of a replacement.
"""

import numpy as np

from quantcli.errors import BadInputError

LIMIT = 16 << 20
VALUE = np.uint32(1 << 31)


def check_charsmap(data: bytes, name: str) -> np.ndarray:
    """The map as uint8, when no text at all can lead out of it (runtimes abort or panic there).

    Raises: BadInputError, naming the file `name`.
    """
    size = int.from_bytes(data[:4], "little")
    if not 4 <= len(data) <= LIMIT or size % 4 or not 4 <= size < len(data) - 4:
        raise _broken(name, f"{len(data)} bytes with a trie of {size}")
    texts = data[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken(name, "its replacements are not UTF-8") from error
    if texts[-1]:
        raise _broken(name, "its last replacement has no end")
    starts = np.flatnonzero(np.frombuffer(b"\0" + texts[:-1], np.uint8) == 0)
    trie = np.frombuffer(data, "<u4", size // 4, 4)
    if not np.isin(_values(trie, name), starts).all():
        raise _broken(name, "it points into the middle of a replacement")
    return np.frombuffer(data, np.uint8)


def _values(trie: np.ndarray, name: str) -> np.ndarray:
    """Every value that some text reaches."""
    nodes = _child_base(trie, np.zeros(1, np.uint32))
    seen = np.zeros(len(trie), bool)
    values: list[np.ndarray] = []
    while len(nodes):
        if int((nodes | np.uint32(255)).max()) >= len(trie):
            raise _broken(name, "its trie points beyond its end")
        children = (nodes[:, None] ^ np.arange(1, 256, dtype=np.uint32)).ravel()
        labels = np.tile(np.arange(1, 256, dtype=np.uint32), len(nodes))
        children = np.unique(children[trie[children] & (VALUE | np.uint32(255)) == labels])
        children = children[~seen[children]]
        seen[children] = True
        nodes = _child_base(trie, children)
        leaves = nodes[trie[children] >> 8 & 1 == 1]
        if len(leaves) and int(leaves.max()) >= len(trie):
            raise _broken(name, "its trie points beyond its end")
        values.append(trie[leaves] & ~VALUE)
    return np.concatenate(values) if values else np.zeros(0, np.uint32)


def _child_base(trie: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where the children of the entries `at` are counted from."""
    entry = trie[at]
    return at ^ ((entry >> 10) << ((entry & np.uint32(1 << 9)) >> 6))


def _broken(name: str, why: str) -> BadInputError:
    return BadInputError(f"{name}: the precompiled character map is broken: {why}")
