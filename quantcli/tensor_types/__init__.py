"""GGUF tensor types: how weights become blocks of bytes. One file per type; see base.TensorType."""

from quantcli.errors import UnsupportedError
from quantcli.tensor_types.base import TensorType, check_values
from quantcli.tensor_types.bf16 import BF16
from quantcli.tensor_types.copied import F64, I8, I16, I32, I64
from quantcli.tensor_types.deviation import Deviation
from quantcli.tensor_types.f16 import F16
from quantcli.tensor_types.f32 import F32
from quantcli.tensor_types.iq4_nl import IQ4_NL
from quantcli.tensor_types.iq4_xs import IQ4_XS
from quantcli.tensor_types.mxfp4 import MXFP4
from quantcli.tensor_types.q2_k import Q2_K
from quantcli.tensor_types.q3_k import Q3_K
from quantcli.tensor_types.q4_0 import Q4_0
from quantcli.tensor_types.q4_1 import Q4_1
from quantcli.tensor_types.q4_k import Q4_K
from quantcli.tensor_types.q5_0 import Q5_0
from quantcli.tensor_types.q5_1 import Q5_1
from quantcli.tensor_types.q5_k import Q5_K
from quantcli.tensor_types.q6_k import Q6_K
from quantcli.tensor_types.q8_0 import Q8_0

__all__ = [
    "Deviation",
    "TensorType",
    "by_id",
    "check_values",
    "decoded_names",
    "get",
    "names",
    "stored",
    "stored_names",
]

_TYPES: tuple[TensorType, ...] = (
    *(F32(), F16(), BF16(), Q8_0(), Q6_K(), Q5_K(), Q5_1(), Q5_0()),
    *(Q4_1(), Q4_K(), Q4_0(), IQ4_NL(), IQ4_XS(), Q3_K(), Q2_K()),
)
_DECODED = {type.name: type for type in (MXFP4(),)}  # but not chosen
_COPIED = {type.name: type for type in (I8(), I16(), I32(), I64(), F64())}
_BY_NAME = {type.name: type for type in _TYPES}
_BY_ID = {type.ggml_id: type for type in (*_TYPES, *_DECODED.values())}


def names() -> list[str]:
    """The names of all tensor types, largest first."""
    return list(_BY_NAME)


def get(name: str) -> TensorType:
    """The tensor type of that name. Raises UnsupportedError."""
    if name not in _BY_NAME:
        raise UnsupportedError(f"tensor type {name[:40]!r} is not one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def decoded_names() -> list[str]:
    """The names of all tensor types whose weights can be computed."""
    return [*_BY_NAME, *_DECODED]


def stored_names() -> list[str]:
    """The names of all tensor types that a GGUF source may hold."""
    return [*decoded_names(), *_COPIED]


def stored(name: str) -> TensorType:
    """As `get`, also of types that are only decoded or copied. Raises UnsupportedError."""
    return (_DECODED | _COPIED).get(name) or get(name)


def by_id(ggml_id: int) -> TensorType:
    """The tensor type with that ggml id, if it can be decoded. Raises UnsupportedError."""
    if ggml_id not in _BY_ID:
        known = ", ".join(f"{type.ggml_id} {type.name}" for type in _BY_ID.values())
        raise UnsupportedError(f"tensor type id {ggml_id} is not one of {known}")
    return _BY_ID[ggml_id]
