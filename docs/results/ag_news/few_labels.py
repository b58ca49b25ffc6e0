"""Write the training rows of AG News with the labels of a few drawn rows, and without those of all others.

usage: python few_labels.py TRAIN.csv FEW.csv LABELS SEED, with the columns label, title, text
"""

from __future__ import annotations

import csv
import random
import sys

_UNLABELLED = 300
"""Rows without a label that are written; a student reads fewer."""

source, target, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
with open(source, encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
topics = sorted({row["label"] for row in rows})
rng.shuffle(topics)
labelled: list[int] = []
for i, topic in enumerate(topics):  # as many of each topic as of any other, up to one
    numbers = [number for number, row in enumerate(rows) if row["label"] == topic]
    labelled += rng.sample(numbers, count // len(topics) + (i < count % len(topics)))
rest = rng.sample(sorted({*range(len(rows))} - {*labelled}), _UNLABELLED)
with open(target, "w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, ["label", "title", "text"])
    writer.writeheader()
    writer.writerows([rows[number] for number in labelled] + [rows[number] | {"label": ""} for number in rest])
