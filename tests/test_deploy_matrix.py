"""Every form of the bound in every runtime and behind every optimiser that is installed."""

from pathlib import Path

import numpy as np
import pytest

from proact_onnx.data import Preprocessing
from proact_onnx.deploy import CANDIDATES, PLANTED
from proact_onnx.deploy.base import Candidate
from proact_onnx.deploy.examine import examine
from proact_onnx.deploy.plant import find_bounds, plant
from proact_onnx.model import load_model
from proact_onnx.rewrite import Form
from proact_onnx.rewrite import prepare as prepare_model
from tests.deployments import CIFAR, DIGITS, bounded, job_for
from tests.numerics import random_feed, run_reference

# What a form lets through. An infinite weight times a zero is NaN, which is NaN again behind
# min(NaN, threshold) and behind every convolution, on most runtimes.
PASSES = {form: {"+inf", "-inf", "NaN"} for form in (Form.SATURATE, Form.TENT)}
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


@pytest.fixture(params=BY_NAME)
def candidate(request: pytest.FixtureRequest) -> Candidate:
    one = BY_NAME[request.param]
    if not one.available():
        pytest.skip(f"{one.name} is not installed, or has no device here")
    return one


def check(
    candidate: Candidate,
    path: Path,
    data: Path,
    preprocessing: Preprocessing,
    form: Form,
    rescaled: bool = False,
) -> None:
    hardened = bounded(path, data, preprocessing, form, rescaled)
    finding = examine(candidate, job_for(hardened))
    assert finding.hardened.refusal is None
    assert finding.hardened.error is not None
    assert finding.hardened.error <= finding.tolerance
    assert finding.failure is None
    assert finding.containment is not None
    assert finding.containment.missing == ()
    assert finding.containment.hidden
    leaks = {value for value, place in finding.containment.leaks.items() if place is not None}
    assert finding.containment.leaks.keys() == PLANTED.keys()
    assert leaks <= PASSES.get(form, set())


@pytest.mark.parametrize("rescaled", [False, True], ids=["stored", "rescaled"])
@pytest.mark.parametrize("form", list(Form))
def test_digits(candidate: Candidate, form: Form, rescaled: bool, digits_dir: Path) -> None:
    model, data = digits_dir / "digits.onnx", digits_dir / "calibration.npz"
    check(candidate, model, data, DIGITS, form, rescaled)


@pytest.mark.parametrize("form", list(Form))
def test_lenet(candidate: Candidate, form: Form, shared_dir: Path) -> None:
    model = shared_dir / "models" / "c10_lenet_torchscript_op11.onnx"
    check(candidate, model, shared_dir / "data" / "cifar10" / "train.npz", CIFAR, form)


@pytest.mark.parametrize("rescaled", [False, True], ids=["stored", "rescaled"])
@pytest.mark.parametrize("model", ["c10_lenet_dynamo_op18", "c10_resnet20_dynamo_op20"])
def test_newer_exports(candidate: Candidate, model: str, rescaled: bool, shared_dir: Path) -> None:
    data = shared_dir / "data" / "cifar10" / "train.npz"
    check(candidate, shared_dir / "models" / f"{model}.onnx", data, CIFAR, Form.HARD, rescaled)


@pytest.mark.parametrize("value", PLANTED)
def test_what_is_planted_spreads_without_bounds(value: str, digits_dir: Path) -> None:
    path = digits_dir / "digits.onnx"
    model = prepare_model(load_model(path)).model
    hardened = bounded(path, digits_dir / "calibration.npz", DIGITS, Form.HARD)
    feed = random_feed(model, batch=1)
    [output] = run_reference(plant(model, find_bounds(hardened).weights, PLANTED[value]), feed)
    assert not np.abs(output).max() < 1e20
    assert np.abs(run_reference(model, feed)[0]).max() < 1e3


@pytest.mark.parametrize("value", PLANTED)
def test_one_layer_at_a_time_is_contained_too(value: str, digits_dir: Path) -> None:
    data = digits_dir / "calibration.npz"
    hardened = bounded(digits_dir / "digits.onnx", data, DIGITS, Form.HARD)
    feed = random_feed(hardened, batch=1)
    weights = find_bounds(hardened).weights
    assert len(weights) == 7
    for weight in weights:
        [output] = run_reference(plant(hardened, [weight], PLANTED[value]), feed)
        assert np.abs(output).max() < 1e3, weight
