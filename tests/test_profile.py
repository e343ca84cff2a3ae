"""Activation ranges, against hand-made networks and numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.engine import ActivationProfile, Provider, observed_shapes, profile_activations
from proact_onnx.errors import DataError
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare
from tests.numerics import parse, run


def copying() -> onnx.ModelProto:
    """A network whose activations are its images: what is profiled is known exactly."""
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, 3, 4] x) => (float[N, 24] y) {
            [whole] r = Relu (x)
            f = Flatten (r)
            [flat] y = Relu (f)
        }"""
    )


def profile(model: onnx.ModelProto, images: np.ndarray, **options: Any) -> ActivationProfile:
    activations = find_activations(model)
    return profile_activations(
        model, activations, images, provider=Provider.CPU, threads=1, **options
    )


def test_every_neuron_has_a_maximum_of_its_own_over_the_images() -> None:
    images = np.zeros((5, 2, 3, 4), np.float32)
    order = np.random.default_rng(0).permutation(24).reshape(2, 3, 4)
    for (channel, row, column), place in np.ndenumerate(order):
        images[place % 5, channel, row, column] = place + 1
        images[(place + 1) % 5, channel, row, column] = -100.0
    maxima = profile(copying(), images, batch_size=2).maxima
    assert maxima["r"].shape == (2, 3, 4)
    np.testing.assert_array_equal(maxima["r"], order + 1)
    assert len(np.unique(maxima["r"])) == 24
    np.testing.assert_array_equal(maxima["y"], (order + 1).ravel())
    for axis in range(3):
        collapsed = np.broadcast_to(maxima["r"].max(axis=axis, keepdims=True), (2, 3, 4))
        assert not np.array_equal(collapsed, maxima["r"])
    assert not np.array_equal(maxima["r"], images[0])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    images = np.random.default_rng(1).normal(size=(8, 2, 3, 4)).astype(np.float32)
    seen: list[int] = []
    found = profile(copying(), images, batch_size=batch_size, progress=seen.append)
    np.testing.assert_array_equal(found.maxima["r"], np.maximum(images, 0).max(axis=0))
    assert found.images == seen[-1] == 8
    assert seen == [min(end, 8) for end in range(batch_size, 8 + batch_size, batch_size)]


def test_a_fixed_batch_counts_every_image_once() -> None:
    model = copying()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    images = np.random.default_rng(2).normal(size=(7, 2, 3, 4)).astype(np.float32)
    found = profile(model, images)
    np.testing.assert_array_equal(found.maxima["r"], np.maximum(images, 0).max(axis=0))
    assert found.images == 7


def test_a_trained_network_gives_what_exposing_by_hand_gives(shared_dir: Path) -> None:
    model = prepare(load_model(shared_dir / "models" / "c10_lenet_torchscript_op11.onnx")).model
    activations = find_activations(model)
    images = np.random.default_rng(3).normal(size=(6, 3, 32, 32)).astype(np.float32)
    found = profile(model, images, batch_size=4)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for activation in activations:
        exposed.graph.output.add().name = activation.tensor
    values = run(exposed, {"input": images}, optimise=True)[1:]
    assert len(values) == len(found.maxima) > 2
    for activation, value in zip(activations, values, strict=True):
        np.testing.assert_allclose(
            found.maxima[activation.tensor], value.max(axis=0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("image", "bad"), [(0, np.nan), (4, np.inf)])
def test_an_activation_that_is_not_finite_is_an_error(image: int, bad: float) -> None:
    images = np.ones((5, 2, 3, 4), np.float32)
    images[image, 1, 2, 3] = bad
    with pytest.raises(DataError) as caught:
        profile(copying(), images, batch_size=2)
    assert str(caught.value) == (
        "activation 'whole' takes values that are not finite: check the preprocessing and the model"
    )


def test_an_activation_without_a_batch_axis_has_one_range() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float y) {
            s = ReduceSum <keepdims = 0> (x)
            [bare] y = Relu (s)
        }"""
    )
    found = profile(model, np.ones((2, 3), np.float32))
    assert found.maxima["y"].shape == () and found.maxima["y"] == 6.0


def test_no_activations_need_no_run() -> None:
    found = profile_activations(copying(), [], np.ones((2, 2, 3, 4), np.float32))
    assert found.maxima == {}


def test_observed_shapes_fill_in_what_inference_left_open() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, H, W] x) => (float[N, 1, H, W] y) { y = Relu (x) }"""
    )
    images = np.ones((3, 1, 5, 6), np.float32)
    [activation] = find_activations(model)
    assert activation.shape == (1, None, None)
    [filled] = observed_shapes([activation], profile(model, images))
    assert filled.shape == (1, 5, 6)
    assert filled.tensor == activation.tensor
