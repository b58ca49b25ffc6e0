"""`python -m rld` and `accelerate launch -m rld` are the same program as `rld`."""

import sys

from rld.cli import main

if __name__ == "__main__":  # the processes of `rld ablate` import it under another name
    sys.exit(main())
