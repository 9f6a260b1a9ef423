"""The command `tidegate`.

Flow: `sys.argv` -> the Rust command line -> its exit code.
Memory: holds none.
"""

import signal
import sys

from tidegate import _tidegate


def main() -> None:
    """Run the command line and exit with its code."""
    # Rust waits with the interpreter released: the default handlers let Ctrl-C and a closed pipe,
    # such as that of `head`, end the process as they end any other command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(_tidegate.cli(sys.argv))
