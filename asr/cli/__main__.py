"""`python -m asr.cli`: the command line without an installed script."""

import sys

from asr.cli import main

if __name__ == "__main__":
    sys.exit(main())
