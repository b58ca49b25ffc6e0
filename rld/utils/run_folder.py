"""The files of a run's folder."""

from __future__ import annotations

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
"""A run's journals, in its folder."""
