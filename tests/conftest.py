"""Set before anything is imported: waiting threads sleep, which shared cores need, and no hub is asked."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
