"""MXFP4 in GGUF files: decoded as gguf-py does, evaluated, and quantized twice if asked."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import Call
from tiny_models import build

import quantcli
from quantcli import tensor_types
from quantcli.errors import UnsupportedError
from quantcli.gguf_file import Slot, Writer, read_header, read_tensor
from quantcli.model import open_model
from quantcli.planning import Job
from quantcli.transformer import Transformer

MXFP4 = tensor_types.stored("MXFP4")
QTYPE = gguf.GGMLQuantizationType.MXFP4
UP = "blk.1.ffn_up_exps.weight"
TEXT = Path(__file__).parent / "data" / "evaluation" / "text.txt"


def test_id_and_sizes_are_ggml_s() -> None:
    assert MXFP4.ggml_id == QTYPE.value
    assert (MXFP4.block_size, MXFP4.type_size) == gguf.GGML_QUANT_SIZES[QTYPE]
    assert tensor_types.by_id(QTYPE.value) is MXFP4
    assert "MXFP4" not in tensor_types.names()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # gguf-py's, of exponent 255
def test_decode_equals_gguf_for_every_exponent_and_code() -> None:
    packed = np.random.default_rng(5).integers(0, 256, (9, 256 * 17), np.uint8)
    packed.reshape(9, 256, 17)[..., 0] = np.arange(256)
    packed.reshape(9, 256, 17)[..., 1:][0] = np.arange(256)[:, None]
    assert MXFP4.decode(packed).tobytes() == gguf.dequantize(packed, QTYPE).tobytes()


def test_an_exponent_that_is_no_number_is_damage() -> None:
    packed = np.full((2, 34), 254, np.uint8)
    assert MXFP4.scales_finite(packed)
    packed[1, 17] = 255
    assert not MXFP4.scales_finite(packed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture whose experts are MXFP4, and the same values in F32."""
    place = tmp_path_factory.mktemp("mxfp4")
    source, exact = build(place / "tiny", "qwen3moe", "eight"), place / "exact.gguf"
    quantcli.convert(Job(str(source), ("F32",), exact))
    header = read_header(exact)
    kept = {name: np.ascontiguousarray(read_tensor(e)) for name, e in header.tensors.items()}
    experts = {name: w for name, w in kept.items() if name.endswith("_exps.weight")}
    packed = {name: gguf.quantize(w.view(np.float32), QTYPE) for name, w in experts.items()}
    plain = {name: gguf.dequantize(w, QTYPE).view(np.uint8) for name, w in packed.items()}
    paths = place / "packed.gguf", place / "plain.gguf"
    for path, stacks, type_id in zip(paths, (packed, plain), (QTYPE.value, 0), strict=True):
        slots = [
            Slot(e.name, e.shape, type_id if e.name in stacks else e.type_id)
            for e in header.tensors.values()
        ]
        with Writer(path, header.metadata, slots) as out:
            for slot in slots:
                out.write(slot.name, (kept | stacks)[slot.name])
            out.commit()
    return paths


def test_the_forward_pass_is_that_of_the_decoded_values(files: tuple[Path, Path]) -> None:
    tokens = np.arange(80, dtype=np.int32).reshape(2, 40)
    packed, plain = (Transformer(open_model(str(path))).hidden(tokens) for path in files)
    np.testing.assert_array_equal(packed, plain)


def test_such_a_file_is_evaluated(call: Call, files: tuple[Path, Path]) -> None:
    options = ["--reference", files[1], "--text", TEXT, "--chunks", "1", "--context", "128"]
    done = call("evaluate", files[0], "--json", *options)
    assert done.code == 0
    (found,) = json.loads(done.stdout)["models"]
    assert (found["kld_max"], found["top1_agreement"]) == (0, 1)


def test_quantizing_twice_is_for_those_who_ask(tmp_path: Path, files: tuple[Path, Path]) -> None:
    job = Job(str(files[0]), ("Q8_0",), tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError, match=r"_exps.weight' is MXFP4 already.*--allow-requant"):
        quantcli.plan(job)
    made = [
        quantcli.convert(Job(str(path), ("Q8_0",), tmp_path / path.name, allow_requantize=True))
        for path in files
    ]
    assert "(6 MXFP4)" in made[0].warnings[0]
    stacks = [read_tensor(read_header(Path(m.outputs[0].paths[0])).tensors[UP]) for m in made]
    np.testing.assert_array_equal(*stacks)


@pytest.mark.runtime
def test_llama_cpp_reads_the_same_values(files: tuple[Path, Path]) -> None:
    """It rounds activations where it meets MXFP4, and ours can do the same."""
    from llama_cpp import Runtime

    model = open_model(str(files[0]))
    runner = Transformer(model, activations="llama-cpu")
    ids = np.arange(80) * 7919 % runner.n_vocab
    logits = runner.logits(runner.hidden(ids[None])[0])[-1].astype(np.float64)
    found = Runtime(files[0], 256).next_log_probabilities(ids.tolist(), runner.n_vocab)
    seen = np.isfinite(found)
    assert seen.sum() > runner.n_vocab / 2
    expected = logits - np.logaddexp.reduce(logits)
    np.testing.assert_allclose(found[seen], expected[seen], atol=5e-3)
