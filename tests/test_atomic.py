"""Outputs appear complete or not at all: exceptions, kills, rivals, full disks, odd places."""
# ruff: noqa: PT012  (what happens inside the block that raises is what is tested)

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quantcli.errors import OutputExistsError, ResourceError, UsageError
from quantcli.gguf_file import AtomicFile, atomic, check_output, check_space, write_file

# Writes sys.argv[1] in three steps; after the second it says so and waits for a line on stdin.
CHILD = """
    import sys
    from pathlib import Path
    from quantcli.errors import QuantcliError
    from quantcli.gguf_file import AtomicFile
    from quantcli.gguf_file.atomic import publish
    try:
        with AtomicFile(Path(sys.argv[1])) as file:
            file.write(b"head")
            file.write(b"body")
            print("writing", flush=True)
            sys.stdin.readline()
            file.write(b"tail")
            file.verify()
            publish([file])
    except QuantcliError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def start(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_while_writing_leaves_nothing(tmp_path, error):
    with pytest.raises(error), AtomicFile(tmp_path / "out") as file:
        file.write(b"half")
        assert names(tmp_path) == [f".out.{os.getpid()}.part"]
        raise error
    assert names(tmp_path) == []


def test_leaving_without_publishing_leaves_nothing(tmp_path):
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"whole")
        file.verify()
    assert names(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("step", ["rename", "flush"])
def test_a_failure_while_publishing_leaves_nothing(tmp_path, monkeypatch, force, step):
    """Also after the file already has its final name."""
    rename = AtomicFile.rename

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    def rename_and_fail(file):
        rename(file)
        assert (tmp_path / "out").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), AtomicFile(tmp_path / "out", force=force) as file:
        file.write(b"whole")
        file.verify()
        if step == "flush":
            monkeypatch.setattr(os, "fsync", fail)
        else:
            monkeypatch.setattr(AtomicFile, "rename", rename_and_fail)
        atomic.publish([file])
    assert names(tmp_path) == []


def test_an_exception_after_publishing_keeps_the_file(tmp_path):
    with pytest.raises(ValueError, match="later"), AtomicFile(tmp_path / "out") as file:
        file.write(b"whole")
        file.verify()
        atomic.publish([file])
        raise ValueError("later")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_new_files_get_the_usual_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        write_file(tmp_path / "out", b"x")
    finally:
        os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_killed_writer_leaves_no_output_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "out"
    child = start(path)
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert names(tmp_path) == [f".out.{child.pid}.part"]
    (tmp_path / ".other.1.part").write_text("of another output")
    write_file(path, b"new")
    assert names(tmp_path) == [".other.1.part", "out"]
    assert path.read_bytes() == b"new"


def write_or_die(path: Path, fatal_call: int) -> None:
    """Write a set of two files and be killed right before the given system call."""
    calls = 0

    def deadly(function):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for name in ("open", "pwrite", "fsync", "link", "unlink", "replace"):
        setattr(os, name, deadly(getattr(os, name)))
    with AtomicFile(path / "1", force=True) as one, AtomicFile(path / "2", force=True) as two:
        for file in (one, two):
            file.write(b"first half, ")
            file.write(b"second half")
            file.verify()
        atomic.publish([one, two])


def test_killed_before_any_system_call_there_is_nothing_partial(tmp_path):
    """At every instant a final name is absent or whole, and the next run clears the litter."""
    deaths = 0
    for fatal_call in range(1, 100):
        child = os.fork()
        if child == 0:
            try:
                write_or_die(tmp_path, fatal_call)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        finals = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
        assert all(p.read_bytes() == b"first half, second half" for p in finals)
        for final in finals:
            final.unlink()
        if status == 0:
            assert len(finals) == 2
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
    assert deaths >= 12
    assert names(tmp_path) == []


def test_second_writer_exits_9_and_the_first_one_wins(tmp_path):
    path = tmp_path / "out"
    first = start(path)
    assert first.stdout.readline() == "writing\n"
    with pytest.raises(OutputExistsError, match=f"being written by process {first.pid};"):
        write_file(path, b"rival")
    with pytest.raises(OutputExistsError, match=f"being written by process {first.pid};"):
        write_file(path, b"rival", force=True)
    second = start(path)
    _, message = second.communicate()
    assert second.returncode == 9
    assert message.count("\n") == 1
    first.communicate("go\n")
    assert first.returncode == 0
    assert names(tmp_path) == ["out"]
    assert path.read_bytes() == b"headbodytail"


def test_of_many_simultaneous_writers_exactly_one_wins(tmp_path):
    path = tmp_path / "out"
    children = [start(path) for _ in range(4)]
    for child in children:
        child.stdin.write("go\n")
    for child in children:
        child.communicate()
    assert sorted(child.returncode for child in children) == [0, 9, 9, 9]
    assert path.read_bytes() == b"headbodytail"
    assert names(tmp_path) == ["out"]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(OutputExistsError), AtomicFile(path) as file:
        file.write(b"mine")
        file.verify()
        path.write_text("theirs")
        atomic.publish([file])
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["out"]


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "out", b"x")
    assert names(tmp_path) == ["out"]
    with pytest.raises(OutputExistsError), AtomicFile(tmp_path / "new") as file:
        file.write(b"mine")
        (tmp_path / "new").write_text("theirs")
        atomic.publish([file])
    assert (tmp_path / "new").read_text() == "theirs"


LIMITED = """
    import resource, sys
    from pathlib import Path
    from quantcli.errors import QuantcliError
    from quantcli.gguf_file import write_file
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        write_file(Path(sys.argv[1]), bytes(3 << 20))
    except QuantcliError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def test_a_file_size_limit_exits_7_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 7
    assert run.stderr.count("\n") == 1
    assert "out: cannot write: File too large; free some space" in run.stderr
    assert names(tmp_path) == []


def test_a_full_disk_is_one_error_and_leaves_nothing(small_disk):
    with pytest.raises(ResourceError, match="cannot write: No space left on device; free some"):
        write_file(small_disk / "out", bytes(2 << 20))
    assert names(small_disk) == []
    write_file(small_disk / "out", bytes(1000))
    with pytest.raises(ResourceError, match=r"2097152 bytes are needed but 10\d+ are free"):
        check_space(small_disk, 2 << 20)
    check_space(small_disk, 1 << 19)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_failing_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match="out: cannot write: Input/output error"):
        write_file(tmp_path / "out", b"data")
    assert names(tmp_path) == []


def test_check_output_accepts_a_new_name(tmp_path):
    (tmp_path / "in").write_text("source")
    check_output(tmp_path / "out", sources=[tmp_path / "in", tmp_path / "missing"])
    assert names(tmp_path) == ["in"]


def test_existing_output_needs_force(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OutputExistsError, match="exists; choose another name or use --force"):
        check_output(path)
    check_output(path, force=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        check_output(tmp_path / "dangling")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["same", "hard link", "symlink"])
def test_an_output_that_is_an_input_is_refused_even_by_force(tmp_path, kind, force):
    source, path = tmp_path / "in", tmp_path / "out"
    source.write_text("weights")
    if kind == "hard link":
        path.hardlink_to(source)
    elif kind == "symlink":
        path.symlink_to(source)
    else:
        path = source
    with pytest.raises(UsageError, match="the output is the input"):
        check_output(path, force=force, sources=[tmp_path / "missing", source])
    assert source.read_text() == "weights"


def test_force_over_a_symlink_replaces_the_link_and_not_its_target(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "out").symlink_to("target")
    write_file(tmp_path / "out", b"new", force=True)
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_impossible_places(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    for place, message in [
        ("none/out", "the output directory .*none does not exist"),
        ("file/out", "the output directory .*file is not a directory"),
        (".", "the output is a directory or a device"),
        ("fifo", "the output is a directory or a device"),
    ]:
        with pytest.raises(UsageError, match=message):
            check_output(tmp_path / place, force=True)
    with pytest.raises(UsageError, match="or a device"):
        write_file(tmp_path / "fifo", b"", force=True)
    for place in ("none/out", "file/out", "n" * 250):
        with pytest.raises(UsageError, match="cannot create"):
            write_file(tmp_path / place, b"")


def test_read_only_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    with pytest.raises(UsageError, match="is not writable"):
        check_output(tmp_path / "out")
