"""Rows of documents, such as books, articles and source code, of which every token is learnt."""

from __future__ import annotations

from collections.abc import Iterator

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields

NAMES = ("text", "level")


def items(fields: Fields, *, document_separator: str | None) -> Iterator[Item]:
    """Yield the documents of a record; parts without a visible character are none.

    Args:
        fields: `text`, which is one document, or several with a separator between them.
        document_separator: The separator. None: there is none.

    Raises:
        ValueError: it is no text, or empty.
    """
    text = fields.text("text")
    for document in [text] if document_separator is None else text.split(document_separator):
        if document.strip():
            yield Item(document, None, is_document=True)
