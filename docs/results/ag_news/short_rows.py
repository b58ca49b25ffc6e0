"""Write rows of AG News, all with their labels: the training rows, shuffled, and the first 400 test rows.

A text is the title and the first eight words of the article.

usage: python short_rows.py TRAIN.csv TEST.csv, with the columns label, title, text
"""

from __future__ import annotations

import csv
import random
import sys

from few_labels import write  # beside this file
from pattern_rows import clean

_NUM_WORDS = 8
"""Words of an article that follow its title."""
_NUM_TESTED = 400


def read(path: str) -> list[dict[str, str]]:
    """Return the rows of a file, with their label, title and the beginning of their text."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "label": row["label"],
            "title": clean(row["title"]),
            "text": " ".join(clean(row["text"]).split()[:_NUM_WORDS]),
        }
        for row in rows
    ]


if __name__ == "__main__":
    train, test = read(sys.argv[1]), read(sys.argv[2])
    random.Random(0).shuffle(train)
    write("train.csv", train)
    write("test.csv", test[:_NUM_TESTED])
