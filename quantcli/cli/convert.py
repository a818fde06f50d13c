"""`quantcli convert`."""

from pathlib import Path
from typing import Annotated

import typer

from quantcli.cli import options


def convert(
    source: options.Source,
    types: options.Types = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH|DIR",
            help="A file, with {type} in its name for several types, or a folder for conventional "
            "names.",
        ),
    ] = Path(),
    revision: options.Revision = None,
    lora: options.Lora = None,
    lora_only: Annotated[
        bool,
        typer.Option(
            "--lora-only",
            help="Convert the adapter alone, to a GGUF adapter for the base's GGUF files "
            "(F32 unless --type says F16, BF16 or Q8_0).",
        ),
    ] = False,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="Back-end (`quantcli list methods`).")
    ] = "rtn",
    recipe: options.RecipeFile = None,
    target_size: options.TargetSize = None,
    target_bpw: options.TargetBpw = None,
    fit_ram: options.FitRam = None,
    save_recipe: options.SaveRecipe = None,
    pure: options.Pure = False,
    tensor_type: options.TensorTypes = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    imatrix: options.Imatrix = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = None,
    override_kv: Annotated[
        list[str] | None,
        typer.Option(
            "--override-kv",
            metavar="KEY=T:VALUE",
            help="Set metadata; T is int, float, bool or str. Repeatable.",
        ),
    ] = None,
    pre_tokenizer: options.PreTokenizer = None,
    allow_requantize: options.AllowRequantize = False,
    on_fallback: options.OnFallback = "warn",
    split_max_size: Annotated[
        str | None,
        typer.Option("--split-max-size", metavar="SIZE", help="Cut into shards, e.g. 4G."),
    ] = None,
    keep_split: Annotated[
        bool,
        typer.Option("--keep-split", help="As many files as the GGUF source has, instead of one."),
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="[TEXT]",
            help="Measure the outputs against the source, on a text or, without one, ours.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(
            "--max-kld",
            metavar="NATS",
            min=0,
            help="Exit 8 if an output's mean KL divergence is over it; implies --evaluate.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            metavar="FRACTION",
            min=0,
            max=1,
            help="Exit 8 if the same most likely token is rarer, e.g. 0.95; implies --evaluate.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="Exit 8, before any work, if an output will be larger.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write the report to a .json, .md or .html file, too.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write a model card, README.md, and Ollama's Modelfile beside the outputs, too.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    threads: options.Threads = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Refuse to start if the conversion may need more private memory, e.g. 2GB.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    force: options.Force = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where a run of a method that calibrates was killed.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source",
            help="Remove a hub model's weights from the hub's cache once they were read; never a "
            "local folder.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read a hub model's weights from the network, once, without storing them.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the plan; read no weights, write nothing.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint or a GGUF file to quantized GGUF files (Q4_K_M unless told otherwise).

    Example: quantcli convert org/model --type Q4_K_M,Q8_0 -o models/
    """
    from quantcli.cli import render
    from quantcli.cli.progress import for_terminal
    from quantcli.errors import IntegrityError, UsageError
    from quantcli.planning import ram
    from quantcli.planning.from_options import make_gate, make_job, make_target
    from quantcli.planning.lora import parse_lora
    from quantcli.report import files

    if report is not None:
        files.check_report_path(report)
    job = make_job(
        source,
        "F32" if lora_only and types is None else types,
        recipe,
        options.tensor_flags(
            pure, tensor_type, output_tensor_type, token_embedding_type, leave_output_tensor
        ),
        target=make_target(target_size, target_bpw, fit_ram),
        save_recipe=save_recipe,
        output=output,
        revision=revision,
        lora=tuple(map(parse_lora, lora or ())),
        method=method,
        imatrix=imatrix,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        override_kv=tuple(override_kv or ()),
        pre_tokenizer=pre_tokenizer,
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        on_fallback=on_fallback,
        split_max_bytes=ram.parse_size(split_max_size, "--split-max-size")
        if split_max_size
        else None,
        evaluate=evaluate,
        gate=make_gate(max_kld, min_top1, max_size),
        threads=threads,
        max_memory_bytes=ram.parse_size(max_memory, "--max-memory") if max_memory else None,
        force=force,
        resume=resume,
        delete_source=delete_source,
        stream=stream,
    )
    progress = for_terminal(quiet)
    if lora_only and (dry_run or card):
        raise UsageError("--lora-only goes without --dry-run and --card")
    if dry_run:
        from quantcli.planning import make_plan

        made = make_plan(job, weights=False, progress=progress)
        render.warnings(made.all_warnings)
        render.plan(made, as_json)
        return
    from quantcli.adapter import convert_adapter
    from quantcli.pipeline import convert as run

    if card:
        files.check_card(output, source, report, force=force)
    done = (convert_adapter if lora_only else run)(job, progress)
    render.warnings(done.warnings)
    if card:
        files.write_card(done, output, force=force)
    if report is not None:
        files.write_report(done, report)
    render.report(done, as_json, quiet)
    if missed := done.misses(job.gate):
        raise IntegrityError(f"{'; '.join(missed)} (the outputs stay)")
