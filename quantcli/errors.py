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
