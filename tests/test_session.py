"""Sessions: batches, providers, and silence."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from proact_onnx.engine import Calls, Provider, Session, choose_engine
from proact_onnx.engine.session import create_session
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.model import ModelInput, load_model
from tests.numerics import parse, run

NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
net (float[BATCH, 4] x) => (float[BATCH, 3] y, float[BATCH, 3] z) {
    y = MatMul (x, w)
    z = Relu (y)
}"""


def network(batch: str = "N") -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    return parse(NETWORK.replace("BATCH", batch), w=weights)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


@pytest.mark.parametrize("batch", ["N", "1", "4"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_images_runs_whatever_the_model_s_batch(batch: str, count: int) -> None:
    session = Session(network(batch), Provider.CPU, 1, batch_size=2)
    [expected, _] = run(network(), {"x": images(count)})
    np.testing.assert_allclose(session.run(images(count)), expected, rtol=1e-5, atol=1e-6)


def test_named_outputs_stream_in_batches() -> None:
    session = Session(network(), Provider.CPU, 1, batch_size=4)
    parts = list(session.stream(images(10), ["z", "y"]))
    assert [len(z) for z, _ in parts] == [4, 4, 2]
    expected = run(network(), {"x": images(10)})
    np.testing.assert_allclose(np.concatenate([z for z, _ in parts]), expected[1], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([y for _, y in parts]), expected[0], atol=1e-6)


def cut(count: int, fixed: int | None, size: int) -> Iterator[tuple[np.ndarray, int]]:
    declared = ModelInput("x", (fixed, 4), np.dtype(np.float32))
    return Calls.of([declared], images(count), size).cut(images(count))


def test_a_fixed_batch_is_filled_up_with_the_last_image() -> None:
    (first, one), (second, two) = cut(6, 4, 100)
    assert (len(first), one, len(second), two) == (4, 4, 4, 2)
    np.testing.assert_array_equal(second[:2], images(6)[4:])
    np.testing.assert_array_equal(second[2:], np.repeat(images(6)[5:], 2, axis=0))


def test_a_free_batch_is_cut_and_not_filled_up() -> None:
    assert [(len(batch), count) for batch, count in cut(6, None, 4)] == [(4, 4), (2, 2)]


def test_a_model_that_onnx_runtime_refuses_is_named_in_one_sentence() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17, "some.domain": 1]>
        net (float[N, 4] x) => (float[N, 4] y) { y = some.domain.Unheard (x) }"""
    )
    with pytest.raises(
        ModelError, match=r"^operator Unheard of domain some\.domain is unknown to ONNX Runtime: "
    ) as caught:
        create_session(model)
    assert "\n" not in str(caught.value)


@NO_GPU
def test_auto_runs_on_the_cpu_where_there_is_no_gpu() -> None:
    assert Session(network(), Provider.AUTO, 1).provider is Provider.CPU
    assert Session(network(), Provider.CPU, 1).provider is Provider.CPU


@NO_GPU
def test_cuda_without_a_gpu_is_refused() -> None:
    for open_it in (
        lambda: Session(network(), Provider.CUDA),
        lambda: choose_engine(network(), ["w"], images(2), Provider.CUDA),
    ):
        with pytest.raises(SettingsError) as caught:
            open_it()
        assert str(caught.value) == (
            "ONNX Runtime finds no usable CUDA device here: use --provider cpu, or check the "
            "driver and the CUDA libraries"
        )


@NO_GPU
def test_a_gpu_build_that_falls_back_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU build lists CUDA on a machine without one; only the session knows."""
    monkeypatch.setattr("proact_onnx.engine.session._cuda_usable", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert Session(network(), Provider.AUTO, 1).provider is Provider.CPU
    with pytest.raises(SettingsError, match="no usable CUDA device here"):
        Session(network(), Provider.CUDA, 1)


@NO_GPU
def test_tensorrt_without_a_gpu_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        Session(network(), Provider.TENSORRT)
    assert str(caught.value) == (
        "ONNX Runtime cannot use TensorRT here: use --provider cuda or cpu, or check the driver, "
        "the CUDA libraries and the TensorRT libraries"
    )


@pytest.mark.parametrize(
    ("provider", "package"),
    [
        (Provider.CUDA, "onnxruntime-gpu"),
        (Provider.TENSORRT, "onnxruntime-gpu"),
        (Provider.OPENVINO, "onnxruntime-openvino"),
    ],
)
def test_a_provider_that_is_not_in_the_build_is_refused(
    provider: Provider, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SettingsError) as caught:
        Session(network(), provider, 1)
    assert str(caught.value) == (
        f"this build of ONNX Runtime does not support {provider}: install {package} in its place, "
        "or use --provider cpu"
    )
    assert Session(network(), Provider.CPU, 1).provider is Provider.CPU


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_the_session_does_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "OpenVINOExecutionProvider"
    if name in onnxruntime.get_available_providers():
        pytest.skip("OpenVINO is here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [name])
    with pytest.raises(SettingsError, match=r"^ONNX Runtime cannot use OpenVINO here: use "):
        Session(network(), Provider.OPENVINO, 1)
    assert "EP Error" not in capfd.readouterr().out


def test_a_model_that_fails_while_it_runs_is_refused_in_one_sentence() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[A, 3] y) { y = Reshape (x, shape) }""",
        shape=np.array([-1, 3]),
    )
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: ") as caught:
        Session(model, Provider.CPU, 1).run(images(2))
    assert "\n" not in str(caught.value)
    assert Session(model, Provider.CPU, 1).run(images(3)).shape == (3, 3)


def test_chosen_images_run_like_a_copy_of_them() -> None:
    session = Session(network(), Provider.CPU, 1, batch_size=2)
    chosen = np.array([5, 0, 3])
    np.testing.assert_array_equal(session.run(images(6), chosen), session.run(images(6)[chosen]))


@NO_GPU
def test_onnx_runtime_stays_silent(capfd: pytest.CaptureFixture[str], shared_dir: Path) -> None:
    model = load_model(shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx")
    weights = [tensor.name for tensor in model.graph.initializer][:4]
    some = np.zeros((2, 3, 32, 32), np.float32)
    chosen = choose_engine(model, weights, some, Provider.AUTO, 1)
    chosen.engine.run(some)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_an_output_without_a_batch_axis_is_passed_on_as_one_value() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[2, 3] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }"""
    )
    assert Session(model, Provider.CPU, 1).run(np.ones((4, 3), np.float32)).tolist() == [6.0, 6.0]
