"""The command line of a checkout: ``python cli.py fit --config configs/quickstart.yaml``."""

import sys

from leadfl_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
