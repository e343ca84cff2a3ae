"""Progress in a terminal."""

import io
import re

from rich.console import Console

from proact_onnx.console import BarReporter


def test_a_bar_shows_trials_rate_and_how_the_task_stands() -> None:
    written = io.StringIO()
    with BarReporter(Console(file=written, force_terminal=True, width=120)) as reporter:
        reporter.begin("net.onnx ber=1e-06", 8)
        reporter.advance(3)
        reporter.advance(3)
        reporter.status("71.20 % [69.94, 74.56]")
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    last = [line for line in drawn.splitlines() if line][-1]
    assert "net.onnx ber=1e-06" in last
    assert "6/8" in last
    assert re.search(r"\d/s 71\.20 % \[69\.94, 74\.56\]", last)


def test_without_a_terminal_there_are_only_notices() -> None:
    written = io.StringIO()
    with BarReporter(Console(file=written, width=120)) as reporter:
        reporter.begin("net.onnx", 8)
        reporter.status("71.20 %")
        reporter.notice("something to know")
    assert written.getvalue() == "something to know\n"
