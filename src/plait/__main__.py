"""Run plait's command line as `python -m plait`, the form that torchrun needs."""

import sys

from plait.cli import main

if __name__ == "__main__":
    sys.exit(main())
