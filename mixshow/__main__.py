"""`python -m mixshow` is the `mixshow` command (and what `accelerate launch -m mixshow` starts)."""

import sys

from mixshow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
