"""Every method on models that embed: calibration, GPTQ, AWQ, from checkpoints and GGUF files."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from test_awq import TOLERANCE, Loaded, random_scales, relative_change
from test_sequence import converted, halves
from tiny_encoders import ENCODERS, build_encoder

import quantcli
from quantcli.calibration import calibrate, cut_windows, read_text
from quantcli.gguf_file import read_header, read_tensor
from quantcli.methods import METHODS, awq
from quantcli.methods.sequential import Sequential
from quantcli.methods.snapshots import Snapshots
from quantcli.model import open_model
from quantcli.progress import Silent
from quantcli.recipes.unquantized import is_quantizable
from quantcli.tensor_types import get
from quantcli.transformer import Transformer

__all__ = ["halves"]  # a fixture

TEXT = Path(__file__).parent / "data" / "tokenizer" / "text.txt"
LEFT_OUT = {"bert": ["attn", "ffn", "ffn_down"], "nomic_bert": ["attn", "ffn"]}

every_encoder = pytest.mark.parametrize(("family", "variant"), ENCODERS)
CALIBRATING = [name for name, info in METHODS.items() if info.calibrates]


@every_encoder
def test_the_imatrix_is_the_inputs_mean_square(tmp_path: Path, family: str, variant: str) -> None:
    model = open_model(str(build_encoder(tmp_path / "tiny", family, variant)))
    made = calibrate(model, read_text(str(TEXT)), tokens=256, context=64)
    assert made.entries.keys() == {
        name for name, shape in model.shapes.items() if name[:3] == "blk" and len(shape) > 1
    }
    first = next(name for name in made.entries if "blk.0.attn_" in name)
    run = Transformer(model)
    tokens = cut_windows(read_text(str(TEXT)), model.metadata, 64, 256)
    x = np.empty((*tokens.shape, run.n_embd), np.float32)
    run.embed(tokens, slice(0, run.n_vocab), model.rows("token_embd.weight"), x)
    expected = np.square(x.astype(np.float64)).sum(axis=(0, 1))
    np.testing.assert_allclose(made.entries[first].sums[0], expected, rtol=1e-4)


@pytest.mark.parametrize("family", LEFT_OUT)
def test_folds_keep_the_embeddings(tmp_path: Path, family: str) -> None:
    model = Loaded.of(open_model(str(build_encoder(tmp_path / "tiny", family, "odd"))))
    tokens = np.random.default_rng(1).integers(0, 416, (2, 70)).astype(np.int32)
    before, untouched = Transformer(model).hidden(tokens), dict(model.tensors)
    folds = model.folds()
    for number, fold in enumerate(folds):
        awq.apply_fold(model.tensors, fold, random_scales(fold, number))
    assert relative_change(before, Transformer(model).hidden(tokens)) < TOLERANCE
    changed = {name for name in untouched if untouched[name] is not model.tensors[name]}
    assert {name for fold in folds for name in fold.site.weights} < changed
    sizes = model.sizes
    assert [site for site, _ in awq.left_out(sizes, tied=True)] == LEFT_OUT[family]
    folded = {fold.site.name for fold in folds if fold.site.name.startswith("blk.0")}
    assert folded == {f"blk.0.{s}" for s in sizes.wiring.sites if s not in LEFT_OUT[family]}


@pytest.mark.parametrize("family", LEFT_OUT)
@pytest.mark.parametrize("method", CALIBRATING)
def test_every_method_quantizes(tmp_path: Path, family: str, method: str) -> None:
    model = open_model(str(build_encoder(tmp_path / "tiny", family, "odd")))
    tokens = np.random.default_rng(1).integers(0, 416, (9, 32))
    kind = get("Q4_0")
    types = {
        name: kind if is_quantizable(name, shape) and len(shape) > 1 else get("F32")
        for name, shape in model.shapes.items()
    }
    sequential = Sequential(
        model, tokens, [types], method=METHODS[method], threads=2, progress=Silent()
    )
    written = dict.fromkeys(model.shapes, 0)
    better = worse = 0.0
    for part in sequential.parts(Snapshots(tmp_path / "kept", "key"), resume=False):
        (encoded,) = part.encoded
        written[part.name] += encoded.packed.size
        better += encoded.cost.output_error
        worse += encoded.cost.rounding_error
    sizes = {n: int(np.prod(s[:-1])) * types[n].row_bytes(s[-1]) for n, s in model.shapes.items()}
    assert written == sizes
    assert better < worse if METHODS[method].compensates else better <= worse


@pytest.mark.slow
@every_encoder
@pytest.mark.parametrize("method", CALIBRATING)
def test_embeddings_come_nearer_at_the_same_size(
    tmp_path: Path, halves: tuple[Path, Path], family: str, variant: str, method: str
) -> None:
    source = build_encoder(tmp_path / "tiny", family, variant)
    types = ("Q4_0", "Q4_K_M")
    plain = converted(source, tmp_path / "rtn", types)
    asked = {"method": method, "calibrate": str(halves[0]), "calibration_tokens": 8192}
    ours = converted(source, tmp_path / "ours", types, **asked)
    assert [p.stat().st_size // 1024 for p in ours] == [p.stat().st_size // 1024 for p in plain]
    files = [str(path) for path in (*plain, *ours)]
    found = quantcli.evaluate(files, str(source), read_text(str(halves[1])), chunks=8)
    lost = np.array([1 - each.cosine_mean for each in found]).reshape(2, -1)
    assert (lost[1] < 0.8 * lost[0]).all()


def test_a_gguf_file_becomes_the_same(tmp_path: Path) -> None:
    source = build_encoder(tmp_path / "tiny", "bert", "odd")
    (whole,) = converted(source, tmp_path / "whole", ("F32",))
    asked = {"method": "gptq", "calibrate": str(TEXT), "calibration_tokens": 512}
    (first,) = converted(source, tmp_path / "first", ("Q4_0",), **asked)
    (second,) = converted(whole, tmp_path / "second", ("Q4_0",), **asked)
    one, other = (read_header(path).tensors for path in (first, second))
    assert one.keys() == other.keys()
    for name, entry in one.items():
        np.testing.assert_array_equal(read_tensor(entry), read_tensor(other[name]))


def test_inputs_that_awq_leaves_are_named(call: Call, tmp_path: Path) -> None:
    source = build_encoder(tmp_path / "tiny", "bert", "odd")
    said = call("convert", source, "--method", "awq", "--dry-run", "--calibration", TEXT).stderr
    for site in LEFT_OUT["bert"]:
        assert f"the input of '{site}' is not scaled: nothing before it" in said
    assert "attn_output" not in said
    assert "'output'" not in said
