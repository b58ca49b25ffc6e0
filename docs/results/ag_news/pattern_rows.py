"""Write rows of AG News for few labels: the training rows with the labels of a few of them, and test rows.

A text is the title and the first words of the article, because every word costs operations.

usage: python pattern_rows.py TRAIN.csv TEST.csv LABELS SEED [UNLABELLED TESTED], with the columns label, title, text;
rows without a label are 400, and those that are scored afterwards 500, unless given
"""

from __future__ import annotations

import csv
import random
import re
import sys

from few_labels import draw, write  # beside this file

_NUM_WORDS = 16
"""Words of an article that follow its title."""
_NUM_FIRST = 40
"""Rows of those that are scored afterwards that are scored in training too."""


def read(path: str) -> list[dict[str, str]]:
    """Return the rows of a file, with their label and text."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{"label": row["label"], "text": f"{clean(row['title'])}\n{_begin(row['text'])}"} for row in rows]


def clean(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("#39;", "'").replace("\\", " ")).strip()


def _begin(text: str) -> str:
    return " ".join(clean(text).split()[:_NUM_WORDS])


if __name__ == "__main__":
    train, test, count, seed = read(sys.argv[1]), read(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    num_unlabelled, num_test = map(int, sys.argv[5:] or ("400", "500"))
    drawn = draw(train, count, num_unlabelled, random.Random(seed))
    write("few.csv", drawn)
    write("labelled.csv", [row for row in drawn if row["label"]])
    write("unlabelled.csv", [row for row in drawn if not row["label"]])
    tests = random.Random(0).sample(test, num_test)  # the same for every seed
    write("test.csv", tests)
    write("first.csv", tests[:_NUM_FIRST])
