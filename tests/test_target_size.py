"""Files for a target size: budgets, measured divergences, and the map as a recipe."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, Call

import quantcli
from quantcli.calibration import cut_windows, read_text
from quantcli.errors import UsageError
from quantcli.evaluation.evaluate import evaluate
from quantcli.methods.sensitivity import Divergences, divergences, sample_rows
from quantcli.model import Rows, open_model
from quantcli.planning import Job, Plan, PlannedFile, Target
from quantcli.planning.ram import running
from quantcli.planning.target import candidates, fitted, possible_sizes
from quantcli.recipes import Recipe, read_recipe
from quantcli.recipes.write import recipe_toml
from quantcli.tensor_types import get

QUICK = ("--calibration-tokens", "1024")
TOKENS = 4 * 512


def plan(target: Target, **job: object) -> Plan:
    return quantcli.plan(Job(str(DEMO), target=target, **job))  # type: ignore[arg-type]


def names(file: PlannedFile) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in file.tensors}


def measured(tokens: int, threads: int) -> Divergences:
    """Of four tensors of the demo model on part of our text."""
    model = open_model(str(DEMO))
    windows = cut_windows(read_text("builtin"), model.metadata, 512, tokens)
    kinds = [get("Q3_K"), get("Q5_K")]
    tensors = ("blk.0.ffn_down", "blk.3.attn_q", "output", "token_embd")
    wanted = {f"{name}.weight": kinds for name in tensors}
    return divergences(model, windows, wanted, None, threads=threads)


class Perturbed:
    """A model with one tensor rounded to a type."""

    def __init__(self, name: str, kind: str) -> None:
        self._model, self._name = open_model(str(DEMO)), name
        self.metadata, self.shapes = self._model.metadata, self._model.shapes
        self.types = self._model.types
        self._w = get(kind).decode(get(kind).encode(self._model.rows(name)))

    def rows(self, name: str, rows: Rows = None) -> np.ndarray:
        if name != self._name:
            return self._model.rows(name, rows)
        return self._w if rows is None else self._w[rows]


def test_estimates_are_the_divergences_that_a_run_measures() -> None:
    text, model = read_text("builtin"), open_model(str(DEMO))
    for name, errors in measured(TOKENS, 2).items():
        quality = evaluate([Perturbed(name, "Q3_K")], model, text, chunks=TOKENS // 512, threads=2)
        assert quality[0].kld_mean is not None
        assert 0.4 < errors["Q3_K"] / quality[0].kld_mean < 2.5, name
        assert errors["Q5_K"] < 0.2 * errors["Q3_K"]


def test_estimates_do_not_depend_on_threads() -> None:
    assert measured(1024, 1) == measured(1024, 3)


def test_sampled_rows_stand_for_all() -> None:
    weights = np.random.default_rng(0).gamma(0.3, size=5000)
    rows, shares = sample_rows(weights, 5000)
    assert np.array_equal(rows, np.arange(5000))
    assert np.array_equal(shares, weights)
    rows, shares = sample_rows(weights, 400)
    assert len(rows) <= 400
    assert shares.sum() == pytest.approx(weights.sum())
    values = 1 + np.sin(np.arange(5000) / 300)
    assert values[rows] @ shares == pytest.approx(values @ weights, rel=0.02)
    rows, shares = sample_rows(np.zeros(10), 3)  # an output that nothing depends on
    assert shares.sum() == 0


def test_budgets() -> None:
    by_size = plan(Target("--target-size", size_bytes=2_500_000)).files[0]
    assert 0.99 * 2_500_000 <= by_size.size_bytes <= 2_500_000
    by_bits = plan(Target("--target-bpw", bpw=4.0)).files[0]
    assert 3.96 <= by_bits.bpw <= 4.0
    needed = running(by_size.metadata).overhead
    by_ram = plan(Target("--fit-ram", ram_bytes=needed + 2_500_000)).files[0]
    assert names(by_ram) == names(by_size)


def test_a_name_tells_the_size_and_general_file_type_the_nearest_mix(tmp_path: Path) -> None:
    file = plan(Target("--target-bpw", bpw=4.0), output=tmp_path).files[0]
    assert file.path.name == "Demo-4.2M-Q3_K_S-4.00bpw.gguf"
    assert file.metadata["general.file_type"] == 11
    named = plan(Target("--target-bpw", bpw=4.0), output=tmp_path / "mine.gguf").files[0]
    assert named.path == tmp_path / "mine.gguf"


def test_shards_and_their_headers_stay_in_the_budget(tmp_path: Path) -> None:
    target = Target("--target-size", size_bytes=2_600_000)
    file = plan(target, split_max_bytes=500_000).files[0]
    assert len(file.shards) > 3
    assert 0.98 * 2_600_000 <= file.size_bytes <= 2_600_000


def test_more_bytes_than_the_largest_types_take() -> None:
    file = plan(Target("--target-size", size_bytes=10**9)).files[0]
    assert file.size_bytes == possible_sizes(file)[1]
    assert {t.type.name for t in file.tensors if len(t.shape) > 1} == {"Q8_0"}
    assert "8.51bpw" in file.path.name


def test_fewer_bytes_than_the_smallest_types_take() -> None:
    least = possible_sizes(plan(Target("--target-bpw", bpw=8.0)).files[0])[0]
    assert plan(Target("--target-size", size_bytes=least)).files[0].size_bytes == least
    with pytest.raises(UsageError, match=rf"--target-size 1kB leaves .* make {least}"):
        plan(Target("--target-size 1kB", size_bytes=least - 1))


def test_what_the_recipe_decides_is_kept() -> None:
    recipe = Recipe(tensors=((r"attn_v", "Q8_0"),), token_embedding_type="Q3_K")
    file = plan(Target("--target-bpw", bpw=4.5), recipe=recipe).files[0]
    found = names(file)
    assert {kind for name, kind in found.items() if "attn_v" in name} == {"Q8_0"}
    assert found["token_embd.weight"] == "Q3_K"
    assert file.bpw <= 4.5


def test_types_follow_the_measured_errors() -> None:
    target = Target("--target-bpw", bpw=3.5)
    file = plan(target).files[0]
    precious = "blk.2.ffn_up.weight"
    errors = {
        t.name: {
            k.name: (100.0 if t.name == precious else 1.0) / k.type_size for k in candidates(t)
        }
        for t in file.tensors
    }
    made = fitted(target, file, errors)
    assert names(made)[precious] == "Q8_0" or made.bpw < 3.5
    chosen = next(t for t in made.tensors if t.name == precious)
    assert chosen.divergence == errors[precious][chosen.type.name]


def test_a_recipe_says_everything_that_it_was_read_from(tmp_path: Path) -> None:
    recipe = Recipe(
        file_type="Q4_K_M",
        pure=True,
        output_tensor_type="Q6_K",
        tensors=((r"^blk\.0\.attn_q\.weight$", "Q3_K"), ("it's", "Q8_0"), ('"', "Q5_K")),
        description="two\nlines",
    )
    (tmp_path / "r.toml").write_text(recipe_toml(recipe))
    assert read_recipe(tmp_path / "r.toml") == recipe
    assert recipe_toml(replace(recipe, tensors=())).count("\n") == 4


def test_a_saved_recipe_makes_the_same_file(call: Call) -> None:
    done = call(
        *("convert", DEMO, "--target-size", "2.5MB", "-o", "a.gguf", "--save-recipe", "r.toml"),
        *("--report", "r.html", "--json", *QUICK),
    )
    assert done.code == 0, done.stderr
    output = json.loads(done.stdout)["outputs"][0]
    assert 0.99 * 2_500_000 <= output["size_bytes"] <= 2_500_000
    parts = [tensor["estimated_divergence"] for tensor in output["tensors"]]
    assert sum(part or 0 for part in parts) == pytest.approx(output["estimated_divergence"])
    assert sum(part is None for part in parts) == 9  # norms
    assert "estimated divergence" in (call.work / "r.html").read_text()
    assert call("convert", DEMO, "--recipe", "r.toml", "--imatrix", "auto", "-o", "b.gguf", *QUICK)
    first, second = ((call.work / name).read_bytes() for name in ("a.gguf", "b.gguf"))
    assert first == second
    again = call(
        *("convert", DEMO, "--target-bpw", "4", "-o", "c.gguf", "--save-recipe", "r.toml", *QUICK)
    )
    assert again.code == 9
    assert "r.toml" in again.stderr
    assert "c.gguf" not in again.left


def test_reports_show_the_map(call: Call) -> None:
    done = call("convert", DEMO, "--target-bpw", "3.6", "-o", ".", "--report", "r.md", *QUICK)
    assert done.code == 0, done.stderr
    assert "Types by estimated KL divergence" in done.stdout
    assert "Estimated KLD" in (call.work / "r.md").read_text()


def test_a_dry_run_says_budget_and_range(call: Call) -> None:
    done = call("convert", DEMO, "--target-size", "2.5MB", "--dry-run")
    assert done.code == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "at most 2.5 MB; types make between 1.4 MB and 4.5 MB" in text
    document = json.loads(call("convert", DEMO, "--target-bpw", "4", "--dry-run", "--json").stdout)
    target = document["target"]
    assert target["option"] == "--target-bpw 4.0"
    assert target["smallest_bytes"] < target["budget_bytes"] < target["largest_bytes"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target-size", "1G", "--target-bpw", "4"), ("--target-bpw", "exclude")),
        (("--target-size", "1G", "--type", "Q4_K_M"), ("--target-size", "--type")),
        (("--target-bpw", "4", "--pure"), ("--pure",)),
        (("--target-bpw", "0"), ("--target-bpw 0",)),
        (("--target-bpw", "nan"), ("--target-bpw nan",)),
        (("--target-size", "four"), ("--target-size 'four'",)),
        (("--fit-ram", "1kB"), ("--fit-ram 1kB", "smallest types")),
        (("--target-bpw", "4", "--imatrix", "x.gguf"), ("--imatrix",)),
        (("--save-recipe", "r.toml"), ("--save-recipe", "--target-size")),
        (("--target-bpw", "4", "--save-recipe", "r.txt"), ("--save-recipe", ".toml")),
    ],
)
def test_what_is_refused(call: Call, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert call("convert", DEMO, *flags).failed_with(2, *words)
