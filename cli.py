"""The command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import gc
import sys


def main() -> int:
    """Runs :func:`leadfl_pl.cli.main.main`.

    What an import makes stays until the end. Looking for garbage among it, over and over while it
    grows and once more at the end, is a third of the time that ``--help`` would take.
    """
    gc.disable()
    from leadfl_pl.cli.main import main

    gc.freeze()
    gc.enable()
    return main()


if __name__ == "__main__":
    sys.exit(main())
