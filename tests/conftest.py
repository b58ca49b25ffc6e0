"""Set before anything is imported: waiting threads sleep, which shared cores need, and no hub is asked.

Hypothesis draws the same cases in each run; with RLD_FRESH_SEEDS=1 others each time.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("rld", derandomize=os.environ.get("RLD_FRESH_SEEDS") != "1")
settings.load_profile("rld")
