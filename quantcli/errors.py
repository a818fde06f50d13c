"""The errors a user can meet, one class per documented exit code.

Every message is one line that names the file, the tensor, the value and the remedy.
Anything that is not a QuantcliError is a bug of ours and exits 1.
"""


class QuantcliError(Exception):
    """Base of all expected failures; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(QuantcliError):
    """The command line or a recipe file asks for something that makes no sense."""

    exit_code = 2


class BadInputError(QuantcliError):
    """The input is broken: trying again will not help."""

    exit_code = 3


class UnsupportedError(QuantcliError):
    """The input may be fine, but quantcli does not know how to convert it."""

    exit_code = 4


class AccessError(QuantcliError):
    """The source is missing, gated or not authorised."""

    exit_code = 5


class NetworkError(QuantcliError):
    """The network or the hub failed: worth a retry."""

    exit_code = 6


class ResourceError(QuantcliError):
    """Not enough disk or memory."""

    exit_code = 7


class IntegrityError(QuantcliError):
    """Content differs from what was announced or written."""

    exit_code = 8


class OutputExistsError(QuantcliError):
    """The output exists already or is being written by another process."""

    exit_code = 9


class BatchError(QuantcliError):
    """Some jobs of a batch failed; each has its own line."""

    exit_code = 10


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of any failure, and the line to print about it."""
    if isinstance(error, QuantcliError):
        return error.exit_code, _one_line(str(error))
    if (signal := _signalled(error)) is not None:
        return signal, "interrupted; no unfinished file is left"
    if isinstance(error, MemoryError):
        return ResourceError.exit_code, "out of memory; use fewer --threads"
    return 1, _one_line(
        f"this is a bug in quantcli: {type(error).__name__}: {error} "
        "(QUANTCLI_DEBUG=1 shows the traceback)"
    )


def _signalled(error: BaseException | None) -> int | None:
    """The exit code of the interruption behind an error: Python wraps one that strikes a class."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return 130
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            return error.code
        error = error.__cause__
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
