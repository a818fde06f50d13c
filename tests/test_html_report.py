"""HTML reports: what is in the page, that it needs and betrays nothing else, and how it looks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from conftest import Call
from html_document import HOSTILE, Document
from report_samples import TYPES, contrast, convert_demo, made_up, quality, with_quality

from quantcli.evaluation import Quality
from quantcli.report import Output, Report, files
from quantcli.report.as_html import MOST_ROWS, evaluation_page, report_page
from quantcli.report.cards import Card
from quantcli.report.drawing import HEAT_LEVELS, theme
from quantcli.report.maps import HeatScale, bits
from quantcli.report.page_parts import significant
from quantcli.report.tradeoff import Point, frontier
from quantcli.report.words import percent, size


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real conversion of the small checkpoint, not evaluated."""
    return convert_demo(tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def evaluated(converted: Report) -> Report:
    """The same with made-up quality."""
    return with_quality(converted)


def test_the_summary_has_the_columns_of_model_cards(evaluated: Report) -> None:
    page = report_page(evaluated)
    summary = page[page.index('class="summary"') : page.index("</table>")]
    for output in evaluated.outputs:
        q = output.quality
        start = summary.index(f">{Path(output.paths[0]).name}<")
        row = re.sub(r"<[^>]*>", "", summary[start : summary.index("</tr>", start)])
        assert f"{size(output.size_bytes)}\n{output.bpw:.2f}\n" in row
        assert f"{q.perplexity:#.5g} ± 0.91\n{100 * (q.perplexity_ratio - 1):+.2f} %\n" in row
        assert f"{significant(q.kld_mean)} ± {significant(q.kld_stderr, 1)}\n" in row
        assert f"\n{significant(q.kld_p999)}\n{100 * q.top1_agreement:.1f} ± 0.3 %\n" in row
        assert output.sha256[0] in row
    for words in ("good default", "no importance", "40 windows of 512 tokens", "61.200", "5e" * 32):
        assert words in page


def test_without_quality_the_error_of_the_weights_is_plotted(converted: Report) -> None:
    page = report_page(converted)
    assert "Relative error of the weights against size" in page
    assert "KL divergence" not in page
    assert f">{percent(converted.outputs[0].cost.relative_error)}</td>" in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.14889, "0.149"), (0.0031904, "0.00319"), (-2e-17, "0"), (0.0, "0"), (12.345, "12.3"),
     (2.4e-6, "0.00000240"), (123456.0, "123456"), (None, "—"), (float("inf"), "—")],
)  # fmt: skip
def test_three_digits_are_shown(value: float | None, shown: str) -> None:
    assert significant(value) == shown


def test_the_page_is_whole_and_asks_for_nothing(evaluated: Report) -> None:
    page = report_page(evaluated)
    document = Document(page)
    assert document.tags.count("svg") == 2 + 2 * len(TYPES)
    assert all(label for label in document.all("svg", "aria-label"))
    assert len(document.all("svg", "aria-label")) == document.tags.count("svg")
    identities = [value for _, name, value in document.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    links = [v for _, name, v in document.attributes if name in ("src", "href", "xlink:href")]
    assert {link[:1] for link in links} <= {"#", "d"}
    assert [link for link in links if link[0] == "d"] == ["data:,"]
    assert {link[1:] for link in links if link[0] == "#"} <= set(identities)
    assert set(re.findall(r"url\(.", page)) <= {"url(#"}
    assert "@import" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_each_matrix_has_its_place_on_the_maps(evaluated: Report) -> None:
    document = Document(report_page(evaluated))
    data = [text for text in document.text["script"] if text.startswith("[")]
    for output, cells in zip(evaluated.outputs, data, strict=True):
        told = [text for _, row in json.loads(cells) for _, _, text in row]
        assert sorted(told) == sorted(
            f"{t.name.removesuffix('.weight')}, {t.type}, {percent(t.cost.relative_error)}"
            for t in output.tensors
            if len(t.shape) > 1
        )


def test_heat_grows_with_the_error_from_end_to_end(evaluated: Report) -> None:
    scale = HeatScale.over(evaluated.outputs)
    errors = sorted(t.cost.relative_error for o in evaluated.outputs for t in o.tensors)
    levels = [level for error in errors if (level := scale.level(error)) is not None]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, HEAT_LEVELS - 1)
    assert len(set(levels)) >= 6
    assert scale.level(0.0) is None


def test_types_are_coloured_by_bits() -> None:
    names = ("Q2_K", "Q3_K", "Q4_K", "Q4_0", "Q5_K", "Q6_K", "Q8_0", "BF16", "F32")
    assert [bits(name) for name in names] == [2, 3, 4, 4, 5, 6, 8, 16, 32]


def test_the_frontier_leaves_out_what_a_smaller_file_beats() -> None:
    a, b, c, d = Point("a", 10, 0.3), Point("b", 20, 0.1), Point("c", 30, 0.2), Point("d", 40, 0.01)
    assert frontier([d, c, b, a]) == [a, b, d]


def test_the_same_report_is_the_same_page(evaluated: Report) -> None:
    page = report_page(evaluated)
    with matplotlib.rc_context(
        {"font.size": 30, "axes.titleweight": "bold", "xtick.direction": "in"}
    ):
        assert report_page(evaluated) == page
    elsewhere = [
        replace(output, paths=[f"/elsewhere/{Path(output.paths[0]).name}"])
        for output in evaluated.outputs
    ]
    assert report_page(replace(evaluated, outputs=elsewhere, seconds=99.0)) == page
    assert str(Path(evaluated.outputs[0].paths[0]).parent) not in page


def test_names_cannot_break_out(evaluated: Report) -> None:
    harmless = Document(report_page(evaluated))

    def spoilt(output: Output) -> Output:
        renamed = {
            "blk.0.attn_q.weight": f"blk.0.{HOSTILE}",
            "blk.1.attn_q.weight": "blk.1.$x_1$",
            "output.weight": HOSTILE,
        }
        tensors = [replace(t, name=renamed.get(t.name, t.name)) for t in output.tensors]
        tensors[0] = replace(tensors[0], fallback=HOSTILE)
        return replace(output, tensors=tensors, paths=[f"/x/{HOSTILE[-20:]}"])

    page = report_page(
        replace(
            evaluated,
            source_id=HOSTILE,
            revision=None,
            warnings=[HOSTILE],
            outputs=[spoilt(output) for output in evaluated.outputs],
        )
    )
    assert all(c.isprintable() or c == "\n" for c in page)
    document = Document(page)
    assert "img" not in document.tags
    assert document.text["text"].count("$x_1$") == 2 * len(TYPES)
    assert document.tags.count("script") == harmless.tags.count("script")
    assert document.tags.count("svg") == harmless.tags.count("svg")
    assert [n for _, n, _ in document.attributes if n.startswith("on")] == []


def test_a_large_model_in_many_types_stays_small() -> None:
    page = report_page(made_up(80, (*TYPES, "Q5_0", "Q5_1", "Q5_K_M", "Q6_K")))
    assert len(page.encode()) < 1_000_000
    assert page.count('<tr><th scope="row">') == MOST_ROWS
    assert "the 120 worst are listed" in page.lower()


@pytest.mark.parametrize(("types", "plots"), [(("Q4_0",), 0), (("F16", "Q4_0"), 0), (TYPES, 2)])
def test_what_would_say_nothing_is_not_plotted(
    converted: Report, types: tuple[str, ...], plots: int
) -> None:
    outputs = [output for output in converted.outputs if output.file_type in types]
    document = Document(report_page(replace(converted, outputs=outputs)))
    assert document.tags.count("svg") == plots + 2 * len(types)


def test_an_output_without_matrices_has_no_maps(converted: Report) -> None:
    output = converted.outputs[0]
    vectors = [tensor for tensor in output.tensors if len(tensor.shape) == 1]
    page = report_page(replace(converted, outputs=[replace(output, tensors=vectors)]))
    assert "svg" not in Document(page).tags


def test_an_evaluation_shares_summary_and_plot(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    cards = [
        Card(f"{tmp_path}/a-Q4_K_M.gguf", "Q4_K_M", 10**9, 4.8, 2 * 10**9, "a" * 64, quality(0.02)),
        Card(f"{tmp_path}/a-Q8_0.gguf", "Q8_0", 2 * 10**9, 8.5, 3 * 10**9, None, quality(0.001)),
        Card("org/model", quality=quality(0.0)),
    ]
    (tmp_path / "a-Q4_K_M.gguf").touch()
    (tmp_path / "a-Q8_0.gguf").touch()
    page = evaluation_page(str(tmp_path / "base"), cards)
    assert Document(page).tags.count("svg") == 2
    assert str(tmp_path) not in page
    for words in ("3 models against base", ">a-Q4_K_M.gguf<", ">org/model<", "0.0200 ± 0.0004"):
        assert words in page.replace('<span class="error">', "")
    alone = replace(cards[0], quality=Quality("5e" * 32, 512, 4, "float", 61.0, 0.5))
    assert "svg" not in Document(evaluation_page(None, [alone])).tags


def test_convert_writes_a_page(call: Call, demo: Path) -> None:
    done = call("convert", demo, "--type", "Q4_0,Q8_0", "--report", "made.html", "--quiet")
    assert done.code == 0, done.stderr
    assert "made.html" in done.left
    assert Document((call.work / "made.html").read_text()).tags.count("svg") == 6


def test_without_the_extra_nothing_is_begun(
    call: Call, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    done = call("convert", demo, "--report", "made.html")
    assert done.failed_with(2, "need matplotlib", "pip install matplotlib")


def test_numbers_on_the_maps_can_be_read() -> None:
    found = dict(re.findall(r"--([\w-]+):light-dark\((.*?)\)", theme()))
    fills = [name for name in found if not name.startswith("on-")]
    assert len(fills) == HEAT_LEVELS + 8
    for name in fills:
        pairs = zip(found[name].split(","), found[f"on-{name}"].split(","), strict=True)
        assert min(contrast(fill, ink) for fill, ink in pairs) >= 4.5
