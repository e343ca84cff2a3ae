"""``python -m proact_onnx.cli``."""

from proact_onnx.cli.application import main

main()
