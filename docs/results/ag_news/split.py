"""Leave the label to the first 50 rows of each topic of AG News and take it from all others.

usage: python split.py TRAIN.csv NEWS.csv, both with the columns label, title, text
"""

from __future__ import annotations

import collections
import csv
import sys

_GOLD_ROWS = 50
"""Rows of each topic that keep their label."""

with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "w", encoding="utf-8", newline="") as target:
    writer = csv.DictWriter(target, ["label", "title", "text"])
    writer.writeheader()
    counts: collections.Counter[str] = collections.Counter()
    for row in csv.DictReader(source):
        counts[row["label"]] += 1
        writer.writerow(row if counts[row["label"]] <= _GOLD_ROWS else row | {"label": ""})
