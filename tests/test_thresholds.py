"""Shapes, counts and cost of thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from proact_onnx.activations import Activation
from proact_onnx.errors import ModelError
from proact_onnx.thresholds import (
    FIXED_GRANULARITIES,
    Granularity,
    Thresholds,
    memory_overhead,
    threshold_count,
    threshold_shape,
)

INNER = Activation("inner", "Relu", "inner", (8, 5, 4), is_last=False)
DENSE = Activation("dense", "Relu", "dense", (7,), is_last=False)
LAST = Activation("last", "Relu", "last", (10,), is_last=True)
SHAPES = {
    Granularity.LAYER: ((), (), ()),
    Granularity.CHANNEL: ((1, 8, 1, 1), (1, 7), (1, 10)),
    Granularity.NEURON: ((1, 8, 5, 4), (1, 7), (1, 10)),
    Granularity.HYBRID: ((), (), (1, 10)),
}
COUNTS = {
    Granularity.LAYER: 3,
    Granularity.CHANNEL: 8 + 7 + 10,
    Granularity.NEURON: 160 + 7 + 10,
    Granularity.HYBRID: 2 + 10,
}


def test_every_granularity_is_tested() -> None:
    assert SHAPES.keys() == COUNTS.keys() == set(FIXED_GRANULARITIES)


@pytest.mark.parametrize("granularity", FIXED_GRANULARITIES)
def test_shapes_broadcast_against_the_activation(granularity: Granularity) -> None:
    for activation, expected in zip((INNER, DENSE, LAST), SHAPES[granularity], strict=True):
        shape = threshold_shape(activation, granularity)
        assert shape == expected
        full = (3, *activation.shape)
        assert np.broadcast_shapes(shape, full) == full


@pytest.mark.parametrize("granularity", FIXED_GRANULARITIES)
def test_counts_are_those_of_the_arrays(granularity: Granularity) -> None:
    assert threshold_count([INNER, DENSE, LAST], granularity) == COUNTS[granularity]
    arrays = {
        activation.tensor: np.ones(threshold_shape(activation, granularity), np.float32)
        for activation in (INNER, DENSE, LAST)
    }
    assert Thresholds(arrays).count == COUNTS[granularity]


def test_hybrid_is_neuron_wise_in_the_last_layer_only() -> None:
    assert Granularity.HYBRID.of(LAST) is Granularity.NEURON
    assert Granularity.HYBRID.of(INNER) is Granularity.LAYER
    assert Granularity.CHANNEL.of(LAST) is Granularity.CHANNEL
    assert Granularity.AUTO.of(replace(LAST, granularity="channel")) is Granularity.CHANNEL
    assert Granularity.AUTO.of(LAST) is Granularity.LAYER


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (Granularity.NEURON, (8, None, None), r"no fixed shape \(8x\?x\?\).* neuron-wise"),
        (Granularity.CHANNEL, (None, 5, 4), r"no fixed shape \(\?x5x4\).* channel-wise"),
        (Granularity.HYBRID, (None,), r"no fixed shape \(\?\).* neuron-wise"),
        (Granularity.NEURON, (), r"no fixed shape \(unknown\).* neuron-wise"),
        (Granularity.CHANNEL, (), r"no fixed shape \(unknown\).* channel-wise"),
    ],
)
def test_an_open_extent_is_refused(
    granularity: Granularity, shape: tuple[int | None, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=f"activation 'last' has {message}"):
        threshold_shape(replace(LAST, shape=shape), granularity)


def test_open_extents_that_are_not_needed_do_not_matter() -> None:
    assert threshold_shape(replace(INNER, shape=()), Granularity.LAYER) == ()
    spatial = replace(INNER, shape=(8, None, None))
    assert threshold_shape(spatial, Granularity.CHANNEL) == (1, 8, 1, 1)
    assert threshold_shape(spatial, Granularity.HYBRID) == ()


def test_memory_overhead_of_the_papers_alexnet() -> None:
    """Table III: six layer-wise thresholds and 4,096 neurons in the last hidden layer."""
    assert memory_overhead(6 + 4096, 23_272_266) == pytest.approx(0.0176, abs=5e-5)
    assert memory_overhead(1, 200) == 0.5
