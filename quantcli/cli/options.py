"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A Hugging Face model id (org/name) or a local folder with config.json and "
        "safetensors weights.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub model.", metavar="REV"),
]
Types = Annotated[
    str | None,
    typer.Option(
        "--type",
        "--outtype",
        "-t",
        metavar="T[,T…]",
        help="File types to write; several are written in one pass over the source "
        "(`quantcli list types`).  [default: Q4_K_M]",
        show_default=False,
    ),
]
Pure = Annotated[
    bool, typer.Option("--pure", help="The base type everywhere: no mix, no larger output tensor.")
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Type of the tensors whose GGUF name matches (repeatable; the first match counts).",
    ),
]
OutputTensorType = Annotated[
    str | None,
    typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
]
TokenEmbeddingType = Annotated[
    str | None,
    typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
]
LeaveOutputTensor = Annotated[
    bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="Type and per-tensor overrides from a file (examples in configs/recipes/).",
    ),
]
ImatrixFile = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="Importance matrix (GGUF or legacy .dat form)."),
]
OnFallback = Annotated[
    str,
    typer.Option(
        "--on-fallback",
        metavar="error|warn|allow",
        help="When a row does not divide into a type's blocks and another type must be used.",
    ),
]
PreTokenizer = Annotated[
    str | None,
    typer.Option(
        "--pre-tokenizer",
        metavar="NAME",
        help="llama.cpp's name of the pre-tokenizer, where it is not recognised.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-j",
        min=1,
        max=256,
        help="Worker threads.  [default: all cores]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no report; errors only.")
]


def tensor_flags(
    pure: bool,
    tensor_types: list[str] | None,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    leave_output_tensor: bool,
) -> dict[str, Any]:
    """The flags that change which type a tensor gets, by the names recipes use."""
    return {
        "pure": pure,
        "tensor_types": tuple(tensor_types or ()),
        "output_tensor_type": output_tensor_type,
        "token_embedding_type": token_embedding_type,
        "leave_output_tensor": leave_output_tensor,
    }
