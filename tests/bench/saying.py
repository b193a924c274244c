"""What the user reads while it runs."""

import sys


def say(line: str) -> None:
    """Print a line; standard output is for the tables."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
