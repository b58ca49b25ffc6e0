"""Resume from checkpoints that run code where they are unpickled without care. A test runs it in two processes."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from tests.support import parity

if __name__ == "__main__":
    place, *names = map(Path, sys.argv[1:])
    for checkpoint in names:
        with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
            parity.resumed(place / checkpoint.name, 1, checkpoint)
