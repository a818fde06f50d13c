"""Folds change no function, and the search finds the scales that are worth folding."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VARIANTS, build, describe

from quantcli.architectures import embeds, find, supported
from quantcli.architectures.wiring import MLP
from quantcli.methods import awq
from quantcli.methods.awq import Fold
from quantcli.model import Model, open_model
from quantcli.tensor_types import TensorType, get
from quantcli.transformer import Site, Transformer
from quantcli.transformer.hyperparameters import Hyperparameters, read_hyperparameters
from quantcli.transformer.rounding import round_like_llama_cpp

TOLERANCE = 1e-4  # of the largest logit


@dataclass
class Loaded:
    """A model whose tensors are a dict."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: Model) -> "Loaded":
        tensors = {name: model.rows(name).reshape(shape) for name, shape in model.shapes.items()}
        return cls(model.metadata, tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def types(self) -> dict[str, str]:
        return dict.fromkeys(self.tensors, "F32")

    def rows(self, name: str, rows: slice | None = None) -> np.ndarray:
        tensor = self.tensors[name]
        return tensor if rows is None or tensor.ndim < 2 else tensor[rows]

    @property
    def sizes(self) -> Hyperparameters:
        return read_hyperparameters(self.metadata, self.tensors)

    @property
    def tied(self) -> bool:
        return "output.weight" not in self.tensors

    def folds(self) -> list[Fold]:
        found = [f for i in range(self.sizes.n_block) for f in awq.block_folds(self.sizes, i)]
        head = awq.head_fold(self.sizes, tied=self.tied)
        return [*found, head] if head else found

    def logits(self) -> np.ndarray:
        n_vocab = len(self.tensors["token_embd.weight"])
        tokens = np.random.default_rng(1).integers(0, n_vocab, (1, 90)).astype(np.int32)
        runner = Transformer(self)
        return runner.logits(runner.hidden(tokens)[0])


def random_scales(fold: Fold, seed: int = 0) -> np.ndarray:
    """In [1/4, 4], equal for columns that come from one row."""
    exponents = np.random.default_rng(seed).uniform(-2, 2, fold.sources.max() + 1)
    return np.exp2(exponents)[fold.sources].astype(np.float32)


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    return np.abs(after - before).max() / np.abs(before).max()


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_folds_keep_the_logits(tmp_path: Path, family: str, variant: str) -> None:
    model = Loaded.of(open_model(str(build(tmp_path / "source", family, variant))))
    before, untouched = model.logits(), dict(model.tensors)
    for number, fold in enumerate(model.folds()):
        awq.apply_fold(model.tensors, fold, random_scales(fold, number))
    assert relative_change(before, model.logits()) < TOLERANCE
    changed = {name for name in untouched if untouched[name] is not model.tensors[name]}
    sizes = Transformer(model).sizes
    left = MLP if sizes.experts is not None else ()
    folds = [short for short in sizes.wiring.folds if short not in left]
    sites = [site for site in Transformer(model).sites if site.name.split(".")[2] in folds]
    assert sites
    assert {name for site in sites for name in site.weights} <= changed
    assert ("token_embd.weight" in changed, "output.weight" in changed) == (False, not model.tied)


def test_every_half_of_a_fold_is_needed(tmp_path: Path) -> None:
    """The logits above would tell: of every producer, its weight and its bias."""
    model = Loaded.of(open_model(str(build(tmp_path / "source", "llama", "odd"))))
    before, original = model.logits(), dict(model.tensors)
    for fold in model.folds():
        if fold.site.name.startswith("blk.1."):
            continue
        for left in (*fold.site.weights, f"{fold.producer}.weight", f"{fold.producer}.bias"):
            model.tensors = dict(original)
            awq.apply_fold(model.tensors, fold, random_scales(fold))
            if left in original:
                model.tensors[left] = original[left]
                assert relative_change(before, model.logits()) > 10 * TOLERANCE, left


def test_query_heads_of_a_group_share_a_row(tmp_path: Path) -> None:
    model = Loaded.of(open_model(str(build(tmp_path / "source", "llama", "gqa"))))
    fold = model.folds()[1]
    assert (fold.site.weights, fold.producer) == (("blk.0.attn_output.weight",), "blk.0.attn_v")
    heads = fold.sources.reshape(4, 64)
    np.testing.assert_array_equal(heads[0], heads[1])
    np.testing.assert_array_equal(heads[2], heads[3])
    np.testing.assert_array_equal(heads[::2].reshape(-1), np.arange(128))
    with pytest.raises(RuntimeError, match=r"blk\.0\.attn_v"):
        awq.apply_fold(model.tensors, fold, np.linspace(1, 2, 256, dtype=np.float32))


# Sites that have nothing before them to fold into; of most families there is none.
LEFT_OUT = {
    "olmo2": ["attn", "ffn"],  # hidden states that no norm precedes
    "cohere": ["attn", "ffn"],  # two sites behind one norm
    "starcoder2": ["ffn_down"],  # an activation without a product
    "gpt_neox": ["ffn_down"],
    "nemotron": ["ffn_down"],
    "olmo3": ["attn", "ffn"],
    "gpt2": ["ffn_down"],
    "gemma4": ["attn_output"],  # a norm of v
    "falcon": ["attn", "ffn", "ffn_down"],  # one norm, unless there are two
    "deepseek2": ["attn_v_b"],  # latent vectors, in which keys are compared, too
}


def test_every_family_has_an_odd_variant() -> None:
    folders = {family for family, variant in VARIANTS if variant == "odd"}
    assert {find(describe(name, "odd")[0]).gguf for name in folders} == {
        family.gguf for family in supported() if not embeds(family.gguf)
    }


@pytest.mark.parametrize("family", [name for name, variant in VARIANTS if variant == "odd"])
def test_every_input_is_folded_or_said(tmp_path: Path, family: str) -> None:
    sizes = Loaded.of(open_model(str(build(tmp_path / "source", family, "odd")))).sizes
    last = sizes.n_block - 1  # the first may have no experts although others have
    folds = [fold.site.name.split(".")[2] for fold in awq.block_folds(sizes, last)]
    shorts = list(dict.fromkeys(folds))  # one of each head
    if sizes.experts is not None:
        expected = [s for s in sizes.wiring.sites if s not in (*LEFT_OUT.get(family, []), *MLP)]
        assert shorts == expected
        assert [site for site in dict(awq.left_out(sizes, tied=False)) if site not in MLP] == (
            LEFT_OUT.get(family, [])
        )
        said = dict(awq.left_out(sizes, tied=False))
        assert ["experts" in said[short] for short in ("ffn", "ffn_down")] == [True, True]
        return
    expected = LEFT_OUT.get(family, [])
    assert shorts == [short for short in sizes.wiring.sites if short not in expected]
    assert [site for site, _ in awq.left_out(sizes, tied=False)] == expected
    site, reason = awq.left_out(sizes, tied=True)[-1]
    assert (site, "embedding" in reason) == ("output", True)
    assert awq.head_fold(sizes, tied=True) is None
    plain = replace(sizes, wiring=replace(sizes.wiring, folds={"attn": "attn_norm"}))
    assert [fold.producer for fold in awq.block_folds(plain, 3)] == ["blk.3.attn_norm"]
    assert awq.head_fold(plain, tied=False) is None
    said = [site for site, _ in awq.left_out(plain, tied=False)]
    assert said == ["attn_output", "ffn", "ffn_down", "output"]


def test_falcons_second_norm_takes_scales(tmp_path: Path) -> None:
    sizes = Loaded.of(open_model(str(build(tmp_path / "source", "falcon", "grouped")))).sizes
    assert [(fold.site.name, fold.producer) for fold in awq.block_folds(sizes, 1)] == [
        ("blk.1.attn", "blk.1.attn_norm_2"),
        ("blk.1.attn_output", "blk.1.attn_qkv"),
        ("blk.1.ffn", "blk.1.attn_norm"),
    ]
    assert [site for site, _ in awq.left_out(sizes, tied=False)] == ["ffn_down"]


@dataclass
class Problem:
    """Two linears with one input whose columns differ in size."""

    x: np.ndarray
    weights: dict[str, np.ndarray]
    kinds: dict[str, TensorType]
    fold: Fold

    @classmethod
    def of(cls, sizes: np.ndarray, *, rows: int = 96, kind: str = "Q4_K") -> "Problem":
        rng = np.random.default_rng(3)
        n = len(sizes)
        x = (rng.standard_normal((600, n)) * sizes).astype(np.float32)
        weights = {name: rng.standard_normal((rows, n)).astype(np.float32) for name in "ab"}
        fold = Fold(Site("blk.0.ffn", ("a", "b")), "blk.0.ffn_norm", np.arange(n))
        return cls(x, weights, dict.fromkeys("ab", get(kind)), fold)

    @property
    def h(self) -> np.ndarray:
        return self.x.T @ self.x / np.float32(len(self.x))

    def search(self, **options: float) -> awq.Scales:
        return awq.search(self.fold, self.weights, [self.kinds], self.h, self.x, **options)


def outliers(n: int = 512) -> np.ndarray:
    sizes = np.ones(n)
    sizes[[5, 100, 200, 201]] = 30
    return sizes


@pytest.mark.parametrize(
    ("kind", "most"),
    [("Q2_K", 0.97), ("Q3_K", 0.7), ("Q4_0", 0.55), ("Q4_K", 0.6), ("IQ4_XS", 0.6), ("Q6_K", 0.15)],
)
def test_outliers_are_narrowed(kind: str, most: float) -> None:
    problem = Problem.of(outliers(), kind=kind)
    found = problem.search()
    assert found.exponent > 0
    assert found.losses[found.exponent] == min(found.losses.values())
    assert found.losses[found.exponent] < most * found.losses[0.0]
    assert found.s[5] > 2 * found.s[6]


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F32"])
def test_even_inputs_stay_as_they_are(kind: str) -> None:
    found = Problem.of(np.ones(512), kind=kind).search()
    np.testing.assert_allclose(found.s, 1, atol=0.15)
    if kind == "F32":  # nothing is rounded, nothing to gain
        np.testing.assert_array_equal(found.s, np.ones(512, np.float32))


@pytest.mark.parametrize("share", [1.0, awq.COMPENSATED])
def test_losses_are_those_of_the_folded_linears(share: float) -> None:
    """Each loss against float64 arithmetic on the outputs themselves."""
    problem = Problem.of(np.exp(np.random.default_rng(0).standard_normal(256)), rows=8)
    x, kind = problem.x.astype(np.float64), get("Q4_K")
    found = problem.search(share=share)
    r = np.sqrt(np.square(x).mean(axis=0))
    for exponent, loss in found.losses.items():
        s = (r / np.exp(np.log(r).mean())) ** exponent
        expected = 0.0
        for w in problem.weights.values():
            scaled = (w * s).astype(np.float32)
            importance = np.square(r / s).astype(np.float32)
            rounded = kind.decode(kind.encode(scaled, importance)) - scaled.astype(np.float64)
            expected += share * np.square(x / s @ rounded.T).sum(axis=1).mean()
            inputs = (x / s).astype(np.float32)
            moved = round_like_llama_cpp(inputs, "Q4_K") - inputs.astype(np.float64)
            expected += np.square(moved @ scaled.T).sum(axis=1).mean()
        assert loss == pytest.approx(expected, rel=0.02)


def test_a_part_of_the_rows_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(outliers(256), rows=awq.ROWS + 40)
    some = problem.search().losses
    monkeypatch.setattr(awq, "ROWS", 1000)
    whole = problem.search().losses
    assert some != whole
    np.testing.assert_allclose(list(some.values()), list(whole.values()), rtol=0.1)


def test_dead_inputs_keep_their_scale() -> None:
    sizes = outliers()
    sizes[[0, 7, 200]] = 0
    found = Problem.of(sizes).search()
    np.testing.assert_array_equal(found.s[[0, 7, 200]], 1)
    assert found.exponent > 0
    assert np.exp(np.log(found.s[sizes > 0]).mean()) == pytest.approx(1, abs=1e-3)
    nothing = Problem.of(np.zeros(256)).search()
    np.testing.assert_array_equal(nothing.s, np.ones(256, np.float32))


def test_huge_inputs_are_bounded() -> None:
    sizes = np.ones(512)
    sizes[9] = 1e6
    s = Problem.of(sizes).search().s
    assert s.max() == np.float32(awq.LARGEST)
    assert s.min() >= np.float32(1 / awq.LARGEST)


def test_columns_of_one_row_share_a_scale() -> None:
    problem = Problem.of(outliers(512))
    problem.fold = replace(problem.fold, sources=np.tile(np.arange(256), 2))
    s = problem.search().s
    np.testing.assert_array_equal(s[:256], s[256:])
    # Column 100 and the small 356 are one row.
    assert s[356] > 2 * s[357]
