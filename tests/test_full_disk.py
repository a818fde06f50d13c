"""A disk that is full: known before the start or met anywhere on the way, one line and exit 7."""

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crashes import (
    Conversion,
    digests,
    environment,
    gptq,
    in_processes,
    rtn,
    smallest,
    split,
)

from quantcli.errors import ResourceError
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.snapshots import Part, Snapshots

PAGE = 4096
DISK = 2 << 20  # room for the outputs, once more as kept for --resume, and hidden states

# The command line on a machine whose disk seems to have room: something else takes it meanwhile.
LYING = (
    "import collections, shutil; "
    "shutil.disk_usage = lambda path: collections.namedtuple('usage', 'free')(1 << 40); "
)
PLAIN = "from quantcli.cli import main; main()"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest(tmp_path_factory.mktemp("source") / "least")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Leave `room` bytes: a file of zeros, outside of the output folder, takes the rest."""
    filler = disk / "filler"
    filler.write_bytes(bytes(free(disk) - room))
    assert room - PAGE < free(disk) <= room
    return filler


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def run(conversion: Conversion, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = conversion.command(out, *more)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def lied_to(conversion: Conversion) -> Conversion:
    """The same, where the disk seems to have room."""
    *_, last = conversion.program
    return replace(conversion, program=("-c", LYING + (last if " " in last else PLAIN)))


def assert_full(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 7, nothing printed, and one line that says what to do, but for warnings."""
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, done.stderr
    assert [word for word in ("error: ", "free some space", *words) if word not in lines[0]] == []


@pytest.mark.parametrize("make", [rtn, pytest.param(gptq, marks=pytest.mark.slow)])
def test_known_before_the_start(
    tmp_path: Path, disk: Path, source: Path, make: Callable[[Path], Conversion]
) -> None:
    conversion = make(source).expected(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    out = disk / "out"
    out.mkdir()
    filler = fill(disk, size // PAGE * PAGE)
    needed = size if make is rtn else size + 1
    done = run(conversion, out)
    assert_full(done, " bytes are needed but ", f" {free(disk)} are free")
    assert int(done.stderr.partition(" bytes are needed")[0].split()[-1]) >= needed
    assert list(out.iterdir()) == []
    filler.unlink()
    assert run(conversion, out).returncode == 0
    assert digests(out) == conversion.digests


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path, disk: Path, source: Path) -> None:
    conversion = rtn(source).expected(tmp_path / "whole")
    [name] = conversion.digests
    out = disk / "out"
    out.mkdir()
    (out / f".{name}.999999999.part").write_bytes(bytes(100_000))
    fill(disk, 200_000)
    assert run(conversion, out).returncode == 0
    assert digests(out) == conversion.digests
    assert [path.name for path in out.iterdir()] == [name]


def test_met_on_the_way(tmp_path: Path, disk: Path, source: Path) -> None:
    assert meet(rtn(source).expected(tmp_path / "whole"), disk, [20]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("make", "step"), [(rtn, 3), (split, 7), (in_processes, 3), (gptq, 9)])
def test_met_anywhere(
    tmp_path: Path, disk: Path, source: Path, make: Callable[[Path], Conversion], step: int
) -> None:
    """With every `step`-th page as the last one."""
    struck = meet(make(source).expected(tmp_path / "whole"), disk, range(0, DISK // PAGE, step))
    print(make.__name__, struck)
    assert struck >= 10


def meet(conversion: Conversion, disk: Path, pages: Iterable[int]) -> int:
    """Convert with that many pages left until it fits; how often it did not."""
    out = disk / "out"
    out.mkdir()
    struck = 0
    for room in pages:
        filler = fill(disk, room * PAGE)
        done = run(lied_to(conversion), out)
        filler.unlink()
        if done.returncode == 0:
            break
        struck += 1
        assert_full(done)
        assert list(out.iterdir()) == []
    else:
        assert run(conversion, out).returncode == 0
    assert digests(out) == conversion.digests
    return struck


def test_what_is_kept_for_resuming_is_whole(disk: Path) -> None:
    """There is room for the head of an array but not for all of it."""
    kept = Snapshots(disk / "kept", "key")
    kept.begin()
    filler = fill(disk, PAGE)
    encoded = Encoded(np.ones((1, PAGE - 100), np.uint8), Cost())
    with pytest.raises(ResourceError, match=r"cannot keep .*No space left on device"):
        list(kept.record(0, [Part("w", [encoded])]))
    filler.unlink()
    assert len(list(kept.record(0, [Part("w", [encoded])]))) == 1
    [part] = kept.read(0)
    np.testing.assert_array_equal(part.encoded[0].packed, encoded.packed)


def test_a_report_that_has_no_room(tmp_path: Path, disk: Path, source: Path) -> None:
    """The outputs are finished, elsewhere, and stay."""
    conversion = rtn(source).expected(tmp_path / "whole")
    out, report = tmp_path / "out", disk / "report.json"
    out.mkdir()
    filler = fill(disk, PAGE)
    assert_full(run(conversion, out, "--report", str(report)), "report.json: cannot write")
    assert list(disk.iterdir()) == [filler]
    assert digests(out) == conversion.digests
    filler.unlink()
    done = run(conversion, out, "--report", str(report), "--force")
    assert done.returncode == 0, done.stderr
    assert digests(out) == conversion.digests
    assert [path.name for path in disk.iterdir()] == ["report.json"]
