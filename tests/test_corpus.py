"""Graphs that nobody here wrote: each is worked on, or refused in one clear sentence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.errors import ModelError
from proact_onnx.inspection import inspect_model
from proact_onnx.model import load_model
from proact_onnx.rewrite import Form, insert, prepare
from proact_onnx.thresholds import Thresholds
from tests.numerics import random_feed, run

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@dataclass(frozen=True)
class Expected:
    """What must come of a file.

    Attributes:
        activations: Number of activations that can be bounded.
        folded: BatchNormalization nodes that are folded.
        unfolded: BatchNormalization nodes that stay, with a reason.
        unprotected: Activation functions that are listed as left alone.
        raised_opset: Opset the hardened model is raised to.
        runs: Whether ONNX Runtime runs the original on random images.
    """

    activations: int
    folded: int = 0
    unfolded: int = 0
    unprotected: int = 0
    raised_opset: int | None = None
    runs: bool = True


REFUSED = {
    "cifar10_external_data_missing": r"the external data of 'features\.0\.weight' in .*, "
    r"'cifar10\.onnx\.data', is missing: copy the file beside the model",
    "cntk24_mnist_opset1": r"has opset 1: export it again, or convert it, at opset 7 or newer",
    "points5_invalid_graph": r"is not a valid ONNX model: No Op registered for ShapeIndexPatch",
}

CORPUS = {
    "cifar10_keras_tf2onnx116": Expected(3),
    "cntk25_mnist_opset8": Expected(2, raised_opset=9),
    "espcn_brevitas_quant": Expected(5, unfolded=3, runs=False),
    "fastestdet": Expected(48, unprotected=1),
    "grey96_cnn_fp32_dynamo": Expected(4),
    "grey96_cnn_int8": Expected(4),
    "gtsrb_tf2onnx19": Expected(3),
    "keras_conv2d_tf2onnx19": Expected(3),
    "lltfi_mnist_tf2onnx116": Expected(2),
    "matlab_acas_sub": Expected(6, raised_opset=9),
    "meet_segm_tf2onnx19": Expected(33, unprotected=11),
    "mnist_cnn_max_keras2onnx": Expected(3),
    "mnist_leaky_relu": Expected(6),
    "mtcnn_pnet": Expected(2),
    "ocr_angle_net_pt13": Expected(37),
    "paddle_ppocr_cls": Expected(33, folded=35, unprotected=9),
    "residual_block_opset19": Expected(2),
    "retinaface_mbnet025": Expected(41),
    "shufflenet_v2_int8_qoperator": Expected(37),
    "silero_vad_16k_op15": Expected(5, unprotected=1, runs=False),
    "super_resolution_pt12": Expected(3),
    "superres_prepost_ortext_opset16": Expected(8, runs=False),
    "tinytaxinet_tf2onnx15": Expected(3, raised_opset=9),
    "ultraface_rfb320": Expected(37, unfolded=35),
    "vnncomp_cifar10_deep_kw": Expected(5),
    "vnncomp_cifar10_medium_tf": Expected(4),
    "vnncomp_cifar10_resnet_2b": Expected(6),
    "vnncomp_mnist_convnet_avgpool": Expected(1),
    "yunet_n_dynamic": Expected(18, unprotected=6),
}

LIGHT_MODELS = {
    # Three whose weights take seconds to run: their graphs are rewritten, and not run.
    "light_bvlc_alexnet": Expected(7, runs=False),
    "light_vgg19": Expected(18, runs=False),
    "light_zfnet512": Expected(7, runs=False),
    "light_densenet121": Expected(121, folded=59, unfolded=62),
    "light_inception_v1": Expected(57),
    "light_inception_v2": Expected(69, folded=69),
    "light_resnet50": Expected(49, folded=53),
    "light_shufflenet": Expected(33, folded=49),
    "light_squeezenet": Expected(26),
}


def test_the_table_is_complete(shared_dir: Path) -> None:
    corpus = {path.stem for path in (shared_dir / "corpus").glob("*.onnx")}
    assert corpus == CORPUS.keys() | REFUSED.keys()
    assert {path.stem for path in LIGHT.glob("*.onnx")} == LIGHT_MODELS.keys()


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_refused(shared_dir: Path, name: str, message: str) -> None:
    path = shared_dir / "corpus" / f"{name}.onnx"
    for read in (load_model, inspect_model):
        with pytest.raises(ModelError, match=message) as info:
            read(path)
        assert "\n" not in str(info.value)
        assert path.name in str(info.value)


@pytest.mark.parametrize(("name", "expected"), CORPUS.items())
def test_third_party_graph(shared_dir: Path, name: str, expected: Expected) -> None:
    check(shared_dir / "corpus" / f"{name}.onnx", expected, batch=1)


@pytest.mark.parametrize(("name", "expected"), LIGHT_MODELS.items())
def test_classic_network(name: str, expected: Expected) -> None:
    check(LIGHT / f"{name}.onnx", expected, batch=1)


def check(path: Path, expected: Expected, batch: int) -> None:
    """Inspect, prepare and harden with thresholds that no value reaches."""
    inspection = inspect_model(path)
    assert len(inspection.activations) == expected.activations
    assert len(inspection.unfolded) == expected.unfolded
    assert len(inspection.unprotected) == expected.unprotected
    assert inspection.parameters > 0

    model = load_model(path)
    prepared = prepare(model, restore_rectifiers=True)
    assert prepared.changes["fold-batchnorm"] == expected.folded
    activations = find_activations(prepared.model)
    assert (sum(a.is_last for a in activations) > 0) == (expected.activations > 0)
    limit = np.asarray(1e6, np.float32)
    thresholds = Thresholds(
        {a.tensor: limit for a in activations},
        {a.tensor: -limit for a in activations if a.two_sided},
    )
    hardened = insert(prepared.model, thresholds, Form.HARD)
    assert hardened.raised_opset == (expected.raised_opset if activations else None)
    assert [o.name for o in hardened.model.graph.output] == [o.name for o in model.graph.output]
    if not expected.runs:
        return
    feed = random_feed(model, batch=batch)
    before, after = run(prepared.model, feed), run(hardened.model, feed)
    for original, untouched, bounded in zip(run(model, feed), before, after, strict=True):
        np.testing.assert_array_equal(bounded, untouched)
        tolerance = 1e-5 * float(np.abs(original).max()) if expected.folded else 0.0
        np.testing.assert_allclose(untouched, original, rtol=0, atol=tolerance)
