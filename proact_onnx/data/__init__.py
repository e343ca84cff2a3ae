"""Images and labels: reading them, checking them, and bringing them into a model's own form."""

from proact_onnx.data.dataset import Dataset, check_labels, split_disjoint
from proact_onnx.data.inputs import bundle, prepare_inputs
from proact_onnx.data.layout import Layout
from proact_onnx.data.parts import Part
from proact_onnx.data.preprocess import Preprocessing, prepare
from proact_onnx.data.sources import load_dataset

__all__ = [
    "Dataset",
    "Layout",
    "Part",
    "Preprocessing",
    "bundle",
    "check_labels",
    "load_dataset",
    "prepare",
    "prepare_inputs",
    "split_disjoint",
]
