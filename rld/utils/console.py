"""The console of all tables and sentences that rld prints; a terminal obeys no text in them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rld.utils.control_characters import visible


class SafeConsole(Console):
    """A console that shows control characters of what it prints as escapes, and itself still moves and colours."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
