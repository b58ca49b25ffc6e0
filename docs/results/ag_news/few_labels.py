"""Write the training rows of AG News with the labels of a few drawn rows, and without those of all others.

usage: python few_labels.py TRAIN.csv FEW.csv LABELS SEED, with the columns label, title, text
"""

from __future__ import annotations

import csv
import random
import sys

_UNLABELLED = 300
"""Rows without a label that are written; a student reads fewer."""


def draw(rows: list[dict[str, str]], count: int, num_others: int, rng: random.Random) -> list[dict[str, str]]:
    """Return rows that keep their label, as many of each topic as of any other up to one, and others without it."""
    topics = sorted({row["label"] for row in rows})
    rng.shuffle(topics)
    labelled: list[int] = []
    for i, topic in enumerate(topics):
        numbers = [number for number, row in enumerate(rows) if row["label"] == topic]
        labelled += rng.sample(numbers, count // len(topics) + (i < count % len(topics)))
    others = rng.sample(sorted({*range(len(rows))} - {*labelled}), num_others)
    return [rows[number] for number in labelled] + [rows[number] | {"label": ""} for number in others]


def write(path: str, rows: list[dict[str, str]]) -> None:
    """Write rows to a file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    source, target, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with open(source, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    write(target, draw(rows, count, _UNLABELLED, random.Random(seed)))
