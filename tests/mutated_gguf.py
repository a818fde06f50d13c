"""GGUF files that are nearly right: one field damaged, or the bytes (see mutations)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from random import Random

from mutations import NAMES, damaged_bytes, odd_number, several

from quantcli.gguf_file import GGML_TYPES

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type: bytes
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9


@dataclass(frozen=True)
class Number:
    """A little-endian integer of a header."""

    width: int
    value: int

    def encode(self) -> bytes:
        return (self.value % 256**self.width).to_bytes(self.width, "little")


Field = Number | bytes


@dataclass
class Gguf:
    """A GGUF file before its bytes: `keys` are name, type and value; `tensors` come in order."""

    alignment: int = 32
    keys: list[tuple[str, int, list[Field]]] = field(default_factory=list)
    tensors: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)

    def fields(self) -> list[Field]:
        """The header, every length and count in a field of its own; offsets fit the tensors."""
        out: list[Field] = [b"GGUF", Number(4, 3), Number(8, len(self.tensors))]
        out.append(Number(8, len(self.keys)))
        for name, kind, value in self.keys:
            out += [*_text(name), Number(4, kind), *value]
        for (name, ne, kind), offset in zip(self.tensors, self.offsets(), strict=False):
            out += [*_text(name), Number(4, len(ne)), *(Number(8, n) for n in ne)]
            out += [Number(4, kind), Number(8, offset)]
        return out

    def offsets(self) -> list[int]:
        """Where each tensor begins, and at last where the data end."""
        sizes = [_padded(_nbytes(ne, kind), self.alignment) for _, ne, kind in self.tensors]
        return list(accumulate(sizes, initial=0))


def gguf(rng: Random) -> bytes:
    """A GGUF file."""
    model = _good_gguf(rng)
    fields = model.fields()
    if rng.random() < 0.6:
        for _ in several(rng):
            _damage_fields(rng, fields)
    header = b"".join(part if isinstance(part, bytes) else part.encode() for part in fields)
    if rng.random() < 0.1:
        header = damaged_bytes(rng, header)
    padding = bytes(_padded(len(header), model.alignment) - len(header))
    data = rng.randbytes(model.offsets()[-1])
    content = header + padding + data
    return damaged_bytes(rng, content) if rng.random() < 0.1 else content


def _good_gguf(rng: Random) -> Gguf:
    model = Gguf(alignment=rng.choice([32, 32, 32, 1, 8, 64, 4096]))
    if model.alignment != 32:
        model.keys.append(("general.alignment", UINT32, [Number(4, model.alignment)]))
    for number in range(rng.randrange(5)):
        kind = rng.choice([STRING, ARRAY, *SCALARS])
        model.keys.append((f"key.{number}", kind, _value(rng, kind)))
    for number in range(rng.randrange(5)):
        kind = rng.choice([0, 1, 30, *GGML_TYPES])
        ne = [rng.choice([1, 2, 3]) for _ in range(rng.randrange(5))]
        if ne or GGML_TYPES[kind].block > 1:
            ne[:1] = [GGML_TYPES[kind].block * rng.choice([1, 2, 3])]
        model.tensors.append((f"t{number}", tuple(ne), kind))
    return model


def _value(rng: Random, kind: int) -> list[Field]:
    if kind == STRING:
        return _text(rng.choice(["", "text", "🦙", "\x1b[2J", "x" * 300]))
    if kind == ARRAY:
        item = rng.choice([STRING, STRING, *SCALARS])
        count = rng.choice([0, 1, 2, 9])
        items = [part for _ in range(count) for part in _value(rng, item)]
        return [Number(4, item), Number(8, count), *items]
    return [Number(SCALARS[kind], rng.choice([0, 1]) if kind == BOOL else rng.getrandbits(64))]


def _damage_fields(rng: Random, fields: list[Field]) -> None:
    """Change one field without what depends on it, or with its length."""
    at = rng.randrange(1, len(fields))
    part, before = fields[at], fields[at - 1]
    if rng.random() < 0.1:
        fields[at : at + 1] = rng.choice([[], [part] * 2, [part] * 2000, fields[at : at + 3] * 2])
    elif isinstance(part, Number):
        fields[at] = replace(part, value=rng.choice([odd_number(rng, part.value), *_types(rng)]))
    else:
        name = rng.choice(NAMES).encode("utf-8", "surrogatepass")
        fields[at] = rng.choice([name, damaged_bytes(rng, part), (part * 1000)[:8192]])
        if isinstance(before, Number) and rng.random() < 0.8:
            fields[at - 1] = replace(before, value=len(fields[at]))


def _types(rng: Random) -> tuple[int, int]:
    return rng.choice(list(GGML_TYPES)), rng.choice([STRING, ARRAY, *SCALARS])


def _text(text: str) -> list[Field]:
    data = text.encode()
    return [Number(8, len(data)), data]


def _nbytes(ne: Sequence[int], kind: int) -> int:
    row = (ne[0] if ne else 1) // GGML_TYPES[kind].block * GGML_TYPES[kind].nbytes
    return prod(ne[1:]) * row


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
