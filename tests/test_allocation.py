"""Spending a number of stored numbers where they help most."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.allocation import Allocation, allocate
from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.faults import added_count, parameter_count
from proact_onnx.harden import HardenReport, harden
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare
from proact_onnx.settings import HardenSettings
from tests.numerics import Array, parse

# Two layers of four channels: in the first, weights of the channels differ by 2^0..2^3, in the
# second not at all. Activations differ in the second.
NARROW = np.float32(2.0) ** -np.arange(4)


def network() -> onnx.ModelProto:
    first = np.ones((4, 3, 1, 1), np.float32) * NARROW.reshape(4, 1, 1, 1)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 2, 2] x) => (float[N, 4, 2, 2] z) {
            a = Conv(x, v, b)  y = Relu(a)  c = Conv(y, w)  z = Relu(c)
        }""",
        v=first,
        b=np.ones(4, np.float32),
        w=np.ones((4, 4, 1, 1), np.float32),
    )


MAXIMA = {"y": np.ones((4, 2, 2), np.float32), "z": np.ones((4, 2, 2), np.float32)}
MAXIMA["z"] *= NARROW.reshape(4, 1, 1)
# Two thresholds, and three copies of each scale of two weights and a bias.
LEAST = 2 + 3 * 3


def spend(limit: int, maxima: dict[str, Array] = MAXIMA, **wanted: bool) -> Allocation:
    model = network()
    chosen = {"thresholds": True, "scales": True} | wanted
    return allocate(model, find_activations(model), maxima, limit, **chosen)


def granularities(allocation: Allocation) -> list[str | None]:
    return [activation.granularity for activation in allocation.activations]


def test_without_room_everything_is_shared() -> None:
    for limit in (0, LEAST):
        allocation = spend(limit)
        assert allocation.numbers == LEAST
        assert allocation.by_tensor == {"v", "b", "w"}
        assert granularities(allocation) == ["layer", "layer"]


def test_what_helps_most_for_each_number_comes_first() -> None:
    # By hand: 3 weights a channel, 1.5 bits on average, for 1 number more than 3 copies.
    assert spend(LEAST + 1).by_tensor == {"b", "w"}
    # 4 weights a channel, 1.5 bits, for 3 thresholds more.
    assert granularities(spend(LEAST + 1 + 3)) == ["layer", "channel"]
    # One bit for each of 4 copies.
    allocation = spend(LEAST + 1 + 3 + 4)
    assert allocation.by_tensor == {"w"}
    assert allocation.numbers == LEAST + 8
    # Numbers that gain nothing are not bought.
    assert spend(1000) == allocation


def test_thresholds_or_scales_alone() -> None:
    only = spend(1000, scales=False)
    assert (granularities(only), only.numbers) == (["layer", "channel"], 2 + 3)
    only = spend(1000, thresholds=False)
    assert (only.by_tensor, only.numbers) == ({"w"}, 9 + 1 + 4)


def test_dead_channels_and_unknown_shapes() -> None:
    dead = {"y": np.zeros((4, 2, 2), np.float32), "z": MAXIMA["z"].copy()}
    dead["z"][3] = 0
    assert granularities(spend(1000, dead)) == ["layer", "channel"]


def harden_digits(digits_dir: Path, folder: Path, **options: Any) -> HardenReport:
    return harden(
        digits_dir / "digits.onnx",
        load_dataset(digits_dir / "calibration.npz"),
        folder / "hardened.onnx",
        settings=HardenSettings(
            method="ranger", form="tent", calibration_images=100, accept_images=50, **options
        ),
        preprocessing=Preprocessing(scale=1 / 16),
        force=True,
    )


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_hardening_keeps_to_the_limit(limit: float, digits_dir: Path, tmp_path: Path) -> None:
    original = prepare(load_model(digits_dir / "digits.onnx")).model
    report = harden_digits(
        digits_dir, tmp_path, granularity="auto", rescale="auto", max_memory_overhead=limit
    )
    added = added_count(load_model(report.output))
    assert added == report.thresholds.count + report.scales
    assert report.memory_overhead == pytest.approx(100 * added / parameter_count(original))
    # What everything shares is stored in any case.
    layers, biases = 8, 8
    least = len(report.activations) + 3 * (layers + biases)
    assert added == least or report.memory_overhead <= limit
    assert report.fidelity.accuracy_after == report.fidelity.accuracy_before


@pytest.mark.parametrize("rescale", ["tensor", "channel"])
def test_thresholds_alone_are_chosen_beside_scales_that_are_given(
    rescale: str, digits_dir: Path, tmp_path: Path
) -> None:
    scales = harden_digits(digits_dir, tmp_path, granularity="layer", rescale=rescale)
    rich = harden_digits(
        digits_dir, tmp_path, granularity="auto", rescale=rescale, max_memory_overhead=50
    )
    assert rich.scales == scales.scales
    assert rich.thresholds.count > scales.thresholds.count
    limit = scales.memory_overhead + 0.05
    poor = harden_digits(
        digits_dir, tmp_path, granularity="auto", rescale=rescale, max_memory_overhead=limit
    )
    assert poor.scales == scales.scales
    assert poor.memory_overhead <= limit
