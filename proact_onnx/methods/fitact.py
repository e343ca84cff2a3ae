"""FitAct: a threshold for every neuron, all trained together.

Source: Ghavami, Sadati, Fang and Shannon, "FitAct: Error Resilient Deep Neural Networks via
Fine-Grained Post-Trainable Activation Functions", DATE 2022; training iterations as in the ProAct
paper (section VI-A: 150 epochs).

Every threshold starts at the profiled maximum of its neuron. All of them are then trained at once
with Adam on ``cross-entropy + gamma * mean square of lambda`` through the smooth gate
``r * sigmoid(k (lambda - r))``; weights stay fixed.

Differences from the original: thresholds move relative to their profiled value and end no higher;
training ends early when the loss no longer falls; the hard bound is deployed (``--form smooth``
deploys the gate); and instead of stopping at an accuracy, thresholds that cost too much accuracy
on the accept images go back towards the profiled ones, all by the same share.
"""

from proact_onnx.methods.base import FitContext, Fitted
from proact_onnx.methods.training import Training
from proact_onnx.mirror.train import hyrelu_gate


def fit(context: FitContext) -> Fitted:
    """Train all thresholds together."""
    training = Training(context)
    training.together(hyrelu_gate(context.settings), distil=False)
    return Fitted(training.fitted)
