"""rld: distillation and reinforcement of small language models, in one adaptive loop on top of TRL."""

from pathlib import Path as _Path

# Installed, rewards/, curricula/ and recipes/ are inside this folder; in a source checkout they are beside it, and
# this makes them importable as rld.rewards and so on all the same.
if not (_Path(__file__).resolve().parent / "rewards").is_dir():
    __path__.append(str(_Path(__file__).resolve().parent.parent))
