"""Broken and unsupported quantized checkpoints: one line, the right exit code, nothing left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from packers import CASES
from packing import Stored, read_stored, write_pair, write_parts, write_safetensors

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError

Edit = Callable[[Stored], Any]


def drop(part: str) -> Edit:
    return lambda parts: parts.pop(part)


def put(part: str, at: Any, value: Any) -> Edit:
    """Change one stored number."""

    def edit(parts: Stored) -> None:
        dtype, array = parts[part]
        changed = np.array(array)
        changed[at] = value
        parts[part] = dtype, changed

    return edit


def cut(part: str, *index: Any) -> Edit:
    """Keep what `index` takes."""

    def edit(parts: Stored) -> None:
        parts[part] = parts[part][0], np.ascontiguousarray(parts[part][1][index])

    return edit


def called(part: str, dtype: str) -> Edit:
    """The same bytes under another dtype of that size."""
    return lambda parts: parts.__setitem__(part, (dtype, parts[part][1]))


NF4_STATE = "weight.quant_state.bitsandbytes__nf4"


def state(**changes: Any) -> Edit:
    """Change what the JSON of bitsandbytes says."""

    def edit(parts: Stored) -> None:
        document = json.loads(parts[NF4_STATE][1].tobytes()) | changes
        parts[NF4_STATE] = "U8", np.frombuffer(json.dumps(document).encode(), np.uint8)

    return edit


DAMAGE: dict[str, tuple[str, Edit, type[QuantcliError], list[str]]] = {
    "fp8 without scale": (
        "fp8 tensor", drop("weight_scale"), BadInputError, ["'a.weight_scale' is missing"],
    ),
    "fp8 without scales": (
        "fp8 block", drop("weight_scale_inv"), BadInputError, ["'a.weight_scale_inv' is missing"],
    ),
    "fp8 of too few scales": (
        "fp8 row", cut("weight_scale", slice(6)), BadInputError, ["(6, 1)", "(7, 1)"],
    ),
    "fp8 of too few blocks": (
        "fp8 block", cut("weight_scale_inv", slice(2)), BadInputError, ["(2, 3)", "(3, 3)"],
    ),
    "fp8 of odd scales": (
        "fp8 row", called("weight_scale", "I32"), UnsupportedError, ["'a.weight_scale' is I32"],
    ),
    "fp8 scale nan": (
        "fp8 row", put("weight_scale", 3, np.nan), BadInputError, ["'a.weight_scale' holds nan"],
    ),
    "fp8 scale inf": (
        "fp8 block", put("weight_scale_inv", 2, np.inf), BadInputError, ["_inv' holds inf"],
    ),
    "fp8 scale power nan": (
        "fp8 block powers", put("weight_scale_inv", 1, 255), BadInputError, ["_inv' holds nan"],
    ),
    "fp8 nan": (
        "fp8 block", put("weight", (20, 7), 0xFF), BadInputError, ["holds nan at row 20, column 7"],
    ),
    "fp8 too large": (
        "fp8 row", put("weight_scale", 3, 1e38), BadInputError, ["'a.weight': code and scale give"],
    ),
    "gptq without zeros": (
        "gptq 4 bits", drop("qzeros"), BadInputError, ["'a.qzeros' is missing"],
    ),
    "gptq without scales": (
        "gptq 4 bits", drop("scales"), BadInputError, ["'a.scales' is missing"],
    ),
    "gptq of too few groups": (
        "gptq 4 bits", cut("scales", slice(2)), BadInputError, ["(2, 64) instead of (3, 64)"],
    ),
    "gptq of too few zeros": (
        "gptq 3 bits", cut("qzeros", slice(3), slice(5)), BadInputError, ["(3, 5)", "(3, 6)"],
    ),
    "gptq of words that codes do not fill": (
        "gptq 3 bits", cut("qweight", slice(8)), BadInputError, ["(8, 64), which codes of 3 bits"],
    ),
    "gptq of rows that words do not fill": (
        "gptq 4 bits", cut("qweight", ..., slice(60)), BadInputError, ["(12, 60), which codes"],
    ),
    "gptq of too few columns in g_idx": (
        "gptq 4 bits", cut("g_idx", slice(95)), BadInputError, ["(95,) instead of (96,)"],
    ),
    "gptq of no matrix": (
        "gptq 4 bits", cut("qweight", 0), BadInputError, ["(64,), which is no matrix"],
    ),
    "gptq of a group that is not there": (
        "gptq 4 bits", put("g_idx", 5, 3), BadInputError, ["'a.g_idx' names group 3 of 3"],
    ),
    "gptq of a negative group": (
        "gptq 4 bits", put("g_idx", 5, -1), BadInputError, ["'a.g_idx' names group -1 of 3"],
    ),
    "gptq scale nan": (
        "gptq 4 bits", put("scales", (2, 9), np.nan), BadInputError, ["'a.scales' holds nan"],
    ),
    "gptq of floats": (
        "gptq 4 bits", called("qweight", "F32"), UnsupportedError, ["'a.qweight' is F32"],
    ),
    "gptq and plain": (
        "gptq 4 bits",
        lambda parts: parts.update(weight=("F32", np.ones((64, 96), np.float32))),
        BadInputError,
        ["'a.weight' is there quantized and not quantized"],
    ),
    "awq without zeros": ("awq", drop("qzeros"), BadInputError, ["'a.qzeros' is missing"]),
    "awq of too few scales": (
        "awq", cut("scales", slice(3)), BadInputError, ["(3, 24) instead of (4, 24)"],
    ),
    "awq of groups that do not divide": (
        "awq", cut("qweight", slice(60)), BadInputError, ["60 columns, which groups of 16"],
    ),
    "awq scale inf": (
        "awq", put("scales", (1, 5), np.inf), BadInputError, ["'a.scales' holds inf"],
    ),
    "bnb without absmax": (
        "bnb nf4", drop("weight.absmax"), BadInputError, ["'a.weight.absmax' is missing"],
    ),
    "bnb without table": (
        "bnb nf4", drop("weight.quant_map"), BadInputError, ["'a.weight.quant_map' is missing"],
    ),
    "bnb without nested scales": (
        "bnb nf4 nested", drop("weight.nested_absmax"), BadInputError, ["_absmax' is missing"],
    ),
    "bnb without state": (
        "bnb nf4", drop("weight.quant_state.bitsandbytes__nf4"), BadInputError, ["none is stored"],
    ),
    "bnb of broken JSON": (
        "bnb nf4", put(NF4_STATE, 0, ord("[")), BadInputError, ["__nf4' is not the JSON"],
    ),
    "bnb of too little JSON": (
        "bnb nf4", cut(NF4_STATE, slice(40)), BadInputError, ["__nf4' is not the JSON"],
    ),
    "bnb of another shape": (
        "bnb nf4", state(shape=[24, 65]), BadInputError, ["(768, 1) instead of (780, 1)"],
    ),
    "bnb of no shape": ("bnb nf4", state(shape=[24]), BadInputError, ["is not the JSON"]),
    "bnb of a negative shape": (
        "bnb nf4", state(shape=[-24, -64]), BadInputError, ["is not the JSON"],
    ),
    "bnb of blocks of 0": ("bnb nf4", state(blocksize=0), BadInputError, ["is not the JSON"]),
    "bnb of other blocks": (
        "bnb nf4", state(blocksize=32), BadInputError, ["(24,) instead of (48,)"],
    ),
    "bnb of an offset nan": (
        "bnb nf4 nested", state(nested_offset=float("nan")), BadInputError, ["is not the JSON"],
    ),
    "bnb absmax nan": (
        "bnb nf4", put("weight.absmax", 4, np.nan), BadInputError, ["'a.weight.absmax' holds nan"],
    ),
    "bnb nested absmax inf": (
        "bnb nf4 nested", put("weight.nested_absmax", 1, np.inf), BadInputError, ["holds inf"],
    ),
    "bnb in wider numbers": (
        "bnb nf4", called("weight", "F8_E4M3"), UnsupportedError, ["'a.weight' is F8_E4M3; only"],
    ),
    "int8 without scales": ("bnb int8", drop("SCB"), BadInputError, ["'a.SCB' is missing"]),
    "int8 of too few scales": (
        "bnb int8", cut("SCB", slice(20)), BadInputError, ["(20,) instead of (24,)"],
    ),
    "int8 scale nan": ("bnb int8", put("SCB", 0, np.nan), BadInputError, ["'a.SCB' holds nan"]),
    "int8 in another order": (
        "bnb int8", put("weight_format", (), 1), BadInputError, ["'a.weight_format' is not 0"],
    ),
    "ct packed without shape": (
        "ct packed", drop("weight_shape"), BadInputError, ["'a.weight_shape' is missing"],
    ),
    "ct packed of no shape": (
        "ct packed", put("weight_shape", 0, -19), BadInputError, ["-19 and 64, which is no shape"],
    ),
    "ct packed of another shape": (
        "ct packed", put("weight_shape", 1, 96), BadInputError, ["(19, 8) instead of (19, 12)"],
    ),
    "ct packed of groups that do not divide": (
        "ct packed", put("weight_shape", 1, 63), BadInputError, ["63 columns, which groups of 32"],
    ),
    "ct packed without scales": (
        "ct packed", drop("weight_scale"), BadInputError, ["'a.weight_scale' is missing"],
    ),
    "ct packed of too few scales": (
        "ct packed", cut("weight_scale", slice(9)), BadInputError, ["(9, 2) instead of (19, 2)"],
    ),
    "ct packed scale nan": (
        "ct packed", put("weight_scale", (3, 1), 0x7FC0), BadInputError, ["'a.weight_scale' holds"],
    ),
    "ct packed without zeros": (
        "ct packed asymmetric", drop("weight_zero_point"), BadInputError, ["_point' is missing"],
    ),
    "ct packed of zeros that are not packed": (
        "ct packed asymmetric", called("weight_zero_point", "F32"), UnsupportedError, ["is F32"],
    ),
    "ct packed without g_idx": (
        "ct packed act-order", drop("weight_g_idx"), BadInputError, ["_g_idx' is missing"],
    ),
    "ct packed of a group that is not there": (
        "ct packed act-order", put("weight_g_idx", 7, 4), BadInputError, ["names group 4 of 4"],
    ),
    "ct int8 of too few scales": (
        "ct int8 rows", cut("weight_scale", slice(5)), BadInputError, ["(5, 1)", "(7, 1)"],
    ),
    "ct int8 without zeros": (
        "ct int8 tensor asymmetric", drop("weight_zero_point"), BadInputError, ["is missing"],
    ),
    "ct fp8 nan": (
        "ct fp8 rows", put("weight", (2, 3), 0x7F), BadInputError, ["nan at row 2, column 3"],
    ),
    "ct nvfp4 without global scale": (
        "ct nvfp4", drop("weight_global_scale"), BadInputError, ["_global_scale' is missing"],
    ),
    "ct nvfp4 global scale 0": (
        "ct nvfp4", put("weight_global_scale", 0, 0), BadInputError, ["_global_scale' is 0"],
    ),
    "ct nvfp4 scale nan": (
        "ct nvfp4", put("weight_scale", (2, 1), 0xFF), BadInputError, ["_scale' holds nan"],
    ),
    "ct nvfp4 of odd columns": (
        "ct nvfp4", cut("weight_packed", ..., slice(31)), BadInputError, ["62 columns, which"],
    ),
    "modelopt without factor": (
        "modelopt nvfp4", drop("weight_scale_2"), BadInputError, ["'a.weight_scale_2' is missing"],
    ),
    "modelopt factor inf": (
        "modelopt nvfp4", put("weight_scale_2", (), np.inf), BadInputError, ["_2' holds inf"],
    ),
    "modelopt of too few scales": (
        "modelopt nvfp4", cut("weight_scale", slice(9)), BadInputError, ["(9, 4)", "(24, 4)"],
    ),
    "ct mxfp4 scale nan": (
        "ct mxfp4", put("weight_scale", (2, 1), 0xFF), BadInputError, ["_scale' holds nan"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    of, edit, kind, words = DAMAGE[name]
    case = CASES[of]
    parts = dict(case.packer(np.random.default_rng(5), *case.shape).parts)
    edit(parts)
    folder = write_parts(tmp_path / "m", case.settings, parts)
    with pytest.raises(QuantcliError) as caught:
        open_checkpoint(str(folder)).float32("a.weight")
    assert type(caught.value) is kind
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", CASES)
def test_any_part_of_any_shape_and_dtype(name: str, tmp_path: Path) -> None:
    """Whatever is done to a part, reading gives values of the shape shown or one of our errors."""
    case, random = CASES[name], np.random.default_rng(13)
    good = dict(case.packer(random, *case.shape).parts)
    refused = 0
    for suffix, (dtype, array) in good.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        noise = random.integers(0, 256, array.nbytes, np.uint8).view(array.dtype)
        changes = {
            "shape": (dtype, flat),
            "empty": (dtype, flat[:0]),
            "no rows": (dtype, array.reshape(-1)[:0].reshape(0, 5)),
            "deep": (dtype, array.reshape(1, 1, *array.shape)),
            "half": (dtype, flat[: flat.size // 2]),
            "bytes": ("U8", flat.view(np.uint8)),
            "noise": (dtype, noise.reshape(array.shape)),
        }
        for number, change in enumerate(changes.values()):
            folder = write_parts(tmp_path / f"{number}", case.settings, good | {suffix: change})
            try:
                checkpoint = open_checkpoint(str(folder))
                values = checkpoint.float32("a.weight")
                assert values.shape == checkpoint.tensors["a.weight"].shape
            except QuantcliError:
                refused += 1
    assert refused >= len(good)


def test_nothing_is_left_of_a_conversion_that_meets_nan(tmp_path: Path, call: Call) -> None:
    packed, _ = write_pair(tmp_path, CASES["fp8 row"])
    stored = read_stored(packed / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight_scale"
    scales = np.array(stored[name][1])
    scales[-1] = np.nan
    write_safetensors(packed / "model.safetensors", stored | {name: ("F32", scales)})
    done = call("convert", packed, "--type", "Q8_0")
    assert done.failed_with(3, name, "holds nan")
