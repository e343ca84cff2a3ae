"""Comparisons of methods: read from a folder, and laid out as the paper's tables."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proact_onnx.errors import CampaignError
from proact_onnx.report.comparison import read_comparison
from proact_onnx.report.comparison_tables import (
    clean_drop_table,
    distance_table,
    fault_drop_table,
    overhead_table,
    spell_seconds,
    time_table,
)
from proact_onnx.report.figures import to_svg
from proact_onnx.report.threshold_figure import draw_thresholds
from tests.comparisons import METHODS, comparison

Change = Callable[[dict[str, Any]], object]


def test_a_comparison_is_read_with_its_records(tmp_path: Path) -> None:
    found = read_comparison(comparison(tmp_path / "c"))
    assert [entry.name for entry in found.entries] == list(METHODS)
    assert found.unprotected.title == "unprotected"
    assert [entry.name for entry in found.methods] == ["ranger-layer", "proact"]
    assert found.baseline.name == "proact"
    assert found.entries[1].result.model == "Ranger (layer-wise)"
    assert [s.accuracy.mean for s in found.entries[1].result.summaries] == pytest.approx(
        [0.84, 0.4]
    )
    assert found.layers[1].thresholds["proact"] == (0.0, 2.5, 38.0)
    other = read_comparison(comparison(tmp_path / "d", reference=None))
    assert other.baseline is other.unprotected


def test_tables_of_one_comparison(tmp_path: Path) -> None:
    found = [read_comparison(comparison(tmp_path / "c"))]
    assert clean_drop_table(found).rows == (
        ("(accuracy of the unprotected model)", "90.00 %"),
        ("Ranger (layer-wise)", "0.00 [-0.50, 0.50]"),
        ("ProAct (hybrid)", "1.00 [0.50, 1.50]"),
    )
    assert clean_drop_table(found).strong == {(1, 1)}
    assert overhead_table(found).rows == (
        ("Ranger (layer-wise)", "0.25 (7)"),
        ("ProAct (hybrid)", "0.25 (14)"),
    )
    assert not overhead_table(found).strong
    distances = distance_table(found)
    assert distances is not None
    assert distances.rows == (
        ("unprotected", "1.5 [0.5, 2]"),
        ("Ranger (layer-wise)", "0.75 [0.5, 2]"),
        ("ProAct (hybrid)", "0.5 [0.5, 2]"),
    )
    assert time_table(found).rows[1] == ("ProAct (hybrid)", "4 min 39 s (22)")


@pytest.mark.parametrize(
    ("limit", "rates"), [(1.9, []), (5.0, ["BER 1e-6"]), (10.1, ["BER 1e-6", "BER 1e-5"])]
)
def test_drops_are_listed_where_a_method_stays_below_the_limit(
    limit: float, rates: list[str], tmp_path: Path
) -> None:
    """Drops are of the unprotected model's 90 %, what ProAct costs without faults included."""
    table = fault_drop_table(read_comparison(comparison(tmp_path / "c", drop_limit=limit)))
    if not rates:
        assert table is None
        return
    assert table is not None
    assert [row[0] for row in table.rows] == rates
    means = [[float(cell.split()[0]) for cell in row[1:]] for row in table.rows]
    assert means == [[30.0, 6.0, 2.0], [80.0, 50.0, 10.0]][: len(rates)]
    assert table.strong == {(row, 3) for row in range(len(rates))}
    # 60 equal trials of 88 % leave the mean between 83 and 91 %: the interval is that of accuracy.
    summary = read_comparison(tmp_path / "c").entries[2].result.summaries[0]
    low, high = re.findall(r"-?[0-9.]+", table.rows[0][3])[1:]
    assert float(low) == pytest.approx(100 * (0.9 - summary.accuracy.high), abs=0.006)
    assert float(high) == pytest.approx(100 * (0.9 - summary.accuracy.low), abs=0.006)


def test_models_side_by_side(tmp_path: Path) -> None:
    """One column a model, and a method that one of them lacks leaves a gap."""
    first = read_comparison(comparison(tmp_path / "c"))
    content = json.loads((tmp_path / "c" / "comparison.json").read_text())
    second = read_comparison(
        comparison(
            tmp_path / "d", model="other.onnx", entries=content["entries"][:2], reference=None
        )
    )
    table = clean_drop_table([first, second])
    assert table.columns == ("method", "net.onnx", "other.onnx")
    assert table.rows[2] == ("ProAct (hybrid)", "1.00 [0.50, 1.50]", "")


def test_without_distances_there_is_no_table_of_them(tmp_path: Path) -> None:
    comparison(tmp_path / "c")
    path = tmp_path / "c" / "comparison.json"
    content = json.loads(path.read_text())
    for entry in content["entries"]:
        entry["distance"] = None
    path.write_text(json.dumps(content))
    assert distance_table([read_comparison(tmp_path / "c")]) is None


def test_the_figure_of_thresholds_names_layers_and_methods(tmp_path: Path) -> None:
    figure = draw_thresholds(read_comparison(comparison(tmp_path / "c")))
    assert figure is not None
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["/relu/Relu", "/last/Relu"]
    marks = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert list(marks["ProAct (hybrid)"]) == [2.0, 2.5]
    assert list(marks["Ranger (layer-wise)"]) == [3.03, 40.4]
    assert list(marks["largest activation"]) == [3.0, 3.0]
    assert to_svg(figure).startswith("<?xml")


def test_no_layers_are_no_figure(tmp_path: Path) -> None:
    assert draw_thresholds(read_comparison(comparison(tmp_path / "c", layers=[]))) is None


def lacks(*keys: str | int) -> Change:
    def change(content: dict[str, Any]) -> None:
        found: Any = content
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lacks("model"), "because model is not a text"),
        (lacks("drop_limit"), "because drop_limit is not a number"),
        (lacks("entries", 2, "title"), r"because entries\[2\]\.title is not a text"),
        (
            lacks("entries", 1, "clean_drop", "low"),
            r"entries\[1\]\.clean_drop\.low is not a number",
        ),
        (lacks("entries", 0), "entries is not a list of different names and titles, one of them"),
        (lacks("layers"), "because layers is not a list"),
        (lambda c: c.update(reference="fitact"), "because reference is not the name of an entry"),
        (lambda c: c.update(confidence=95), "because confidence is not a number between 0 and 1"),
        (lambda c: c.update(version=2), "has version 2 of the comparison format, and this release"),
        (lambda c: c["entries"][0].update(seconds=True), r"entries\[0\]\.seconds is not a number"),
        (
            lambda c: c["layers"][0]["thresholds"].update(proact=[3, 2, 1]),
            r"layers\[0\]\.thresholds\.proact is not lowest, median and highest threshold",
        ),
        (lambda c: c["entries"][0].update(record="gone.jsonl"), r"cannot read .*gone\.jsonl: No"),
        (
            lambda c: c["entries"][0].update(record="comparison.json"),
            r"comparison\.json is not the record of a campaign",
        ),
    ],
)
def test_what_is_wrong_with_a_comparison_is_named(
    change: Change, sentence: str, tmp_path: Path
) -> None:
    path = comparison(tmp_path / "c") / "comparison.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CampaignError, match=sentence):
        read_comparison(tmp_path / "c")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\udcff"])
def test_a_damaged_comparison_is_refused(content: str, tmp_path: Path) -> None:
    path = comparison(tmp_path / "c") / "comparison.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CampaignError, match=rf"{re.escape(str(path))} is damaged"):
        read_comparison(tmp_path / "c")


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [
        (0.0, "0.0 s"),
        (0.75, "0.8 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (279.4, "4 min 39 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_spelled_for_people(seconds: float, spelled: str) -> None:
    assert spell_seconds(seconds) == spelled
