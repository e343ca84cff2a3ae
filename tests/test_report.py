"""Tables and figures: every number is there, within 100 columns, and figures are files."""

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console, RenderableType

from proact_onnx.activations import Activation
from proact_onnx.campaign import (
    Atlas,
    CampaignResult,
    CellSummary,
    Distributions,
    Estimate,
    FaultSite,
    FaultSummary,
    Histogram,
    LayerDistribution,
    LayerEffect,
    Spread,
)
from proact_onnx.cli.terminal import show
from proact_onnx.errors import OutputError
from proact_onnx.faults import Kind, Parameter
from proact_onnx.report import (
    activation_table,
    campaign_table,
    check_figure,
    class_table,
    clipping_table,
    comparison_table,
    cost_table,
    distribution_figure,
    distribution_table,
    effect_table,
    gain_table,
    measures_table,
    parameter_table,
    plot_accuracy,
    plot_atlas,
    plot_distributions,
    sensitivity_table,
    site_table,
    spell_fault,
    threshold_table,
)
from proact_onnx.report.figures import draw_accuracy, to_svg
from proact_onnx.report.tables import spell_rate
from proact_onnx.thresholds import Thresholds
from proact_onnx.verify import ClippedLayer

LONG = "/features/stage.3/block.12/convolutions/convolutions.2/activation/branch.1/Relu_output_0"


def render(table: RenderableType, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def cells(text: str) -> list[str]:
    return re.split(r"\s+", text)


def result(
    model: str, mean: float = 1.0, rates: tuple[float, ...] = (1e-7, 3e-6)
) -> CampaignResult:
    """A campaign with the longest numbers there can be."""
    summaries = tuple(
        FaultSummary(
            fault=f"ber={rate!r}",
            ber=rate,
            trials=12_345,
            evaluated=1_580_160,
            flips=2.6491e4 * (place + 1),
            accuracy=Estimate(mean - place / 10, mean - 0.2, mean),
            drop=Estimate(0.1234, 0.1, 0.2),
            sdc=Estimate(0.2345, 0.2, 0.3),
            sdc5=Estimate(0.1357, 0.1, 0.2),
            nonfinite=Estimate(0.3456, 0.3, 0.4),
            percentile5=Estimate(0.4567, 0.4, 0.5),
            worst=0.0567,
            spread=Spread(0.2468, 0.3579),
            values=tuple(mean - place / 10 - trial % 2 / 100 for trial in range(40)),
        )
        for place, rate in enumerate(rates)
    )
    return CampaignResult(
        model=model,
        golden_accuracy=mean,
        float_accuracy=mean,
        images=697,
        bits=2_649_152,
        saturated=0,
        memory_overhead=0.12418,
        labelled=True,
        classifier=True,
        golden_classes=None,
        summaries=summaries,
    )


def activation(name: str, shape: tuple[int | None, ...], last: bool = False) -> Activation:
    return Activation(name=name, tensor=f"{name}.t", op="Relu", shape=shape, is_last=last)


def test_activations_with_the_thresholds_they_need() -> None:
    text = render(
        activation_table(
            [
                activation(LONG, (64, 32, 32)),
                activation("open", (None, 7)),
                activation("last", (96,), last=True),
            ],
            "activations",
        )
    )
    first, rest = text.split(" 2 ", 1)
    assert {"64x32x32", "65,536", "1"} <= set(cells(first))
    assert LONG in re.sub(r"\s+", "", re.sub(r"Relu\s+64x32x32.*", "", first))
    assert {"?x7", "?"} <= set(cells(rest))
    assert "96 (last)" in rest
    assert rest.rstrip().endswith("96      96")


def test_activations_in_subgraphs_say_where() -> None:
    inner = dataclasses.replace(activation("inner", ()), owner="[red]choice")
    text = render(activation_table([inner], "activations"))
    assert "in [red]choice" in text
    assert text.rstrip().endswith("1        1       1       1")


def test_costs() -> None:
    text = render(cost_table([("layer", 1_234_567, 0.0085219), ("neuron", None, None)]))
    assert {"1,234,567", "0.00852", "?"} <= set(cells(text))


def test_thresholds_as_the_range_of_their_values() -> None:
    values = np.array([0.5, 4.25, 1.125, 3.0], np.float32)
    text = render(threshold_table([activation(LONG, (4,))], Thresholds({f"{LONG}.t": values})))
    assert {"4", "0.5", "2.062", "4.25"} <= set(cells(text))


def test_parameters_by_the_names_that_patterns_match() -> None:
    parameter = Parameter("block.weight", Kind.WEIGHT, (64, 3, 3, 3), LONG, 32, tuple(range(32)))
    text = render(parameter_table([parameter]))
    assert {"block.weight", "weight", "1,728"} <= set(cells(text))


def test_one_campaign() -> None:
    text = render(campaign_table(result("digits.onnx"), 0.99))
    assert "digits.onnx under faults" in text
    assert "99% interval" in text
    [first, second] = [line for line in text.splitlines() if "12,345" in line]
    assert cells(first.strip()) == [
        "BER",
        "1e-7",
        "12,345",
        "2.649e+04",
        "100.00",
        "[80.00,",
        "100.00]",
        "12.34",
        "23.45",
        "34.56",
        "45.67",
        "5.67",
    ]
    assert cells(second.strip())[:5] == ["BER", "3e-6", "12,345", "5.298e+04", "90.00"]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_a_narrow_terminal_loses_no_figures(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(campaign_table(result("digits.onnx"), 0.95))
    show(threshold_table([activation(LONG, ())], Thresholds({f"{LONG}.t": np.float32([1.125])})))
    text = capsys.readouterr().out
    [row] = [line for line in text.splitlines() if "2.649e+04" in line]
    assert cells(row.strip())[-5:] == ["12.34", "23.45", "34.56", "45.67", "5.67"]
    assert text.count("1.125") == 3
    assert "…" not in text


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_models_side_by_side(count: int) -> None:
    names = ["digits.onnx", "digits.hardened.onnx", "resnet20_with_a_very_long_name_op17.onnx"]
    names += [f"model{number}.onnx" for number in range(3)]
    results = [result(name, 1 - place / 100) for place, name in enumerate(names[:count])]
    text = render(comparison_table(results, 0.95))
    assert "accuracy in %, mean and 95% interval" in text
    found = cells(text)
    for place in range(count):
        mean, low = 100 - place, 80 - place
        # No faults, and the mean and upper end at each rate.
        assert found.count(f"{mean}.00") >= 2
        assert found.count(f"[{low}.00,") == 2
        assert found.count(f"{mean}.00]") == 2
        assert f"{mean - 10}.00" in found
    assert found.count("0.124") == count
    assert {"1e-7", "3e-6"} <= set(found)
    for name in names[:count]:
        assert any(piece and name.startswith(piece) for piece in found)


@pytest.mark.parametrize("count", [2, 4])
def test_gains_over_the_first_model(count: int) -> None:
    results = [result(f"model{n}.onnx", 0.5 + n / 10) for n in range(count)]
    text = render(gain_table(results, 0.95))
    title = "points gained over model0.onnx under the same faults"
    assert title in " ".join(text.split())
    for number in range(1, count):
        # Trials differ among themselves, but the models by the same amount in each.
        assert text.count(f"+{10 * number}.00") >= 2
        assert f"model{number}.onnx" in text


def test_models_with_other_faults_have_empty_cells() -> None:
    """Models are matched by fault model, not by place."""
    results = [result("a.onnx", 1.0, (1e-7, 3e-6)), result("b.onnx", 0.5, (3e-6, 1e-5))]
    rows = {row[0]: row[1:] for row in comparison_table(results, 0.95).rows}
    assert list(rows)[2:] == ["BER 1e-7", "BER 3e-6", "BER 1e-5"]
    assert rows["BER 1e-7"][1] == rows["BER 1e-5"][0] == ""
    assert rows["BER 3e-6"][1].startswith("50.00")
    gains = {row[0]: row[1] for row in gain_table(results, 0.95).rows}
    assert list(gains) == ["BER 1e-7", "BER 3e-6"]
    assert gains["BER 1e-7"] == ""
    assert gains["BER 3e-6"].startswith("-40.00")


@pytest.mark.parametrize(
    ("rate", "spelled"),
    [(1e-6, "1e-6"), (0.0001, "1e-4"), (2.5e-5, "2.5e-5"), (0.05, "0.05"), (0.0, "0"), (1.0, "1")],
)
def test_rates_as_they_are_typed(rate: float, spelled: str) -> None:
    assert spell_rate(rate) == spelled


def test_model_names_are_not_read_as_markup() -> None:
    assert "[bold]x.onnx under faults" in render(campaign_table(result("[bold]x.onnx"), 0.95))
    assert "[bold]x.onnx" in render(comparison_table([result("[bold]x.onnx")] * 2, 0.95))
    assert "[red]relu" in render(activation_table([activation("[red]relu", (1,))], "title"))


def test_further_measures_only_where_they_were_taken() -> None:
    plain = result("digits.onnx")
    text = render(measures_table(plain, None))
    assert {"1,580,160", "24.68", "35.79", "13.57"} <= set(cells(text))
    for absent in ("P(below", "Eq. 9", "output L2"):
        assert absent not in text
    summary = dataclasses.replace(
        plain.summaries[0],
        below=Estimate(0.25, 0.2, 0.3),
        relative_l2=1.5,
        deviating=0.125,
        distance=2.5e12,
    )
    text = render(measures_table(dataclasses.replace(plain, summaries=(summary,)), 90.0))
    assert "P(below 90)" in text
    assert "25.00 [20.00, 30.00]" in text
    assert {"1.5", "12.50", "2.5e+12"} <= set(cells(text))


def test_classes() -> None:
    counted = dataclasses.replace(result("x").summaries[0], classes=((10, 5), (0, 0)))
    campaign = dataclasses.replace(
        result("x.onnx"), golden_classes=((100, 90), (0, 0)), summaries=(counted,)
    )
    text = render(class_table(campaign))
    rows = [cells(line.strip()) for line in text.splitlines()]
    assert ["0", "100", "90.00", "50.00"] in rows
    assert ["1", "0"] in rows


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("ber=1e-06", "BER 1e-6"),
        ("ber=0.001 stuck-at-1 burst=2", "BER 0.001, stuck at 1, bursts of 2 bits"),
        ("flips=1", "1 upset"),
        ("flips=2000 burst=3-words", "2,000 upsets, bursts of 3 words"),
        ("single", "single upsets"),
    ],
)
def test_fault_models_spelled_out(name: str, spelled: str) -> None:
    assert spell_fault(name) == spelled


def atlas(layers: int) -> Atlas:
    def cell(layer: int, bit: int | None, share: float) -> CellSummary:
        estimate = Estimate(share, share / 2, min(1.0, 2 * share))
        nothing = Estimate(0.0, 0.0, 0.1)
        name = f"{LONG}/{layer}"
        return CellSummary(name, Kind.WEIGHT, bit, 65_536, 320, estimate, estimate, nothing)

    return Atlas(
        model="digits.onnx",
        golden_accuracy=0.9,
        images=100,
        cells=tuple(
            cell(layer, bit, 1.0 if bit in (3, 30, 31) else 0.0)
            for layer in range(layers)
            for bit in range(32)
        ),
        layers=tuple(cell(layer, None, 0.0375) for layer in range(layers)),
    )


def test_the_atlas_names_critical_bits() -> None:
    text = render(sensitivity_table(atlas(2), 0.95))
    assert "digits.onnx under single upsets" in text
    found = cells(text)
    assert found.count("65,536") == found.count("3.75") // 2 == 2
    assert "3,30-" in text or "3,30" in text


@pytest.mark.parametrize("layers", [1, 40])
def test_the_atlas_as_a_figure(layers: int, tmp_path: Path) -> None:
    """Columns of critical bits are bright over their whole height, bit 31 on the left."""
    path = tmp_path / "atlas.png"
    plot_atlas(atlas(layers), path)
    pixels = image.imread(path)[..., :3]
    yellow = np.array([0xFD, 0xE7, 0x37]) / 255
    bright = (np.abs(pixels - yellow).max(axis=2) < 0.03).sum(axis=0)
    columns = np.flatnonzero(bright > bright.max() / 2)
    assert len(np.flatnonzero(np.diff(columns) > 1)) + 1 in (2, 3)
    assert columns[0] < pixels.shape[1] / 2


def test_fault_sites_and_what_they_did() -> None:
    sites = [
        FaultSite("block.weight", LONG, (63, 2, 0, 1), (3, 4, 30), 0.0123456789, -16384.5),
        FaultSite("threshold", LONG, (), tuple(range(0, 32, 2)), 1.0, float("nan")),
    ]
    text = render(site_table(sites, 4096))
    assert "the first 2 of 4,096 words" in text
    assert {"63,2,0,1", "3-4,30", "0.0123457", "-16384.5", "nan"} <= set(cells(text))
    assert "the first" not in render(site_table(sites, 2))
    text = render(effect_table([LayerEffect(LONG, 1.5e9, float("inf"), 3.25, 1_234)]))
    assert {"inf", "1.5e+09", "3.25", "1,234"} <= set(cells(text))


def distributions(
    model: str, names: Sequence[str], faulty: Sequence[float] = (0.5, 3.0, 4e37)
) -> Distributions:
    """Activations with a quarter of zeros, and as many values at 0.2, 0.6 and 2."""

    def histogram(values: Sequence[float]) -> Histogram:
        found = Histogram()
        found.add(np.array(values, np.float32))
        return found

    layers = tuple(
        LayerDistribution(
            name, histogram([0, 0.2, 0.6, 2] * 25), histogram([0, *faulty, np.nan] * 20), 40
        )
        for name in names
    )
    return Distributions(model, "ber=3e-05", 20, 100, 0, 0.9, 0.5, layers)


def test_distributions_as_a_table() -> None:
    text = render(distribution_table(distributions("digits.onnx", [LONG, "short"])))
    assert "digits.onnx: values without faults, and at BER 3e-5 (20 fault maps, 100" in text
    found = cells(text)
    for cell in ("2", "25.00", "40.00", "4e+37", "20"):
        assert found.count(cell) >= 2, cell
    empty = render(distribution_table(distributions("x.onnx", ["a"], [np.inf, np.nan])))
    assert {"0", "60"} <= set(cells(empty))


def test_distributions_as_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    mpl.rcParams["svg.fonttype"] = "none"
    try:
        one = distributions("one.onnx", ["first", LONG])
        plot_distributions([one, distributions("two.onnx", ["first"], [0.5, 0.5])], path)
    finally:
        mpl.rcParams["svg.fonttype"] = "path"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    texts = re.findall(r">([^<>]+)</text>", path.read_text())
    for text, times in (
        ("one.onnx: 20 fault maps, 100 images", 1),
        ("two.onnx: 20 fault maps, 100 images", 1),
        ("first", 2),
        (f"...{LONG[-37:]}", 2),
        ("not in this model", 1),
        ("exactly 0: 25.00 %, faulty 20.00 %", 2),
        ("above 1: 25.00 %, faulty 40.00 %", 2),
        ("above 1: 25.00 %, faulty 0.00 %", 1),
        ("inf, NaN: 0.00 %, faulty 20.00 %", 2),
        ("BER 3e-5", 1),
    ):
        assert texts.count(text) == times, text


def test_panels_show_shares_of_values() -> None:
    """Areas and lines stand where the values are, as high as their share."""
    figure = distribution_figure([distributions("one.onnx", ["first", "second"])])
    left, right = figure.axes[:2]
    assert (left.get_xlim(), right.get_xlim()[0]) == ((0, 1), 1)
    assert left.get_ylim() == right.get_ylim() == (0.1, 1)
    for axes, golden, faulty in ((left, (0.2, 0.6), (0.5,)), (right, (2.0,), (3.0, 4e37))):
        area, line = (patch.get_data() for patch in axes.patches)
        for found, places, share in ((area, golden, 0.25), (line, faulty, 0.2)):
            bins = np.flatnonzero(found.values > 0.1)
            assert len(bins) == len(places)
            np.testing.assert_allclose(found.values[bins], share)
            for place, low, high in zip(
                places, found.edges[bins], found.edges[bins + 1], strict=True
            ):
                assert low < np.float32(place) <= high
    assert right.lines[0].get_xdata()[0] == 2.0
    assert not left.lines


def test_a_page_can_embed_chosen_layers() -> None:
    result = distributions("one.onnx", [f"layer{number}" for number in range(19)])
    titles = [
        axes.get_title(loc="left")
        for axes in distribution_figure([result], ["layer7", "layer2"]).axes
    ]
    assert titles == ["layer7", "", "layer2", ""]
    everything = distribution_figure([result])
    assert len(everything.axes) == 2 * 19
    assert everything.get_figheight() > 15


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_distributions_of_values_that_are_all_zero(suffix: str, tmp_path: Path) -> None:
    zeros = Histogram()
    zeros.add(np.zeros(10, np.float32))
    layer = LayerDistribution("dead", zeros, zeros, 0)
    result = Distributions("x.onnx", "ber=0.0", 1, 1, 0, None, None, (layer,))
    plot_distributions([result], tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").stat().st_size > 1000
    render(distribution_table(result))


def test_fault_models_of_one_rate_are_lines_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    first, second = result("x.onnx", 1.0, (1e-6, 1e-5)), result("x.onnx", 0.5, (1e-6, 1e-5))
    stuck = [dataclasses.replace(s, fault=f"{s.fault} stuck-at-0") for s in second.summaries]
    single = dataclasses.replace(first.summaries[0], fault="single", ber=None)
    both = dataclasses.replace(first, summaries=(*first.summaries, *stuck, single))
    mpl.rcParams["svg.fonttype"] = "none"
    try:
        plot_accuracy([both], path, 0.95)
    finally:
        mpl.rcParams["svg.fonttype"] = "path"
    labels = re.findall(r">(x\.onnx[^<]*)<", path.read_text())
    assert labels == ["x.onnx (clean 100.00 %)", "x.onnx, stuck-at-0 (clean 100.00 %)"]


def test_clipped_layers() -> None:
    layers = [
        ClippedLayer(LONG, np.arange(1000, 1007), 1234),
        ClippedLayer("short", np.array([3]), 1),
    ]
    text = render(clipping_table(layers))
    assert "1000, 1001, 1002, 1003, 1004, ..." in text
    assert {"7", "1,234", "short", "3"} <= set(cells(text))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_figures_are_written_in_the_format_of_their_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"figure.{suffix}"
    results = [result(f"model{number}.onnx", 1 - number / 10) for number in range(8)]
    plot_accuracy(results, path, 0.95)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    content = path.read_bytes()
    if suffix == "svg":
        text = content.decode()
        assert "<svg" in text
    else:
        assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix.lower()])


def test_a_figure_shows_the_lines_where_they_belong(tmp_path: Path) -> None:
    """The line of a perfect model runs along the top, that of a spoiled one at mid height."""
    path = tmp_path / "figure.png"
    plot_accuracy([result("one.onnx", 1.0, (1e-6,)), result("two.onnx", 0.5, (1e-6,))], path, 0.95)
    pixels = image.imread(path)[..., :3]
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    rows = np.flatnonzero((np.abs(pixels - blue).max(axis=2) < 0.02).any(axis=1)) / len(pixels)
    marker = rows[rows < 0.7]
    assert 0.4 < marker.mean() < 0.55


def line(model: str, clean: float, accuracies: dict[float, float]) -> CampaignResult:
    found = result(model, clean, tuple(accuracies))
    summaries = tuple(
        dataclasses.replace(summary, accuracy=Estimate(mean, mean - 0.01, mean + 0.01))
        for summary, mean in zip(found.summaries, accuracies.values(), strict=True)
    )
    return dataclasses.replace(found, summaries=summaries)


def test_the_magnified_panel_shows_where_the_best_lose_little() -> None:
    good = line("good.onnx", 0.9, {1e-7: 0.9, 1e-6: 0.88, 1e-5: 0.8, 1e-4: 0.5})
    bad = line("bad.onnx", 0.92, {1e-7: 0.7, 1e-6: 0.3, 1e-5: 0.1, 1e-4: 0.1})
    figure = draw_accuracy([bad, good], 0.95, magnified=True)
    whole, part = figure.axes
    assert whole.get_ylim() == (0, 100)
    low, high = part.get_xlim()
    assert 1e-8 < low < 1e-7
    assert 1e-5 < high < 1e-4
    # Down to 15 points below the best model's clean accuracy, and up to the highest interval.
    low, high = part.get_ylim()
    assert 75 < low < 77
    assert 91 < high < 92
    for axes in (whole, part):
        lines = [found.get_xydata() for found in axes.get_lines()]
        np.testing.assert_allclose(lines[1][:, 1], [90, 88, 80, 50])
    to_svg(figure)


def test_where_all_lose_much_the_lowest_rates_are_magnified() -> None:
    bad = line("bad.onnx", 0.9, {1e-7: 0.7, 1e-6: 0.3, 1e-5: 0.1})
    _, part = draw_accuracy([bad, bad], 0.95, magnified=True).axes
    assert part.get_xlim()[0] < 1e-7 < 1e-6 < part.get_xlim()[1] < 1e-5
    one = line("one.onnx", 0.9, {1e-7: 0.7})
    assert len(draw_accuracy([one, one], 0.95, magnified=True).axes) == 1
    assert len(draw_accuracy([bad, bad], 0.95).axes) == 1


def test_twelve_lines_differ_without_colour() -> None:
    results = [line(f"model{n}.onnx", 0.9, {1e-7: 0.9, 1e-6: 0.8}) for n in range(12)]
    figure = draw_accuracy(results, 0.95, magnified=True)
    looks = {
        (found.get_marker(), found.get_linestyle(), found.get_markerfacecolor() == "#FFFFFF")
        for found in figure.axes[0].get_lines()
    }
    assert len(looks) == 12
    colours = {found.get_color() for found in figure.axes[0].get_lines()}
    assert len(colours) == 12
    [legend] = figure.legends
    assert len(legend.get_texts()) == 12


def test_names_are_no_formulas_and_none_is_left_out(tmp_path: Path) -> None:
    results = [result("_$x_$.onnx"), result("$\\frac$.onnx")]
    figure = draw_accuracy(results, 0.95)
    texts = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.split(" ")[0].replace("\\$", "$") for text in texts] == [r.model for r in results]
    assert "<svg" in to_svg(figure)


def test_the_same_figure_is_the_same_svg() -> None:
    first, second = (to_svg(draw_accuracy([result("x.onnx")], 0.95)) for _ in range(2))
    assert first == second


def test_a_campaign_without_faults_can_be_plotted(tmp_path: Path) -> None:
    plot_accuracy([result("one.onnx", 1.0, (0.0,))], tmp_path / "figure.png", 0.95)
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["figure.gif", "figure", "figure.png.txt"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    message = (
        rf"cannot write the figure .*{name}: choose a name that ends in \.png, \.svg or \.pdf$"
    )
    with pytest.raises(OutputError, match=message):
        check_figure(tmp_path / name)
    with pytest.raises(OutputError, match=message):
        plot_distributions([distributions("one.onnx", ["a"])], tmp_path / name)
    with pytest.raises(OutputError, match=message):
        plot_accuracy([result("one.onnx")], tmp_path / name, 0.95)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "figure.png"
    with pytest.raises(OutputError, match=r"cannot write the figure .*figure\.png: No such file"):
        plot_accuracy([result("one.onnx")], path, 0.95)
