"""The versions of the packages that a run's numbers depend on."""

from __future__ import annotations

from importlib.metadata import version

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "evaluate", "numpy")


def package_versions() -> dict[str, str]:
    """Return the installed version of each package."""
    return {name: version(name) for name in _PACKAGES}
