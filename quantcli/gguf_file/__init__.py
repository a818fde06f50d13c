"""GGUF files: a strict bounded reader, and an atomic, sharding writer."""

from quantcli.gguf_file.atomic import (
    AtomicFile,
    WrittenFile,
    check_output,
    check_space,
    has_part,
    write_file,
)
from quantcli.gguf_file.layout import (
    GGML_TYPES,
    GgmlType,
    Metadata,
    Slot,
    Value,
    data_bytes,
    encode_header,
)
from quantcli.gguf_file.part_file import PartFile, Run
from quantcli.gguf_file.reader import (
    MAX_HEADER_BYTES,
    Header,
    HeaderCutError,
    TensorEntry,
    open_regular,
    parse_header,
    read_header,
    read_tensor,
)
from quantcli.gguf_file.shards import Shard, plan_shards, read_split, without_number
from quantcli.gguf_file.writer import Writer, commit

__all__ = [
    "GGML_TYPES",
    "MAX_HEADER_BYTES",
    "AtomicFile",
    "GgmlType",
    "Header",
    "HeaderCutError",
    "Metadata",
    "PartFile",
    "Run",
    "Shard",
    "Slot",
    "TensorEntry",
    "Value",
    "Writer",
    "WrittenFile",
    "check_output",
    "check_space",
    "commit",
    "data_bytes",
    "encode_header",
    "has_part",
    "open_regular",
    "parse_header",
    "plan_shards",
    "read_header",
    "read_split",
    "read_tensor",
    "without_number",
    "write_file",
]
