"""Results for people: tables for the terminal and figures on disk."""

from proact_onnx.report.comparison import read_comparison
from proact_onnx.report.comparison_tables import method_tables
from proact_onnx.report.deployment import (
    check_written,
    deployment_notes,
    deployment_table,
    folding_note,
    write_deployment,
)
from proact_onnx.report.distributions import distribution_figure, plot_distributions
from proact_onnx.report.figures import check_figure, plot_accuracy, plot_atlas
from proact_onnx.report.monitor_tables import detection_table, monitor_table, spell_monitor
from proact_onnx.report.protection import coverage_line, unprotected_lines
from proact_onnx.report.rendering import Table, to_markdown
from proact_onnx.report.tables import (
    activation_table,
    campaign_table,
    choice_table,
    class_table,
    clipping_table,
    comparison_table,
    cost_table,
    distribution_table,
    effect_table,
    gain_table,
    measures_table,
    parameter_table,
    sensitivity_table,
    site_table,
    spell_fault,
    storage_table,
    threshold_table,
)
from proact_onnx.report.write import WrittenReport, write_report

__all__ = [
    "Table",
    "WrittenReport",
    "activation_table",
    "campaign_table",
    "check_figure",
    "check_written",
    "choice_table",
    "class_table",
    "clipping_table",
    "comparison_table",
    "cost_table",
    "coverage_line",
    "deployment_notes",
    "deployment_table",
    "detection_table",
    "distribution_figure",
    "distribution_table",
    "effect_table",
    "folding_note",
    "gain_table",
    "measures_table",
    "method_tables",
    "monitor_table",
    "parameter_table",
    "plot_accuracy",
    "plot_atlas",
    "plot_distributions",
    "read_comparison",
    "sensitivity_table",
    "site_table",
    "spell_fault",
    "spell_monitor",
    "storage_table",
    "threshold_table",
    "to_markdown",
    "unprotected_lines",
    "write_deployment",
    "write_report",
]
