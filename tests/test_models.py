"""The example networks, the figures of the paper that follow from them, and the digits files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from models.digits import train as digits
from models.export import NETWORKS, Exporter, build_network, export_network, main
from models.resnet import PaddedShortcut
from proact_onnx.activations import find_activations
from proact_onnx.errors import ModelError, OutputError
from proact_onnx.thresholds import Granularity, memory_overhead, threshold_count

DIGITS = Path(__file__).parents[1] / "models" / "digits"


@dataclass(frozen=True)
class Row:
    """One row of the paper's Table III; overheads in per cent as printed.

    ``deviation`` is the greatest relative distance between print and network that is accepted.
    """

    network: str
    classes: int
    hidden: int | None
    relus: int
    parameters: int
    neurons: int
    printed: dict[Granularity, float]
    deviation: float


def printed(neuron: float, layer: float, hybrid: float) -> dict[Granularity, float]:
    return {Granularity.NEURON: neuron, Granularity.LAYER: layer, Granularity.HYBRID: hybrid}


ROWS = (
    Row("alexnet", 10, None, 7, 23_272_266, 66_176, printed(0.29, 3e-5, 0.017), 0.04),
    Row("alexnet", 100, None, 7, 23_640_996, 66_176, printed(0.21, 3.5e-5, 0.020), 0.35),
    Row("vgg16", 10, None, 13, 14_724_042, 276_480, printed(1.88, 8.84e-5, 0.014), 0.002),
    Row("vgg16", 100, 4096, 15, 34_011_172, 284_672, printed(0.85, 4.46e-5, 0.012), 0.02),
    Row("resnet50", 10, None, 49, 23_520_842, 2_940_928, printed(12.23, 2e-4, 0.134), 0.05),
    Row("resnet50", 100, None, 49, 23_705_252, 2_940_928, printed(12.23, 2e-4, 0.134), 0.05),
)


def relu_sizes(network: nn.Module) -> list[int]:
    """Elements of each ReLU's output for one image: the reference for the graph's counts."""
    sizes: list[int] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: sizes.append(output[0].numel()))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return sizes


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def overheads(network: nn.Module) -> dict[Granularity, float]:
    """Eq. 6 by hand, from the modules of the network."""
    sizes = relu_sizes(network)
    parameters = parameter_count(network)
    return printed(
        neuron=100 * sum(sizes) / parameters,
        layer=100 * len(sizes) / parameters,
        hybrid=100 * (len(sizes) - 1 + sizes[-1]) / parameters,
    )


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_same_function(network: nn.Module, path: Path) -> None:
    """Compare torch with ONNX Runtime on a batch size that the export did not see."""
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images).numpy()
    (found,) = session(path).run(["logits"], {"input": images.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: f"{row.network}-{row.classes}")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Row, nn.Module, Path]]:
    """Each network once, as modules and as a file that goes away when its tests are done."""
    row: Row = request.param
    network = build_network(row.network, row.classes, seed=0, hidden=row.hidden)
    path = tmp_path_factory.mktemp("models") / f"{row.network}.onnx"
    export_network(network, path)
    yield row, network, path
    path.unlink()


def test_layer_shapes(exported: tuple[Row, nn.Module, Path]) -> None:
    row, network, _ = exported
    sizes = relu_sizes(network)
    assert (len(sizes), sum(sizes), parameter_count(network)) == (
        row.relus,
        row.neurons,
        row.parameters,
    )


def test_table_iii(exported: tuple[Row, nn.Module, Path]) -> None:
    row, network, path = exported
    model = onnx.load(path)
    activations = find_activations(model)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    sizes = relu_sizes(network)
    reference = overheads(network)
    assert threshold_count(activations, Granularity.LAYER) == len(sizes)
    assert threshold_count(activations, Granularity.NEURON) == sum(sizes)
    assert threshold_count(activations, Granularity.HYBRID) == len(sizes) - 1 + sizes[-1]
    for granularity, value in row.printed.items():
        found = memory_overhead(threshold_count(activations, granularity), parameters)
        # Folding batch normalisation stores fewer numbers than the network has parameters.
        assert found == pytest.approx(reference[granularity], rel=0.0012)
        assert found == pytest.approx(value, rel=row.deviation)


def test_export_agrees_with_torch(exported: tuple[Row, nn.Module, Path]) -> None:
    _, network, path = exported
    assert_same_function(network, path)


def test_printed_vgg16_cifar100_row_counts_ten_outputs() -> None:
    found = overheads(build_network("vgg16", 10, seed=0, hidden=4096))
    assert round(found[Granularity.NEURON], 2) == 0.85
    assert round(found[Granularity.LAYER], 7) == 4.46e-5
    assert round(found[Granularity.HYBRID], 3) == 0.012


def test_printed_alexnet_cifar100_row_fits_a_network_with_one_pixel_left() -> None:
    network = build_network("alexnet", 10, seed=0)
    network.features[3].padding = (1, 1)
    for position in (2, 5, 12):
        network.features[position] = nn.MaxPool2d(3, stride=2)
    network.classifier[1] = nn.Linear(256, 4096)
    assert parameter_count(network) == 20_126_538
    found = overheads(network)
    assert round(found[Granularity.NEURON], 2) == 0.21
    assert round(found[Granularity.LAYER], 6) == 3.5e-5
    assert round(found[Granularity.HYBRID], 3) == 0.020


def test_resnet20_has_the_published_size() -> None:
    network = build_network("resnet20", 10, seed=0)
    assert parameter_count(network) == 269_722
    assert len(relu_sizes(network)) == 19


def test_padded_shortcut() -> None:
    features = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    expected = np.zeros((2, 6, 2, 2), np.float32)
    expected[:, 1:4] = features.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(PaddedShortcut(2, 3)(features).numpy(), expected)


@pytest.mark.parametrize("exporter", list(Exporter))
@pytest.mark.parametrize("keep_batchnorm", [False, True])
def test_batchnorm_is_kept_only_when_asked(
    exporter: Exporter, keep_batchnorm: bool, tmp_path: Path
) -> None:
    network = build_network("resnet20", 10, seed=0)
    path = tmp_path / "resnet20.onnx"
    export_network(network, path, exporter=exporter, keep_batchnorm=keep_batchnorm)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == (19 if keep_batchnorm else 0)
    assert model.opset_import[0].version == exporter.default_opset
    assert [entry.name for entry in model.graph.input] == ["input"]
    assert_same_function(network, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["resnet20.onnx"]


def test_no_parameters_are_shared_in_the_graph(tmp_path: Path) -> None:
    network = build_network("resnet20", 10, seed=0)
    export_network(network, tmp_path / "n.onnx", keep_batchnorm=True)
    model = onnx.load(tmp_path / "n.onnx")
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    statistics = sum(
        module.running_mean.numel() + module.running_var.numel()
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    assert stored == parameter_count(network) + statistics


def test_weights_follow_from_the_seed() -> None:
    first, again, other = (
        torch.cat([p.flatten() for p in build_network("resnet20", 10, seed=seed).parameters()])
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("opset", [11, 20])
def test_opset_as_asked(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    main(["resnet20", "--opset", str(opset), "--output", str(path)])
    assert onnx.load(path).opset_import[0].version == opset


def test_command_line_never_overwrites_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main(["resnet20", "--output", str(path)])
    assert f"{path} already exists" in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
    main(["resnet20", "--output", str(path), "--force"])
    onnx.checker.check_model(onnx.load(path))


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no network 'lenet': choose from alexnet, vgg16"):
        build_network("lenet", 10, seed=0)
    with pytest.raises(ModelError, match=r"'alexnet' has no choice of hidden layers"):
        build_network("alexnet", 10, seed=0, hidden=64)
    network = build_network("resnet20", 10, seed=0)
    with pytest.raises(ModelError, match=r"dynamo exporter cannot write opset 17 .* 18 to 23"):
        export_network(network, tmp_path / "n.onnx", opset=17, exporter=Exporter.DYNAMO)
    with pytest.raises(OutputError, match=r"there is no folder .*absent to write n.onnx into"):
        export_network(network, tmp_path / "absent" / "n.onnx")
    assert list(tmp_path.iterdir()) == []


def test_every_network_can_be_built() -> None:
    images = torch.rand(1, 3, 32, 32)
    for name in NETWORKS:
        with torch.no_grad():
            logits = build_network(name, 7, seed=0)(images)
        assert logits.shape == (1, 7)
        assert torch.isfinite(logits).all()


def test_digits_accuracy_and_size() -> None:
    test = np.load(DIGITS / "test.npz", allow_pickle=False)
    images = test["images"].astype(np.float32) * 0.0625
    (logits,) = session(DIGITS / "digits.onnx").run(["logits"], {"input": images})
    assert (logits.argmax(axis=1) == test["labels"]).mean() >= 0.97
    artefacts = [DIGITS / name for name in ("digits.onnx", "calibration.npz", "test.npz")]
    assert sum(path.stat().st_size for path in artefacts) < 2_000_000


def test_digits_graph() -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert {name: operators.count(name) for name in ("BatchNormalization", "Relu", "Add")} == {
        "BatchNormalization": 6,
        "Relu": 7,
        "Add": 2,
    }
    assert model.opset_import[0].version == 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_digits_arrays_are_those_of_the_seed_and_disjoint() -> None:
    stored = []
    for name, part in zip(("calibration", "test"), digits.load_split(seed=0), strict=True):
        arrays = np.load(DIGITS / f"{name}.npz", allow_pickle=False)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].dtype == np.int64
        np.testing.assert_array_equal(arrays["images"], part.images)
        np.testing.assert_array_equal(arrays["labels"], part.labels)
        stored.append({image.tobytes() for image in arrays["images"]})
    assert len(stored[0]) == 1100
    assert len(stored[1]) == 697
    assert not stored[0] & stored[1]


def test_digits_training_is_reproducible_and_learns() -> None:
    threads = torch.get_num_threads()
    training, test = digits.load_split(seed=0)
    try:
        first = digits.train(training, seed=1, epochs=2)
        again = digits.train(training, seed=1, epochs=2)
    finally:
        torch.set_num_threads(threads)
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert digits.accuracy(first, test) > 0.8


def test_digits_training_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.npz").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        digits.main(["--output", str(tmp_path)])
    assert "holds these files already: replace them with --force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test.npz"]
