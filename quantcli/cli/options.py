"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated, Any

import typer

TYPES = "Which type each tensor gets"
RUN = "How it runs and reports"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A Hugging Face model id (org/name; org/name:FILE or org/name:F16 for one of its GGUF "
        "files), a local folder with config.json and safetensors weights, or a GGUF file (of a "
        "split one the first part).",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub model."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:SCALE]",
        help="Merge a LoRA adapter (PEFT), a folder or hub id, into the weights; repeatable.",
    ),
]
Types = Annotated[
    str | None,
    typer.Option(
        "--type",
        "--outtype",
        "-t",
        metavar="T[,T…]",
        help="File types, comma-separated, all in one pass (`quantcli list types`).",
        rich_help_panel=TYPES,
    ),
]
Pure = Annotated[
    bool,
    typer.Option(
        "--pure",
        help="The base type everywhere: no mix, no larger output tensor.",
        rich_help_panel=TYPES,
    ),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Type of the tensors whose GGUF name matches; repeatable, the first match counts.",
        rich_help_panel=TYPES,
    ),
]
OutputTensorType = Annotated[
    str | None,
    typer.Option(
        "--output-tensor-type",
        metavar="TYPE",
        help="Type of output.weight.",
        rich_help_panel=TYPES,
    ),
]
TokenEmbeddingType = Annotated[
    str | None,
    typer.Option(
        "--token-embedding-type",
        metavar="TYPE",
        help="Type of token_embd.weight.",
        rich_help_panel=TYPES,
    ),
]
LeaveOutputTensor = Annotated[
    bool,
    typer.Option(
        "--leave-output-tensor", help="Do not quantize output.weight.", rich_help_panel=TYPES
    ),
]
AllowRequantize = Annotated[
    bool,
    typer.Option(
        "--allow-requantize",
        help="Take a GGUF file that is quantized already; its errors stay and add up.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="Type and per-tensor overrides from a file; flags come first.",
        rich_help_panel=TYPES,
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        metavar="SIZE",
        help="Instead of --type: the types that lose least in a file of at most this size, "
        "e.g. 3.9GiB, measured on the --calibration text.",
        rich_help_panel=TYPES,
    ),
]
TargetBpw = Annotated[
    float | None,
    typer.Option(
        "--target-bpw",
        metavar="BITS",
        help="The same for so many bits of tensor data per weight, e.g. 4.5.",
        rich_help_panel=TYPES,
    ),
]
FitRam = Annotated[
    str | None,
    typer.Option(
        "--fit-ram",
        metavar="SIZE",
        help="The same for a model that runs in this much memory, with 8192 tokens of context or "
        "the model's limit.",
        rich_help_panel=TYPES,
    ),
]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe",
        metavar="FILE.toml",
        help="Write the types found for a target as a recipe: --recipe FILE.toml makes the same "
        "file without measuring.",
        rich_help_panel=TYPES,
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE|auto",
        help="Importance matrix, GGUF or legacy .dat, to weight the scale search; auto: made from "
        "the --calibration text before quantizing.",
        rich_help_panel=TYPES,
    ),
]
TEXT = "Plain text, .jsonl with a `text` field, or hf://datasets/org/name/file."
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="TEXT",
        help=f"For --imatrix auto and targets; ours if not given. {TEXT}",
        rich_help_panel=TYPES,
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(
        "--calibration-tokens",
        metavar="N",
        min=512,
        help="Use at most N tokens of it.  [default: 65536]",
        show_default=False,
        rich_help_panel=TYPES,
    ),
]
OnFallback = Annotated[
    str,
    typer.Option(
        "--on-fallback",
        metavar="POLICY",
        help="error, warn or allow: when a row does not divide into a type's blocks.",
        rich_help_panel=TYPES,
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
        metavar="N",
        min=1,
        max=256,
        help="Worker threads; all cores if not given.",
        rich_help_panel=RUN,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", "-f", help="Replace existing outputs.", rich_help_panel=RUN),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=RUN)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress and no report; errors only.", rich_help_panel=RUN
    ),
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


def complete(arguments: list[str]) -> list[str]:
    """Give `--evaluate` its text where it stands alone, which Typer cannot express."""
    given = list(arguments)
    for i, argument in enumerate(arguments):
        following = arguments[i + 1 : i + 2]
        if argument == "--evaluate" and (not following or following[0].startswith("-")):
            given[i] = "--evaluate=builtin"
    return given
