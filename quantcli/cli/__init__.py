"""The command line: parse, call the API, render. No logic lives here.

Importing this package must stay cheap (`quantcli --help` in well under 0.3 s): commands import
the rooms they call when they run.
"""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from quantcli import __version__
from quantcli.blas import prefer_wide_kernels
from quantcli.cli import (
    batch,
    calibrate,
    convert,
    evaluate,
    inspect,
    list_,
    options,
    plan,
    run_job,
)
from quantcli.errors import explain

app = typer.Typer(
    name="quantcli",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Convert Hugging Face checkpoints to quantized GGUF files for llama.cpp, Ollama and "
    "LM Studio: one command, CPU only, with a measured report.",
    epilog="Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input, 4 unsupported, 5 not found or not "
    "authorised, 6 network, 7 out of disk or memory, 8 integrity or quality gate, 9 output exists, "
    "10 batch partly failed, 130/143 interrupted.",
)
app.command("convert")(convert.convert)
app.command("plan")(plan.plan)
app.command("evaluate")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("inspect")(inspect.inspect)
app.command("batch")(batch.batch)
app.command("run-job", hidden=True)(run_job.run_job)
app.add_typer(list_.app, name="list")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"quantcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def main() -> None:
    """Run the command line; every failure is one line on stderr and a documented exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    prefer_wide_kernels()
    try:
        app(options.complete(sys.argv[1:]))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (Exception, KeyboardInterrupt) as error:
        code, message = explain(error)
        if code == 1 and os.environ.get("QUANTCLI_DEBUG"):
            raise
        print(f"error: {message}", file=sys.stderr)
    else:
        code = 0
    finally:
        # All is done and said: a signal while Python itself ends changes nothing.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
