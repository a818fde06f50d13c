"""Vocabularies in tiktoken's format: a line for each token, base64 and rank, and nothing else.

How text is split and what the special tokens are called stands in code, which is never run. Two
families are known: Qwen 1 (qwen.tiktoken) and Kimi, Moonlight (tiktoken.model).
"""

import base64
import binascii
from itertools import pairwise
from typing import Any

from quantcli.errors import BadInputError
from quantcli.tokenizer.bpe import Bpe
from quantcli.tokenizer.documents import Source, read_bytes, show
from quantcli.tokenizer.pre_tokenizer import pipeline_of_name
from quantcli.tokenizer.special_tokens import token_text
from quantcli.tokenizer.tokenizer_json import AddedToken

QWEN, KIMI = "qwen.tiktoken", "tiktoken.model"
# The pre-tokenizer of each file's family.
SPLITS = {QWEN: "qwen2", KIMI: "kimi-k2"}
QWEN_END = "<|endoftext|>"
QWEN_TOKENS = (QWEN_END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
KIMI_RESERVED = 256
TOKEN_LIMIT, RANK_LIMIT = 1024, 1 << 20
# How byte-level BPE writes bytes: those that are no letters move beyond 255.
PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}
LETTERS = dict(
    zip(
        [*sorted(PRINTED), *sorted(set(range(256)) - PRINTED)],
        map(chr, [*sorted(PRINTED), *range(256, 512 - len(PRINTED))]),
        strict=True,
    )
)


def find_tiktoken(source: Source) -> str | None:
    """The file with the ranks, if there is one."""
    return next((name for name in SPLITS if name in source.source_files), None)


def read_tiktoken(source: Source, name: str, tokenizer_config: dict[str, Any]) -> Bpe:
    """The byte-level BPE that the ranks in the file `name` stand for.

    Raises: BadInputError (no such file, ranks that do not make a vocabulary).
    """
    ranks = read_ranks(read_bytes(source, name) or b"", name)
    special = QWEN_TOKENS if name == QWEN else _kimi_tokens(tokenizer_config, len(ranks))
    added = [AddedToken(len(ranks) + i, text, True, False) for i, text in enumerate(special)]
    return Bpe(
        vocab={_printed(token): rank for token, rank in ranks.items()},
        merges=[(_printed(left), _printed(right)) for left, right in _merges(ranks)],
        added=added,
        byte_fallback=False,
        ignore_merges=True,
        unk_token=None,
        pipeline=pipeline_of_name(SPLITS[name]),
    )


def known_ids(bpe: Bpe, name: str, tokenizer_config: dict[str, Any]) -> dict[str, int | None]:
    """Special tokens by kind: Qwen 1 has one for everything, others' configuration names them."""
    ids = {token.content: token.id for token in bpe.added}
    if name == QWEN:
        return dict.fromkeys(("bos", "eos", "unk"), ids[QWEN_END])
    names = {kind: token_text(tokenizer_config.get(f"{kind}_token")) for kind in ("bos", "eos")}
    return {kind: ids.get(text) for kind, text in names.items() if text}


def read_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Token -> rank, in the order of the ranks, which are the ids from 0 on.

    Raises: BadInputError (not of that format, holes, a byte without a token).
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise BadInputError(
                f"{name}: line {number} has no token in base64: {show(line)}"
            ) from error
        if not rank.isdigit() or len(rank) > 9 or not 0 < len(token) <= TOKEN_LIMIT:
            raise BadInputError(f"{name}: line {number} is no token and rank: {show(line)}")
        if token in ranks:
            raise BadInputError(f"{name}: line {number} has a token a second time: {show(line)}")
        ranks[token] = int(rank)
        if len(ranks) > RANK_LIMIT:
            raise BadInputError(f"{name} has more than {RANK_LIMIT} tokens")
    ordered = dict(sorted(ranks.items(), key=lambda item: item[1]))
    hole = next((i for i, rank in enumerate(ordered.values()) if rank != i), None)
    if hole is not None:
        raise BadInputError(f"{name}: the ranks do not count up, there is not one token {hole}")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise BadInputError(f"{name} has no token for the byte 0x{missing:02X}")
    return ordered


def _kimi_tokens(tokenizer_config: dict[str, Any], first: int) -> list[str]:
    """The names of the reserved ids, from `first` on."""
    described = tokenizer_config.get("added_tokens_decoder")
    named = described if isinstance(described, dict) else {}
    names: list[str] = []
    for token_id in range(first, first + KIMI_RESERVED):
        match named.get(str(token_id)):
            case {"content": str(text)} if text:
                names.append(text)
            case None:
                names.append(f"<|reserved_token_{token_id}|>")
            case entry:
                raise BadInputError(
                    f"tokenizer_config.json: added token '{token_id}' is described as {show(entry)}"
                )
    if len(set(names)) < len(names):
        raise BadInputError("tokenizer_config.json: two added tokens have the same content")
    return names


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two halves of each token, as merging by rank leaves them one step before it.

    Tokens that merging does not reach are only found whole: they have no merge.
    """
    halves = (_merge(token, ranks) for token in ranks if len(token) > 1)
    return [(parts[0], parts[1]) for parts in halves if len(parts) == 2]


def _merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What is left of a token's bytes when all merges of lower rank are done."""
    own = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, own) for a, b in pairwise(parts)]
        best = min(found)
        if best >= own:
            break
        at = found.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _printed(token: bytes) -> str:
    return "".join(map(LETTERS.__getitem__, token))
