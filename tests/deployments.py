"""Hardened models to deploy, for the tests of the room ``deploy``."""

from functools import cache
from pathlib import Path

import onnx

from proact_onnx.activations import find_activations
from proact_onnx.data import Preprocessing, load_dataset, prepare
from proact_onnx.deploy.examine import Job, first_feeds, run_batches, shapes_of
from proact_onnx.deploy.inputs import draw_images
from proact_onnx.deploy.onnx_runtime import OnnxRuntime
from proact_onnx.deploy.plant import find_bounds
from proact_onnx.deploy.reference import Reference
from proact_onnx.engine import Provider, profile_activations
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import Form, Sharing, insert, rescale
from proact_onnx.rewrite import prepare as prepare_model
from proact_onnx.thresholds import Thresholds

PLAIN = OnnxRuntime("plain", Provider.CPU, 0.0, optimise=False)
DIGITS = Preprocessing(scale=1 / 16)
CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SLACK = 1.01


@cache
def bounded(
    path: Path, data: Path, preprocessing: Preprocessing, form: Form, rescaled: bool = False
) -> onnx.ModelProto:
    """A model with one bound a channel, at what 256 images reach."""
    model = prepare_model(load_model(path)).model
    wanted = image_input(model)
    images = prepare(load_dataset(data).images[:256], preprocessing, wanted.shape, wanted.dtype)
    activations = find_activations(model)
    profile = profile_activations(model, activations, images, provider=Provider.CPU)
    thresholds = {}
    for activation in activations:
        maxima = profile.maxima[activation.tensor]
        per_channel = maxima.max(axis=tuple(range(1, maxima.ndim)), keepdims=True)
        thresholds[activation.tensor] = (per_channel[None] * SLACK).astype(maxima.dtype)
    hardened = insert(model, Thresholds(thresholds), form).model
    return rescale(hardened, Sharing.CHANNEL).model if rescaled else hardened


def job_for(
    hardened: onnx.ModelProto, original: onnx.ModelProto | None = None, count: int = 2
) -> Job:
    """What `examine` is asked, on random images, with expectations by onnx.reference."""
    bounds = find_bounds(hardened)
    images, calls = draw_images(hardened, bounds, count, None, Preprocessing(), PLAIN)
    shapes = shapes_of(first_feeds(images, calls))

    def expected(model: onnx.ModelProto | None) -> tuple:
        if model is None:
            return ()
        return tuple(run_batches(Reference().load(model, shapes), images, calls))

    return Job(
        hardened=hardened,
        original=original,
        images=images,
        calls=calls,
        expected=expected(hardened),
        expected_original=expected(original),
        rounds=1,
    )
