"""Write a network with random weights as an ONNX file: ``python -m models.export alexnet``."""

import argparse
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from models.alexnet import AlexNet
from models.resnet import resnet20, resnet50
from models.vgg import VGG16
from proact_onnx.errors import ModelError, OutputError
from proact_onnx.model import refuse_overwrite

NETWORKS = ("alexnet", "vgg16", "resnet20", "resnet50")


class Exporter(StrEnum):
    """Which of PyTorch's two exporters writes the graph."""

    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"

    @property
    def opsets(self) -> range:
        """Operator sets that the exporter writes itself, without conversion afterwards."""
        return range(11, 21) if self is Exporter.TORCHSCRIPT else range(18, 24)

    @property
    def default_opset(self) -> int:
        """Operator set where none is asked for."""
        return 17 if self is Exporter.TORCHSCRIPT else 18


def build_network(name: str, classes: int, *, seed: int, hidden: int | None = None) -> nn.Module:
    """Build a network with random weights, in evaluation mode.

    Weights are drawn as He et al. (ICCV 2015) propose for ReLU networks, so that activations keep
    their scale through the layers. Biases and batch normalisation are drawn too, close to 0 and to
    the identity: the TorchScript exporter would store equal arrays once, and the graph would hold
    fewer parameters than the network.

    Args:
        name: One of ``NETWORKS``.
        classes: Number of outputs.
        seed: Equal seeds give equal weights.
        hidden: Width of VGG-16's two hidden fully connected layers; ``None`` for none.

    Raises:
        ModelError: If the name is unknown, or ``hidden`` is given for another network.
    """
    if hidden is not None and name != "vgg16":
        raise ModelError(f"network {name!r} has no choice of hidden layers: leave out 'hidden'")
    network: nn.Module
    match name:
        case "alexnet":
            network = AlexNet(classes)
        case "vgg16":
            network = VGG16(classes, hidden)
        case "resnet20":
            network = resnet20(classes)
        case "resnet50":
            network = resnet50(classes)
        case _:
            raise ModelError(f"there is no network {name!r}: choose from {', '.join(NETWORKS)}")
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.01, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            for centre in (layer.bias, layer.running_mean):
                nn.init.normal_(centre, std=0.01, generator=generator)
            for scale in (layer.weight, layer.running_var):
                nn.init.uniform_(scale, 0.95, 1.05, generator=generator)
    return network.eval()


def export_network(
    network: nn.Module,
    path: Path,
    *,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    opset: int | None = None,
    exporter: Exporter = Exporter.TORCHSCRIPT,
    keep_batchnorm: bool = False,
    force: bool = False,
) -> None:
    """Write a network as ONNX with a free batch axis, input ``input`` and output ``logits``.

    Args:
        network: The network; exported in evaluation mode.
        path: Where the file goes; written under another name first, then moved into place.
        image_shape: Channels, height and width of one input image.
        opset: ONNX operator set; by default 17 (TorchScript) or 18 (dynamo).
        exporter: PyTorch's exporter.
        keep_batchnorm: Leave BatchNormalization nodes in the graph instead of folding them into
            the convolutions before them.
        force: Replace a file that exists.

    Raises:
        OutputError: If the file exists and ``force`` is not given, or its folder does not exist.
        ModelError: If the exporter cannot write the operator set.
    """
    refuse_overwrite(path, force)
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} into: create it")
    opset = exporter.default_opset if opset is None else opset
    if opset not in exporter.opsets:
        raise ModelError(
            f"the {exporter} exporter cannot write opset {opset} for {path}: choose one from "
            f"{exporter.opsets.start} to {exporter.opsets.stop - 1}"
        )
    network = network.eval()
    # Two images: the dynamo exporter would take a batch of one for a constant.
    example = torch.zeros(2, *image_shape)
    with TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        # Both exporters warn of their own internals; the tests compare the file with the network.
        warnings.simplefilter("ignore")
        written = Path(folder) / path.name
        if exporter is Exporter.TORCHSCRIPT:
            _export_torchscript(network, example, written, opset, keep_batchnorm)
        else:
            _export_dynamo(network, example, written, opset, keep_batchnorm)
        written.replace(path)


def _export_torchscript(
    network: nn.Module, example: Tensor, path: Path, opset: int, keep_batchnorm: bool
) -> None:
    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["input"],
        output_names=["logits"],
        opset_version=opset,
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        # PRESERVE differs from EVAL, for a network in evaluation mode, only in this folding.
        training=(
            torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL
        ),
        dynamo=False,
    )


def _export_dynamo(
    network: nn.Module, example: Tensor, path: Path, opset: int, keep_batchnorm: bool
) -> None:
    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["input"],
        output_names=["logits"],
        opset_version=opset,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=not keep_batchnorm,
        external_data=False,
        verbose=False,
        dynamo=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the command's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m models.export", description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--hidden", type=int, help="width of VGG-16's two hidden linear layers")
    parser.add_argument("--opset", type=int, help="default: 17 (torchscript), 18 (dynamo)")
    parser.add_argument(
        "--exporter", type=Exporter, choices=list(Exporter), default=Exporter.TORCHSCRIPT
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--keep-batchnorm", action="store_true", help="do not fold it")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    try:
        export_network(
            build_network(
                options.network, options.classes, seed=options.seed, hidden=options.hidden
            ),
            options.output,
            opset=options.opset,
            exporter=options.exporter,
            keep_batchnorm=options.keep_batchnorm,
            force=options.force,
        )
    except (ModelError, OutputError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
