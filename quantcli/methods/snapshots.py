"""What a calibrating run has done so far, in a folder, so that a killed one can go on.

Each step leaves its parts, "parts-<step>", and the hidden states that the next one begins with,
"hidden-<steps>.npy"; it counts once "done.json" says so, which is replaced last.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from quantcli.errors import IntegrityError, ResourceError
from quantcli.methods.encoded import Cost, Encoded


@dataclass(frozen=True)
class Part:
    """Rows of one tensor, one Encoded per output."""

    name: str
    encoded: list[Encoded]


class Snapshots:
    """The folder of one run; `key` tells runs apart that would not do the same."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def resume(self, states: Sequence[np.ndarray]) -> int:
        """How many steps an earlier run finished; its hidden states are read into `states`.

        Raises IntegrityError if they cannot be read.
        """
        try:
            done = json.loads((self._folder / "done.json").read_text())
        except (OSError, ValueError):
            return 0
        if done.get("key") != self._key:
            return 0
        with self._reading(), self._hidden(done["steps"]).open("rb") as file:
            for state in states:
                state[...] = np.load(file)
        return int(done["steps"])

    def begin(self) -> None:
        """Forget what an earlier run left, unless it was resumed.

        Raises ResourceError.
        """
        self.discard()
        with self._writing():
            self._folder.mkdir()

    def discard(self) -> None:
        """Remove the folder; first what says that there is something in it."""
        with suppress(OSError):
            (self._folder / "done.json").unlink()
        shutil.rmtree(self._folder, ignore_errors=True)

    def nbytes(self) -> int:
        """How much the folder holds."""
        with suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in self._folder.iterdir())
        return 0

    def read(self, step: int) -> Iterator[Part]:
        """The parts of a finished step.

        Raises IntegrityError.
        """
        with self._reading(), self._parts(step).open("rb") as file:
            while line := file.readline():
                head = json.loads(line)
                costs = [Cost(**cost) for cost in head["costs"]]
                yield Part(head["name"], [Encoded(np.load(file), cost) for cost in costs])

    def record(self, step: int, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts of a step, which are written down as they pass.

        Raises ResourceError.
        """
        with self._writing(), self._parts(step).open("wb") as file:
            for part in parts:
                costs = [asdict(encoded.cost) for encoded in part.encoded]
                line = json.dumps({"name": part.name, "costs": costs})
                file.write(line.encode() + b"\n")
                for encoded in part.encoded:
                    _save(file, encoded.packed)
                file.flush()  # whoever gets the part may fail, and then there is nothing to write
                yield part
            _flush(file)

    def commit(self, step: int, states: Sequence[np.ndarray]) -> None:
        """Step number `step` is done, and these are the hidden states that the next one needs.

        Raises ResourceError.
        """
        with self._writing():
            with self._hidden(step + 1).open("wb") as file:
                for state in states:
                    _save(file, state)
                _flush(file)
            made = self._folder / "done.json.new"
            with made.open("wb") as file:
                file.write(json.dumps({"key": self._key, "steps": step + 1}).encode())
                _flush(file)
            made.replace(self._folder / "done.json")
            self._hidden(step).unlink(missing_ok=True)

    def _parts(self, step: int) -> Path:
        return self._folder / f"parts-{step}"

    def _hidden(self, steps: int) -> Path:
        return self._folder / f"hidden-{steps}.npy"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error  # numpy says in words alone how much it could write
            raise ResourceError(
                f"{self._folder}: cannot keep what --resume would need ({why}); free "
                "some space or choose another output folder"
            ) from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise IntegrityError(
                f"{self._folder}: what the earlier run left cannot be read ({error}); convert "
                "without --resume"
            ) from None


def _save(file: IO[bytes], array: np.ndarray) -> None:
    """As np.save, which does not notice that a disk is full when it closes its own stream."""
    array = np.ascontiguousarray(array)
    head = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, head)
    file.write(array.data)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
