"""File types: the names people ask for, such as Q4_K_M, with `general.file_type` ids.

A *file type* is a mix of *tensor types*; `base` is the tensor type that most tensors get.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from quantcli.errors import UsageError


@dataclass(frozen=True)
class FileType:
    """One file type; `id` is llama.cpp's llama_ftype, `note` says in plain words what it is for."""

    name: str
    id: int
    base: str
    note: str
    wants_imatrix: bool = False

    @property
    def quantized(self) -> bool:
        """False for F32, F16 and BF16, which have no mix."""
        return self.name not in ("F32", "F16", "BF16")


# Smallest first.
FILE_TYPES: dict[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("Q2_K_S", 21, "Q2_K", "severe loss; wants an imatrix", wants_imatrix=True),
        FileType("Q2_K", 10, "Q2_K", "heavy loss; only when nothing larger fits"),
        FileType("Q3_K_S", 11, "Q3_K", "heavy loss"),
        FileType("Q3_K_M", 12, "Q3_K", "noticeable loss"),
        FileType("Q3_K_L", 13, "Q3_K", "noticeable loss, a little less than Q3_K_M"),
        FileType("IQ4_XS", 30, "IQ4_XS", "good, smaller than Q4_K_S; slower on some CPUs"),
        FileType("Q4_0", 2, "Q4_0", "older; worse than Q4_K_S, fast on some CPUs"),
        FileType("IQ4_NL", 25, "IQ4_NL", "good, for rows that IQ4_XS cannot divide"),
        FileType("Q4_K_S", 14, "Q4_K", "good, slightly smaller than Q4_K_M"),
        FileType("Q4_K_M", 15, "Q4_K", "good default"),
        FileType("Q4_1", 3, "Q4_1", "older; Q4_K_M is smaller and better"),
        FileType("Q5_0", 8, "Q5_0", "older; Q5_K_S is better at the same size"),
        FileType("Q5_K_S", 16, "Q5_K", "small loss"),
        FileType("Q5_K_M", 17, "Q5_K", "small loss, a little less than Q5_K_S"),
        FileType("Q5_1", 9, "Q5_1", "older; Q5_K_M is smaller and better"),
        FileType("Q6_K", 18, "Q6_K", "very close to the original"),
        FileType("Q8_0", 7, "Q8_0", "practically the original"),
        FileType("F16", 1, "F16", "16 bits; not quantized"),
        FileType("BF16", 32, "BF16", "16 bits with the range of F32; not quantized"),
        FileType("F32", 0, "F32", "32 bits; not quantized"),
    )
}

# llama-quantize's own short forms.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

TENSOR_TYPES = tuple(dict.fromkeys(kind.base for kind in FILE_TYPES.values()))


def file_type(name: str) -> FileType:
    """The file type of that name or alias, in any case.

    Raises:
        UsageError: for an unknown name; says which known one is closest.
    """
    wanted = name.upper()
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in FILE_TYPES:
        raise _unknown("file type", name, FILE_TYPES)
    return FILE_TYPES[wanted]


def tensor_type(name: str) -> str:
    """The tensor type of that name, in any case, as ggml spells it in upper case.

    Raises:
        UsageError: for an unknown name; says which known one is closest.
    """
    if name.upper() not in TENSOR_TYPES:
        raise _unknown("tensor type", name, TENSOR_TYPES)
    return name.upper()


def _unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    longer = [other for other in names if other.startswith(name.upper())]
    close = longer or get_close_matches(name.upper(), names, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return UsageError(f"unknown {what} {name[:40]!r}; {hint}")
