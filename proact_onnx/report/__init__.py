"""Results for people: tables for the terminal and figures on disk."""

from proact_onnx.report.figures import check_figure, plot_accuracy, plot_atlas
from proact_onnx.report.rendering import Table
from proact_onnx.report.tables import (
    activation_table,
    campaign_table,
    class_table,
    clipping_table,
    comparison_table,
    cost_table,
    effect_table,
    gain_table,
    measures_table,
    parameter_table,
    sensitivity_table,
    site_table,
    spell_fault,
    threshold_table,
)
from proact_onnx.report.write import WrittenReport, write_report

__all__ = [
    "Table",
    "WrittenReport",
    "activation_table",
    "campaign_table",
    "check_figure",
    "class_table",
    "clipping_table",
    "comparison_table",
    "cost_table",
    "effect_table",
    "gain_table",
    "measures_table",
    "parameter_table",
    "plot_accuracy",
    "plot_atlas",
    "sensitivity_table",
    "site_table",
    "spell_fault",
    "threshold_table",
    "write_report",
]
