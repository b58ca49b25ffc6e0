"""Print how often an untrained model's likeliest label is right, by pattern, with and without synonyms.

The patterns of a row share its text: each stands behind it by itself, in one forward.

usage: python synonyms.py MODEL TRAIN.csv ROWS, with the columns label, title, text
"""

from __future__ import annotations

import random
import sys

import torch
from pattern_rows import read  # beside this file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.rollout.label_priors import LabelPriors

PATTERNS = (
    *("Filed under:", "Posted in:", "Topic:", "Tags:", "Category:", "Categories:", "Keywords:", "Subject:"),
    *("Section:", "Section of the newspaper:", "This is news from the section:", "This article is about"),
    *("Published in:", "Read more:", "Related topics:", "More stories about"),
)
WORDS = {
    "World": [" World", " Politics", " International", " Global"],
    "Sports": [" Sports", " Sport"],
    "Business": [" Business", " Finance", " Economy", " Money"],
    "Sci/Tech": [" Tech", " Science", " Computers", " Internet"],
}
"""The words of each label, its own first."""
_SEED = 777


def log_probabilities(model: str, texts: list[str]) -> Tensor:
    """Return the log-probability of each word behind each text and pattern, `[rows, patterns, words]`, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    words = [tokenizer(word).input_ids[0] for some in WORDS.values() for word in some]  # each is one token
    patterns = [tokenizer("\n" + pattern).input_ids for pattern in PATTERNS]
    rows = []
    for text in texts:
        ids = tokenizer(text).input_ids
        size, segments = len(ids), [0] * len(ids)
        positions, ends = list(range(size)), []
        for number, pattern in enumerate(patterns, 1):
            ids, segments = ids + pattern, segments + [number] * len(pattern)
            positions += range(size, size + len(pattern))
            ends.append(len(ids) - 1)
        segments_L = torch.tensor(segments)
        sees_LL = (segments_L[:, None] == segments_L) | (segments_L == 0)
        mask_LL = torch.zeros(sees_LL.shape, dtype=torch.bfloat16).masked_fill(~sees_LL.tril(), -torch.inf)
        places = {"position_ids": torch.tensor([positions]), "attention_mask": mask_LL[None, None]}
        with torch.no_grad():
            states = network.model(torch.tensor([ids]), **places).last_hidden_state[0, ends]
            rows.append(network.lm_head(states).float().log_softmax(-1)[:, words])
    return torch.stack(rows)


def calibrated(scores_NL: Tensor) -> Tensor:
    """Return the distributions after prior matching, `[rows, labels]`."""
    log_p_NL = scores_NL.log_softmax(1)
    priors = LabelPriors({"news": list(WORDS)}, ["untrained"])
    priors.add([("news", 0, log_p_L) for log_p_L in log_p_NL])
    return (log_p_NL - priors.log_prior("news", 0)).softmax(1)


def main(model: str, train: str, num_rows: int) -> None:
    """Print a line for each pattern, the one of least entropy first, and one for the mean of all distributions."""
    rows = read(train)
    random.Random(_SEED).shuffle(rows)
    rows = rows[:num_rows]
    gold_N = torch.tensor([list(WORDS).index(row["label"]) for row in rows])
    by_label = log_probabilities(model, [row["text"] for row in rows]).split([*map(len, WORDS.values())], -1)
    own = torch.stack([some[..., 0] for some in by_label], -1)
    mean = torch.stack([some.mean(-1) for some in by_label], -1)
    ways = [
        torch.stack([way(scores[:, k]) for k in range(len(PATTERNS))])
        for scores in (own, mean)
        for way in (
            lambda scores_NL: scores_NL.softmax(1),
            calibrated,
        )
    ]
    entropy_K = -(ways[-1] * ways[-1].log()).sum(-1).mean(-1)
    print("pattern | own word | calibrated | with synonyms | calibrated | its entropy in nats")
    for k in entropy_K.argsort().tolist():
        right = [f"{(way[k].argmax(1) == gold_N).double().mean():.3f}" for way in ways]
        print(" | ".join([PATTERNS[k], *right, f"{entropy_K[k]:.2f}"]))
    print(" | ".join(["mean", *(f"{(way.mean(0).argmax(1) == gold_N).double().mean():.3f}" for way in ways)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
