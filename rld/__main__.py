"""`python -m rld` and `accelerate launch -m rld` are the same program as `rld`."""

import sys

from rld.cli import main

sys.exit(main())
