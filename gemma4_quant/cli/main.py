"""Where the `gemma4-quant` script enters: an interrupt is one line and exit code 130 from the first import on."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from gemma4_quant.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("gemma4-quant: error: interrupted\n")
        sys.exit(130)
