"""What a record says of an exported model, and its table in the terminal and in the report."""

from __future__ import annotations

from html import escape

from rich.table import Table
from rich.text import Text

from rld.reporting.file_records import Amount, Count, FileRecord, Share
from rld.reporting.html import scrolling, table

_MEGABYTE = 1e6


class ExportRecord(FileRecord):
    """An exported model, compared with the model that it was made of, and measured in its runtime."""

    format: str
    precision: str
    runtime: str
    """The package that ran it, and its version."""
    bytes: Count
    """Of all its files."""
    load_seconds: Amount
    memory: int
    """Bytes by which the process of the runtime grew when it loaded the model and read a token."""
    context: Count
    """Tokens of the longest sequence for which the runtime had memory."""
    milliseconds: dict[str, Amount]
    """The time of a token that is generated, by the number of threads."""
    texts: str
    """What both have read."""
    tokens: Count
    """How many tokens of it were compared."""
    agreement: Share
    divergence: Amount
    perplexity: Amount
    model_perplexity: Amount
    reads_text: bool
    """Whether the runtime has the tokenizer, too, and encodes texts as the model's does."""

    def rows(self) -> list[tuple[str, str]]:
        """Return what it says, as names and values."""
        rise = self.perplexity / self.model_perplexity - 1 if self.model_perplexity else 0.0
        texts = "as the model's does" if self.reads_text else "not at all: use the model's tokenizer"
        times = [
            (f"ms a token, {threads} thread{'s' if threads != '1' else ''}", f"{value:.3g}")
            for threads, value in self.milliseconds.items()
        ]
        return [
            ("file", f"{self.format}, {self.precision}, {self.bytes / _MEGABYTE:.1f} MB"),
            ("verified in", self.runtime),
            ("compared on", f"{self.tokens} tokens of {self.texts}"),
            ("same likeliest token", f"{self.agreement:.2%}"),
            ("KL divergence", f"{self.divergence:.2g} nats a token"),
            ("perplexity", f"{self.perplexity:.4g}, the model's is {self.model_perplexity:.4g} ({rise:+.2%})"),
            ("encodes text", texts),
            ("load time", f"{self.load_seconds:.2f} s"),
            ("memory", f"{self.memory / _MEGABYTE:.0f} MB with a context of {self.context} tokens"),
            *times,
        ]


def export_table(record: ExportRecord, title: str) -> Table:
    """Return the table of an exported model for the terminal."""
    rows = Table(title=Text(title), title_justify="left", show_header=False)
    for name, value in record.rows():
        rows.add_row(name, value)
    return rows


def export_html(stage: str, record: ExportRecord) -> str:
    """Return the table of an exported model for the report."""
    rows = [[escape(name), escape(value)] for name, value in record.rows()]
    return f"<h2>Export {escape(stage)}</h2>{scrolling(table([('', 'left'), ('', 'left wide')], rows))}"
