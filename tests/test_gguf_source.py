"""Conversion of GGUF files: what llama-quantize makes of them, and what only we do."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from gguf_sources import EXPERTS, N, cases, metadata, tensors, write
from safetensors.numpy import save_file

import quantcli
from quantcli.calibration import Entry, Imatrix, write_imatrix
from quantcli.checkpoint import open_checkpoint
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.gguf_file import read_header, read_split, read_tensor
from quantcli.recipes import Recipe
from quantcli.tensor_types import get

RECORD = json.loads((Path(__file__).parent / "data" / "gguf_sources.json").read_text())
COMPARED = ("F32", "F16", "BF16", "I32", "Q8_0")  # types whose bytes are no matter of a search


def without_ours(keys: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """In file order."""
    return [(key, value) for key, value in keys.items() if not key.startswith("quantcli.")]


def comparable(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Tensors in file order: name, type, shape, and the sha256 where it must be the same."""
    return [(name, each if each[0] in COMPARED else each[:2]) for name, each in found.items()]


def job(source: Path, output: Path, file_type: str = "Q4_K_M", **options: Any) -> quantcli.Job:
    recipe = Recipe(leave_output_tensor=options.pop("leave_output_tensor", False))
    return quantcli.Job(
        str(source), types=(file_type,), output=output, recipe=recipe, threads=1, **options
    )


@pytest.mark.parametrize("name", [name for name in RECORD if name != "made_with"])
def test_same_types_metadata_and_order_as_llama_quantizes(tmp_path: Path, name: str) -> None:
    source, options = cases(tmp_path)[name]
    made = tmp_path / "made"
    made.mkdir()
    quantcli.convert(job(source, made / "x.gguf", **options))
    found = {path.name: contents(path) for path in sorted(made.iterdir())}
    assert list(found) == list(RECORD[name])
    for file, expected in RECORD[name].items():
        assert without_ours(found[file]["metadata"]) == list(expected["metadata"].items())
        assert comparable(found[file]["tensors"]) == comparable(expected["tensors"])


def test_own_keys_say_who_made_it(tmp_path: Path) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors())
    quantcli.convert(job(source, tmp_path / "y.gguf"))
    keys = read_header(tmp_path / "y.gguf").metadata
    own = {key: value for key, value in keys.items() if key.startswith("quantcli.")}
    assert own == {"quantcli.version": quantcli.__version__, "quantcli.method": "rtn"}
    assert (tmp_path / "x.gguf").exists()


def half_precision(demo: Path, folder: Path) -> Path:
    """The demo checkpoint with its weights in F16."""
    shutil.copytree(demo, folder)
    checkpoint = open_checkpoint(str(demo))
    halves = {name: checkpoint.float32(name).astype(np.float16) for name in checkpoint.tensors}
    save_file(halves, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("stored_as", ["F16", "F32"])
def test_a_checkpoint_and_its_gguf_give_the_same_tensors(
    tmp_path: Path, demo: Path, stored_as: str
) -> None:
    """To the byte; only the order of tensors and keys differs."""
    source = half_precision(demo, tmp_path / "half") if stored_as == "F16" else demo
    types = ("Q4_K_M", "Q2_K")
    for name, start in {"direct": source, "float": None}.items():
        if start is None:
            start = tmp_path / "float.gguf"
            quantcli.convert(job(source, start, stored_as))
        (tmp_path / name).mkdir()
        quantcli.convert(replace(job(start, tmp_path / name / "{type}.gguf"), types=types))
    for file in ("Q4_K_M.gguf", "Q2_K.gguf"):
        direct, by_gguf = (contents(tmp_path / name / file) for name in ("direct", "float"))
        assert by_gguf["tensors"] == direct["tensors"]
        assert by_gguf["metadata"] == direct["metadata"]


def imatrix_of(path: Path, *, leave_out: str = "-") -> Imatrix:
    rng = np.random.default_rng(5)
    entries = {}
    for name, (w, _) in tensors().items():
        if w.ndim > 1 and "inp" not in name and "embd" not in name and leave_out not in name:
            n_expert = EXPERTS if "exps" in name else 1
            sums = rng.uniform(0.01, 50, (n_expert, w.shape[-1])).astype(np.float32)
            entries[name] = Entry(sums, np.full(n_expert, 7, np.float32))
    imatrix = Imatrix(entries, ["some.txt"], 3, 512, path.name)
    write_imatrix(path, imatrix)
    return imatrix


def test_each_expert_is_weighted_by_its_own_importance(tmp_path: Path) -> None:
    keys = metadata(**{"quantize.imatrix.dataset": "old", "quantize.imatrix.file": "old"})
    source = write(tmp_path / "x.gguf", keys, tensors())
    imatrix = imatrix_of(tmp_path / "i.gguf")
    quantcli.convert(job(source, tmp_path / "y.gguf", imatrix=tmp_path / "i.gguf"))
    made = read_header(tmp_path / "y.gguf")
    name = "blk.2.ffn_up_exps.weight"
    w = tensors()[name][0].astype(np.float16).astype(np.float32)
    importance = imatrix.importance(name, N, EXPERTS)
    assert importance is not None
    kind = get("Q4_K")
    expected = [kind.encode(w[i], importance[i]) for i in range(EXPERTS)]
    assert np.array_equal(read_tensor(made.tensors[name]), np.concatenate(expected))
    assert not np.array_equal(expected[1], kind.encode(w[1], importance[0]))
    said = {k: v for k, v in made.metadata.items() if k.startswith("quantize.")}
    assert said == {
        "quantize.imatrix.file": "i.gguf",
        "quantize.imatrix.dataset": "some.txt",
        "quantize.imatrix.entries_count": len(imatrix.entries),
        "quantize.imatrix.chunks_count": 3,
    }


def test_a_tensor_without_entry_is_rounded_without_and_said_so(tmp_path: Path) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors())
    imatrix_of(tmp_path / "i.gguf", leave_out="blk.1.attn_k.")
    with_it = job(source, tmp_path / "y.gguf", imatrix=tmp_path / "i.gguf")
    report = quantcli.convert(with_it)
    assert [line for line in report.warnings if "'blk.1.attn_k.weight'" in line]
    with pytest.raises(BadInputError, match=r"no entry for 'blk.1.attn_k.weight'"):
        quantcli.plan(replace(with_it, types=("Q2_K_S",)))


def test_an_imatrix_of_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    content = tensors()
    name = "blk.0.ffn_up_exps.weight"
    content[name] = (content[name][0][:2], "F16")
    source = write(tmp_path / "x.gguf", metadata(), content)
    imatrix_of(tmp_path / "i.gguf")
    with pytest.raises(BadInputError, match=r"1024 values for 'blk.0.ffn_up_exps.weight'"):
        quantcli.plan(job(source, tmp_path, imatrix=tmp_path / "i.gguf"))


def test_quantizing_twice_is_for_those_who_ask(tmp_path: Path) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors("Q8_0"))
    with pytest.raises(UnsupportedError, match=r"is Q8_0 already.*--allow-requantize"):
        quantcli.plan(job(source, tmp_path))
    asked = job(source, tmp_path / "y.gguf", allow_requantize=True)
    report = quantcli.convert(asked)
    assert [line for line in report.warnings if line.startswith("quantized twice")]
    assert "(26 Q8_0)" in report.warnings[0]
    # What keeps its type is copied, and needs no leave.
    assert quantcli.convert(job(source, tmp_path / "z.gguf", "Q8_0")).warnings == []


def test_types_without_decoder_are_refused_while_planning(tmp_path: Path) -> None:
    content = tensors()
    content["blk.0.attn_q.weight"] = (content["blk.0.attn_q.weight"][0], "I32")
    source = write(tmp_path / "x.gguf", metadata(), content)
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_q.weight' is I32, which cannot"):
        quantcli.plan(job(source, tmp_path, allow_requantize=True))


def qat(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights on a grid of Q4_0 as training for it leaves them, their codes and scales."""
    rng = np.random.default_rng(11)
    codes = rng.integers(-8, 8, (64, N // 32, 32)).astype(np.float32)
    np.put_along_axis(codes, rng.integers(0, 32, (64, N // 32, 1)), -8, axis=2)
    d = rng.uniform(0.01, 0.2, (64, N // 32, 1)) * rng.choice([-1, 1], (64, N // 32, 1))
    d = d.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        d = get("BF16").decode(get("BF16").encode(d.reshape(64, -1))).reshape(d.shape)
    return (codes * d).reshape(64, N), codes, d


@pytest.mark.parametrize("stored_as", ["F32", "F16", "BF16", "Q4_0"])
def test_weights_trained_for_q4_0_keep_their_grid(tmp_path: Path, stored_as: str) -> None:
    w, codes, d = qat(stored_as)
    name = "blk.0.attn_q.weight"
    source = write(tmp_path / "x.gguf", metadata(), tensors() | {name: (w, stored_as)})
    quantcli.convert(job(source, tmp_path / "y.gguf", "Q4_0"))
    found = get("Q4_0").decode(read_tensor(read_header(tmp_path / "y.gguf").tensors[name]))
    assert np.array_equal(found.reshape(codes.shape), codes * d)


@pytest.mark.slow
def test_gptq_of_a_gguf_equals_that_of_its_checkpoint(tmp_path: Path, demo: Path) -> None:
    quantcli.convert(job(demo, tmp_path / "float.gguf", "F32"))
    options = {"method": "gptq", "calibration_tokens": 1024, "evaluate": "builtin"}
    reports = [
        quantcli.convert(job(source, tmp_path / f"{name}.gguf", **options))
        for name, source in {"a": demo, "b": tmp_path / "float.gguf"}.items()
    ]
    one, other = (contents(tmp_path / name)["tensors"] for name in ("a.gguf", "b.gguf"))
    assert one == other
    qualities = [report.outputs[0].quality for report in reports]
    assert qualities[0] == qualities[1] is not None


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_calibrate_need_a_forward_pass(tmp_path: Path, method: str) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors())
    with pytest.raises(UnsupportedError, match="'olmoe' has no forward pass"):
        quantcli.plan(job(source, tmp_path, method=method))


def test_alignment_is_kept(tmp_path: Path) -> None:
    keys = metadata(**{"general.alignment": np.uint32(128)})
    source = write(tmp_path / "x.gguf", keys, tensors())
    quantcli.convert(job(source, tmp_path / "y.gguf"))
    assert {t.offset % 128 for t in read_header(tmp_path / "y.gguf").tensors.values()} == {0}
    assert len(gguf.GGUFReader(tmp_path / "y.gguf").tensors) == len(tensors())


def test_parts_are_cut_anew_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "x.gguf", metadata(), tensors(), [0, 9, 25, 5])
    whole = write(tmp_path / "whole.gguf", metadata(), tensors())
    quantcli.convert(job(whole, tmp_path / "y.gguf"))
    quantcli.convert(job(source, tmp_path / "z.gguf", split_max_bytes=9000))
    cut = read_split(next(tmp_path.glob("z-00001-of-*.gguf")))
    assert len(cut.files) > 2
    expected = read_header(tmp_path / "y.gguf")
    assert list(cut.tensors) == list(expected.tensors)
    for name, entry in cut.tensors.items():
        assert np.array_equal(read_tensor(entry), read_tensor(expected.tensors[name]))


def test_plan_knows_every_byte(tmp_path: Path) -> None:
    for name, (source, options) in cases(tmp_path).items():
        made = tmp_path / name
        made.mkdir()
        wanted = job(source, made, **options)
        planned = quantcli.plan(wanted).files[0]
        output = quantcli.convert(wanted).outputs[0]
        sizes = [Path(path).stat().st_size for path in output.paths]
        assert planned.size_bytes == output.size_bytes == sum(sizes)


def test_a_batch_of_gguf_files(tmp_path: Path, call: Call) -> None:
    write(call.work / "one-F16.gguf", metadata(), tensors())
    write(call.work / "two.gguf", metadata(), tensors("Q8_0"), [20, 19])
    (call.work / "zoo.toml").write_text(
        '[defaults]\ntypes = ["Q4_0"]\n[[models]]\nsource = "one-F16.gguf"\n'
        '[[models]]\nsource = "two-00001-of-00002.gguf"\n'
        "allow_requantize = true\nkeep_split = true\n"
    )
    shelf = call.work / "shelf"
    assert call("batch", "zoo.toml", "-o", shelf).code == 0
    made = {str(path.relative_to(shelf)) for path in shelf.rglob("*.gguf")}
    assert made == {
        "one/one-Q4_0.gguf",
        *(f"two/two-Q4_0-0000{i}-of-00002.gguf" for i in (1, 2)),
    }
    first = {path: path.stat().st_mtime_ns for path in shelf.rglob("*.gguf")}
    assert call("batch", "zoo.toml", "-o", shelf).code == 0
    assert {path: path.stat().st_mtime_ns for path in shelf.rglob("*.gguf")} == first


def test_a_file_without_a_name_is_called_as_it_is(tmp_path: Path) -> None:
    keys = metadata()
    del keys["general.name"]
    source = write(tmp_path / "odd-one.F16.gguf", keys, tensors())
    quantcli.convert(job(source, tmp_path))
    assert (tmp_path / "odd-one-Q4_K_M.gguf").exists()
