"""`quantcli plan`."""

from typing import Annotated

import typer

from quantcli.cli import options


def plan(
    source: options.Source,
    types: options.Types = None,
    revision: options.Revision = None,
    recipe: options.RecipeFile = None,
    pure: options.Pure = False,
    tensor_type: options.TensorTypes = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    imatrix: options.Imatrix = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = None,
    pre_tokenizer: options.PreTokenizer = None,
    allow_requantize: options.AllowRequantize = False,
    on_fallback: options.OnFallback = "warn",
    ram: Annotated[
        str | None,
        typer.Option("--ram", metavar="SIZE", help="Mark the types that run in this much memory."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            min=1,
            help="Tokens of context for --ram.  [default: 8192, or the model's limit]",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show sizes, types, memory and disk before any weight is read.

    Every file type side by side; those named with --type tensor by tensor.

    Example: quantcli plan org/model --ram 16GB --context 8192
    """
    from quantcli.cli import render
    from quantcli.cli.progress import for_terminal
    from quantcli.planning.from_options import make_job
    from quantcli.planning.ram import parse_size
    from quantcli.planning.survey import survey

    job = make_job(
        source,
        types or "",
        recipe,
        options.tensor_flags(
            pure, tensor_type, output_tensor_type, token_embedding_type, leave_output_tensor
        ),
        revision=revision,
        imatrix=imatrix,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        pre_tokenizer=pre_tokenizer,
        allow_requantize=allow_requantize,
        on_fallback=on_fallback,
        threads=threads,
    )
    budget = parse_size(ram, "--ram") if ram else None
    done = survey(job, budget=budget, context=context, progress=for_terminal(quiet))
    render.warnings(done.warnings)
    render.survey(done, as_json)
