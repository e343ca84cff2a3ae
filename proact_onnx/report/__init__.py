"""Results for people: tables for the terminal and figures on disk."""

from proact_onnx.report.figures import check_figure, plot_accuracy
from proact_onnx.report.tables import (
    activation_table,
    campaign_table,
    clipping_table,
    comparison_table,
    cost_table,
    parameter_table,
    threshold_table,
)

__all__ = [
    "activation_table",
    "campaign_table",
    "check_figure",
    "clipping_table",
    "comparison_table",
    "cost_table",
    "parameter_table",
    "plot_accuracy",
    "threshold_table",
]
