"""ProAct: thresholds trained layer by layer, from the last to the first.

Source: Mousavi et al., "ProAct: Progressive Training for Hybrid Clipped Activation Function to
Enhance Resilience of DNNs", Algorithm 1, Eq. 5, 7 and 8.

1. Every threshold starts at the profiled maximum: one per neuron in the last hidden layer, one
   per layer elsewhere.
2. From the last layer to the first, one layer's thresholds are trained with Adam on
   ``KL(student || teacher) at temperature T + cross-entropy + gamma * mean square of lambda``;
   everything else stays fixed.

Differences from the paper, all where it is silent:

- Only the layer in training has the smooth gate, the others are as deployed, so everything before
  that layer is constant and computed once.
- Thresholds move relative to their profiled value. They end no higher, unless the smooth gate
  itself is deployed.
- A layer whose trained thresholds cost too much accuracy on images kept apart for that purpose
  goes half way, three quarters or all the way back to the profiled ones. Where these alone cost
  more than is allowed, training must not cost anything on top.

Ablations: without distillation (``--no-distillation``: cross-entropy alone), without progression
(``--no-progressive``: all layers together, 150 epochs), and any ``--granularity``.

With ``--train-ber`` the data part of the loss is computed under faults in the parameters before the
threshold, too.
"""

from proact_onnx.methods.base import FitContext, Fitted
from proact_onnx.methods.training import Training
from proact_onnx.mirror.train import hyrelu_gate


def fit(context: FitContext) -> Fitted:
    """Train the thresholds of every activation, last to first."""
    settings = context.settings
    training = Training(context)
    train = training.layer_by_layer if settings.progressive else training.together
    train(hyrelu_gate(settings), distil=settings.distillation)
    return Fitted(training.fitted)
