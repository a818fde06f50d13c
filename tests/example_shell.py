"""Scripts from configs/ as a user runs them: `quantcli` on PATH is this one, `pip` does nothing."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parent.parent / "configs"


def shell_environment(folder: Path) -> dict[str, str]:
    """An environment with those commands, made in `folder`; offline, nothing of the hub's."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, line in (("quantcli", f'exec {sys.executable} -m quantcli "$@"'), ("pip", "exit 0")):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = f"{commands}:{os.environ['PATH']}"
    return kept | {"PATH": path, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}


def run_shell(
    command: Sequence[str | Path], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; stderr is part of stdout."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
