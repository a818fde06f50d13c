"""What is done with a quantized source is what is done with its values as F32."""

from pathlib import Path
from typing import Any

import pytest
from gguf_contents import contents
from hub_client import Start
from packers import CASES
from packing import write_pair

import quantcli
from quantcli import encoding
from quantcli.planning import make_plan

pytest_plugins = ["hub_fixtures"]


def converted(source: Path | str, output: Path, **more: Any) -> tuple[quantcli.Job, Any]:
    settings: dict[str, Any] = {"types": ("Q4_0",), "threads": 1} | more
    job = quantcli.Job(str(source), output=output, **settings)
    return job, quantcli.convert(job)


@pytest.mark.parametrize("name", ["gptq act-order 4 bits", "fp8 block cut off", "bnb nf4 nested"])
def test_worker_processes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain = write_pair(tmp_path, CASES[name], shards=2)
    converted(plain, tmp_path / "plain.gguf")
    monkeypatch.setattr(encoding, "WORTH_PROCESSES", 0)
    converted(packed, tmp_path / "packed.gguf", threads=2)
    found, expected = (contents(tmp_path / f"{which}.gguf") for which in ("packed", "plain"))
    assert found["tensors"] == expected["tensors"]


def test_calibration_and_evaluation(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    packed, plain = write_pair(tmp_path, CASES["awq"])
    asked = {
        "method": "awq+gptq",
        "calibrate": str(text),
        "calibration_tokens": 512,
        "evaluate": str(text),
    }
    reports = [
        converted(source, tmp_path / f"{source.parent.name}.gguf", **asked)[1]
        for source in (packed, plain)
    ]
    found, expected = (contents(tmp_path / f"{which}.gguf") for which in ("packed", "plain"))
    assert found["tensors"] == expected["tensors"]
    assert reports[0].outputs[0].quality == reports[1].outputs[0].quality
    twice = [[line for line in r.warnings if "quantized already (AWQ" in line] for r in reports]
    assert [len(lines) for lines in twice] == [1, 0]


def test_a_file_is_deleted_after_the_last_weight_with_a_part_in_it(
    hub: Start, tmp_path: Path
) -> None:
    packed, plain = write_pair(tmp_path, CASES["gptq 4 bits"], shards=3)
    hub({"org/name": packed})
    converted(plain, tmp_path / "plain.gguf")
    job, done = converted("org/name", tmp_path / "hub.gguf", delete_source=True)
    assert len([line for line in done.warnings if "quantized already" in line]) == 1
    found, expected = (contents(tmp_path / f"{which}.gguf") for which in ("hub", "plain"))
    assert found["tensors"] == expected["tensors"]
    assert list((tmp_path / "cache").glob("models--org--name/snapshots/*/*.safetensors")) == []
    again = make_plan(job, weights=False)
    assert again.checkpoint.missing_bytes == again.checkpoint.source_bytes > 0
