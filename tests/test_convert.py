"""The whole pipeline, through the public API, against what llama.cpp's converter writes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_contents import comparable, contents
from tiny_models import VARIANTS, build

import quantcli
from quantcli.recipes import FILE_TYPES

RECORDS = Path(__file__).parent / "data" / "architectures"


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_f32_and_bf16_equal_llama_cpps_converter(tmp_path: Path, family: str, variant: str) -> None:
    record = json.loads((RECORDS / f"{family}-{variant}.json").read_text())
    folder = build(tmp_path / f"{family}-{variant}", family, variant)
    job = quantcli.Job(str(folder), types=("F32", "BF16"), output=tmp_path)
    for output in quantcli.convert(job).outputs:
        expected = record[output.file_type.lower()]
        found = contents(Path(output.paths[0]))
        assert found["tensors"] == expected["tensors"]
        # Some classes of the converter forget the file type.
        said = {"general.file_type": found["metadata"]["general.file_type"], **expected["metadata"]}
        assert comparable(found["metadata"]) == comparable(said)


def sha256s(job: quantcli.Job, folder: Path) -> dict[str, str]:
    """File type -> sha256 of what a job writes into a fresh folder, as found on disk."""
    folder.mkdir()
    found = {}
    for output in quantcli.convert(replace(job, output=folder)).outputs:
        data = Path(output.paths[0]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == output.sha256[0]
        assert len(data) == output.size_bytes
        found[output.file_type] = output.sha256[0]
    return found


def test_same_bytes_on_every_run_and_thread_count(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), types=("Q4_K_M", "Q8_0", "Q2_K"), threads=1)
    first = sha256s(job, tmp_path / "one")
    assert sha256s(job, tmp_path / "again") == first
    assert sha256s(replace(job, threads=3), tmp_path / "three") == first


def test_one_pass_writes_what_single_conversions_write(tmp_path: Path, demo: Path) -> None:
    together = sha256s(quantcli.Job(str(demo), types=("Q4_K_M", "Q5_0")), tmp_path / "together")
    for name, digest in together.items():
        alone = sha256s(quantcli.Job(str(demo), types=(name,)), tmp_path / name)
        assert alone == {name: digest}


def test_every_file_type_is_planned_to_the_byte(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), types=tuple(FILE_TYPES), output=tmp_path)
    planned = {file.file_type.name: file for file in quantcli.plan(job).files}
    report = quantcli.convert(job)
    assert {output.file_type for output in report.outputs} == set(FILE_TYPES)
    for output in report.outputs:
        plan = planned[output.file_type]
        assert output.size_bytes == plan.size_bytes == Path(output.paths[0]).stat().st_size
        assert output.bpw == pytest.approx(plan.bpw)


def test_more_bits_mean_less_error(tmp_path: Path, demo: Path) -> None:
    ladder = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32")
    report = quantcli.convert(quantcli.Job(str(demo), types=ladder, output=tmp_path))
    errors = [output.cost.relative_error for output in report.outputs]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.35
    assert errors[2] < 0.075
    assert errors[-1] == 0.0


def test_file_names_follow_the_convention(tmp_path: Path, demo: Path) -> None:
    report = quantcli.convert(quantcli.Job(str(demo), types=("Q4_0",), output=tmp_path))
    assert [Path(path).name for path in report.outputs[0].paths] == ["Demo-4.2M-Q4_0.gguf"]
    assert [path.name for path in tmp_path.iterdir()] == ["Demo-4.2M-Q4_0.gguf"]
