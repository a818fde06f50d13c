"""`quantcli evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from quantcli.cli import options


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="GGUF files, checkpoint folders or hub ids.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="BASE",
            help="The model they were made from: adds KL divergence and agreement. Models that "
            "embed texts need it.",
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            metavar="FILE|builtin",
            help="Plain text, .jsonl with a `text` field, or hf://datasets/org/name/file.",
        ),
    ] = "builtin",
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=1, help="Tokens per window.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            metavar="N",
            min=1,
            help="Windows to look at; all if not given.",
            show_default=False,
        ),
    ] = None,
    activations: Annotated[
        str,
        typer.Option(
            "--activations",
            metavar="KIND",
            help="float: the weights' own effect. llama-cpu: activations rounded, too, as "
            "llama.cpp does on a CPU.",
        ),
    ] = "float",
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write the result to a .json, .md or .html file, too.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure models on a text: perplexity, and divergence from a reference.

    By llama-perplexity's protocol: the second half of each window is scored. Of models that embed
    texts: the cosine similarity of each window's embedding to the reference's.

    Example: quantcli evaluate *-Q4_K_M.gguf *-Q8_0.gguf --reference org/model --text wiki.txt
    """
    from quantcli.calibration.text import read_text
    from quantcli.cli import render
    from quantcli.cli.progress import for_terminal
    from quantcli.evaluation.evaluate import evaluate as run
    from quantcli.planning import default_threads
    from quantcli.report import files
    from quantcli.report.cards import card_of_source

    if report is not None:
        files.check_report_path(report)
    found = run(
        models,
        reference,
        read_text(text),
        context=context,
        chunks=chunks,
        activations=activations,
        threads=threads or default_threads(),
        progress=for_terminal(quiet),
    )
    cards = [card_of_source(name, each) for name, each in zip(models, found, strict=True)]
    if report is not None:
        files.write_evaluation(reference, cards, report)
    render.evaluation(reference, cards, as_json, quiet)
