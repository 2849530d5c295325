"""The command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import sys

from leadfl_pl.command_line import main

if __name__ == "__main__":
    sys.exit(main())
