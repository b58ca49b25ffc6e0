"""Draw a few labelled rows of AG News, take the label from all others, and cut the texts to their first words.

usage: python split.py IN.csv OUT.csv [LABELS SEED], columns label, title, text; without a number all labels stay
"""

from __future__ import annotations

import csv
import random
import sys

_NUM_WORDS = 12
"""Words of a text that are kept: with the title, about 30 tokens."""


def labelled(labels: list[str], count: int, seed: int) -> set[int]:
    """Return the numbers of the rows that keep their label, as many of each label as of any other, up to one."""
    rng = random.Random(seed)
    topics = sorted(set(labels))
    rng.shuffle(topics)
    chosen: set[int] = set()
    for i, topic in enumerate(topics):
        share = count // len(topics) + (i < count % len(topics))
        chosen.update(rng.sample([row for row, label in enumerate(labels) if label == topic], share))
    return chosen


def main(source: str, target: str, count: str | None = None, seed: str = "0") -> None:
    """Write the rows of `source` to `target`."""
    with open(source, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = labelled([row["label"] for row in rows], int(count), int(seed)) if count is not None else set(range(len(rows)))
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["label", "title", "text"])
        writer.writeheader()
        for i, row in enumerate(rows):
            text = " ".join(row["text"].split()[:_NUM_WORDS])
            writer.writerow({"label": row["label"] if i in kept else "", "title": row["title"], "text": text})


main(*sys.argv[1:])
