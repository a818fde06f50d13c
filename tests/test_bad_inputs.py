"""The sixty inputs that must get one line and a documented exit code and leave nothing behind.

The list is here; the cases are, by number, in the files beside: the keys of their tables `CASES`
and the names of tests (`test_55_...`). Each goes through the whole command.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import test_bad_inputs_config as for_config
import test_bad_inputs_environment as for_environment
import test_bad_inputs_hub as for_hub
import test_bad_inputs_safetensors as for_safetensors
import test_bad_inputs_shards as for_shards
import test_bad_inputs_values as for_values
from bad_inputs import Case, copy
from conftest import Call

SIXTY = {
    # One file of weights: test_bad_inputs_safetensors.py
    1: "empty file",
    2: "seven bytes",
    3: "header length 2^64-1",
    4: "header length of the limit + 1",
    5: "header beyond the end of the file",
    6: "header not UTF-8",
    7: "broken JSON",
    8: "root is a list",
    9: "nesting 100k deep",
    10: "duplicate tensor",
    11: "overlapping offsets",
    12: "hole",
    13: "trailing bytes",
    14: "two bytes short",
    15: "shape x dtype differs from the bytes",
    16: "negative axis",
    17: "product of the shape overflows",
    18: "shape [0, 2^63]",
    19: "rank 1000",
    20: "unknown dtype",
    21: "integer dtype of a weight",
    22: "__metadata__ with something else than strings",
    23: "name empty, with escape codes, a path, or too long for GGUF",
    24: "no tensors",
    25: "600k empty tensors",
    # Several of them: test_bad_inputs_shards.py
    26: "index names a missing shard",
    27: "shard lacks a listed tensor",
    28: "unlisted tensor",
    29: "one tensor in two shards",
    30: "weight_map leads outside",
    31: "weight_map is no map to names",
    32: "shard truncated",
    33: "some shards of several, no index",
    34: "Git LFS pointer",
    35: "symlink outside, FIFO or directory instead of weights",
    # What describes them: test_bad_inputs_config.py
    36: "config.json missing or invalid",
    37: "unknown architecture",
    38: "hidden_size disagrees with tensors",
    39: "too many or too few layers",
    40: "heads zero, negative, not dividing",
    41: "no output head while untied",
    42: "tied, but a differing lm_head",
    43: "vocabulary larger than the embedding",
    44: "tokenizer missing or needs remote code",
    45: "row not divisible, fallback refused",
    46: "pre-quantized",
    47: "pickle only",
    48: "pickle or zip renamed .safetensors",
    49: "chat template over 1 MiB or not a string",
    # What is in them: test_bad_inputs_values.py
    50: "NaN",
    51: "Inf",
    52: "beyond the scale range of the type",
    53: "bf16 > 65504 to F16",
    54: "imatrix broken or of another model; empty calibration text",
    # Around them: test_bad_inputs_environment.py, test_bad_inputs_hub.py
    55: "output directory missing, read-only, full",
    56: "output exists or is the input",
    57: "repository or revision not found, gated, offline and not cached",
    58: "wrong hash, truncated after all retries, endless 429 and 5xx",
    59: "more memory needed than allowed",
}
ELSEWHERE = {60: "manifest of a batch"}
FILES = [for_safetensors, for_shards, for_config, for_values, for_environment, for_hub]


def test_every_number_has_its_tests() -> None:
    found: Counter[int] = Counter()
    for file in FILES:
        found.update(number for number, _ in getattr(file, "CASES", ()))
        found.update(int(key[:2]) for key in getattr(file, "REFUSED", ()))
        names = (re.match(r"test_(\d\d)_", name) for name in vars(file))
        found.update(int(name[1]) for name in names if name)
    assert sorted(found) == list(SIXTY)
    assert sorted(SIXTY | ELSEWHERE) == list(range(1, 61))


# Runs one conversion after the other with what they may cost on top of the imported program.
FRUGAL = """
import resource, sys
from pathlib import Path
import quantcli.cli.progress, quantcli.cli.render, quantcli.pipeline, quantcli.report.files
used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
limit = used + (256 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for source in sys.argv[1:]:
    sys.argv = ["quantcli", "convert", source]
    try:
        quantcli.cli.main()
    except SystemExit as stop:
        print(source, stop.code)
"""
HOSTILE = [3, 4, 9, 17, 18, 19, 23, 25, 30, 31, 36, 43, 49]


def test_hostile_inputs_cost_at_most_256_mb(tmp_path: Path) -> None:
    tables: dict[str, dict[tuple[int, str], Case]] = {
        "gqa": for_safetensors.CASES | for_config.CASES,
        "tied": for_shards.SHARDS,
    }
    expected = {}
    for variant, cases in tables.items():
        for (number, words), case in cases.items():
            if number in HOSTILE:
                source = copy(tmp_path / f"{number} {words}".replace("/", "-"), variant)
                case.damage(source)
                expected[str(source)] = case.code
    done = subprocess.run(
        [sys.executable, "-c", FRUGAL, *expected],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{source} {code}" for source, code in expected.items()]
    assert done.stderr.count("error: ") == done.stderr.count("\n") == len(expected)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"PK\x03\x04"])
def test_inspecting_what_is_no_model(tmp_path: Path, call: Call, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert call("inspect", path).failed_with(3, "x.gguf")
