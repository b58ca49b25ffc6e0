"""Set before torch is imported: waiting threads sleep, so that the suite does not crawl when the cores are shared."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
