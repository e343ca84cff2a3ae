"""Keeping native libraries from writing to the user's terminal."""

import os
import sys


def silence() -> None:
    """Let nothing that this process writes reach the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
