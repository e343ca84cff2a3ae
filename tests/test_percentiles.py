"""Percentiles of activations against numpy on all values at once."""

from pathlib import Path

import numpy as np
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.data import load_dataset
from proact_onnx.engine import Provider, profile_percentiles
from proact_onnx.engine.percentiles import Percentile
from proact_onnx.model import load_model
from proact_onnx.rewrite import expose, prepare
from proact_onnx.thresholds import Granularity, threshold_shape
from tests.numerics import run


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0, 99.3, 99.99, 100.0])
@pytest.mark.parametrize(("groups", "total"), [(1, 1), (1, 2), (1, 1000), (5, 257)])
def test_values_in_parts(percentile: float, groups: int, total: int) -> None:
    rng = np.random.default_rng(groups * total)
    values = np.maximum(rng.standard_normal((groups, total)), 0).astype(np.float32)
    found = Percentile(percentile, total)
    for part in np.array_split(values, min(total, 7), axis=1):
        found.add(part)
    expected = np.percentile(values.astype(np.float64), percentile, axis=1)
    np.testing.assert_allclose(found.result(), expected, rtol=1e-6, atol=1e-7)


def test_no_values() -> None:
    with pytest.raises(ValueError, match="needs values"):
        Percentile(99.0, 10).result()


@pytest.mark.parametrize("granularity", list(Granularity))
def test_activations_of_a_network(digits_dir: Path, granularity: Granularity) -> None:
    model = prepare(load_model(digits_dir / "digits.onnx")).model
    activations = find_activations(model)
    shapes = {a.tensor: threshold_shape(a, granularity) for a in activations}
    images = load_dataset(digits_dir / "calibration.npz").images[:150].astype(np.float32) / 16
    seen: list[int] = []
    both = list(shapes)[:2]
    found = profile_percentiles(
        model, shapes, images, 97.0, (Provider.CPU, 0, 64), seen.append, both
    )
    assert seen == [64, 64, 22]
    outputs = run(expose(model, list(shapes)), {model.graph.input[0].name: images})[1:]
    for (tensor, shape), values in zip(shapes.items(), outputs, strict=True):
        shared = tuple(axis for axis in range(values.ndim) if not shape or shape[axis] == 1)
        expected = np.percentile(values.astype(np.float64), 97.0, axis=shared).reshape(shape)
        assert found.values[tensor].dtype == np.float32
        np.testing.assert_allclose(found.values[tensor], expected, rtol=1e-4, atol=1e-5)
        if tensor in both:
            expected = np.percentile(values.astype(np.float64), 3.0, axis=shared).reshape(shape)
            np.testing.assert_allclose(found.lower[tensor], expected, rtol=1e-4, atol=1e-5)
    assert list(found.lower) == both
