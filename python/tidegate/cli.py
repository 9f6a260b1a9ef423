"""The command `tidegate`: it hands its arguments to the Rust side."""

import signal
import sys

from tidegate import _tidegate


def main() -> None:
    """Run the command line and exit with its code."""
    # Rust waits without the interpreter: let Ctrl-C end the process as it would end any other command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # And the end of who reads it, such as `head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(_tidegate.cli(sys.argv))
