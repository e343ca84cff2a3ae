"""The command line: parses options, shows progress, prints results."""

from proact_onnx.cli.application import app, main

__all__ = ["app", "main"]
