"""Write the data of the recipes beside this file: sums, talks, articles, news, programming tasks, and their tokenizer.

All of it is made of the words below; nothing is copied. `python recipes/data/make.py` writes the same files again.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "tiles")
PLACES = ("Alder", "Birch", "Cedar", "Elm", "Hazel", "Linden", "Maple", "Willow")
BUILDINGS = ("bridge", "school", "library", "market", "park", "station", "theatre", "tower")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

FIRMS = ("Arlo", "Brix", "Corvo", "Delto", "Ember", "Fenix")
NEWS = {
    "World": (
        "{a} and {b} open their border",
        "{a} elects a new mayor",
        "Storm leaves {a} without light",
        "Talks between {a} and {b} fail",
        "Thousands march in {a}",
        "{a} sends help to {b}",
    ),
    "Sports": (
        "{a} beats {b} by {n} goals",
        "{who} wins the race in {a}",
        "{who} leaves {a} for {b}",
        "{a} loses the final to {b}",
        "{who} is hurt before the match",
        "{n} medals for {a}",
    ),
    "Business": (
        "{firm} buys {other}",
        "Shares of {firm} fall by {n} points",
        "{firm} closes its shop in {a}",
        "{other} and {firm} share a market",
        "The price of {thing} rises again",
        "{who} leads {firm} from Monday",
    ),
    "Sci/Tech": (
        "{firm} shows a chip that thinks",
        "{who} finds a star behind the moon",
        "Robots of {firm} sort {thing}",
        "A probe lands near {a}",
        "New software of {firm} reads {thing}",
        "Why {thing} glow in the dark",
    ),
}
"""Headlines by topic."""
MORE = {
    "World": ("The leaders met on Monday.", "Nobody was harmed.", "Streets were full of people."),
    "Sports": ("The season ends on Friday.", "The crowd was loud.", "The coach was pleased."),
    "Business": ("Profits were small last year.", "The deal costs {n} million.", "Customers may wait."),
    "Sci/Tech": ("The study took {n} years.", "It runs without power.", "Others will repeat the test."),
}
"""What goes on below a headline, by topic."""

NUM_GOLD = 80
"""Rows of news that keep their topic; the others show rows without a label."""

NUM_TOKENS = 1024
"""Size of the vocabulary: the 256 bytes, the marks of a chat, and the commonest pieces of the texts."""

CHAT_TEMPLATE = """\
{%- if messages[0].role == 'system' %}{{ '<|system|>' + messages[0].content }}{% endif %}
{%- if tools %}{{ '<|tools|>' + (tools | map(attribute='function') | list | tojson) }}{% endif %}
{%- for message in messages if message.role != 'system' %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|call|>' + call.function.name + ' ' + (call.function.arguments | tojson) }}
{%- endfor %}
{%- if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

PRICE = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a thing.",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}},
    },
}


def sums(rng: random.Random) -> dict[str, str]:
    """Return a word problem with its answer, which ends with the number behind `####`."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    low, high = sorted((a, b))
    return rng.choice(
        [
            {
                "question": f"{name} has {a} {thing} and gets {b} more. How many {thing} has {name} now?",
                "answer": f"{a} + {b} = {a + b}\n#### {a + b}",
            },
            {
                "question": f"{name} has {high} {thing} and gives {low} away. How many {thing} are left?",
                "answer": f"{high} - {low} = {high - low}\n#### {high - low}",
            },
        ]
    )


def talks(rng: random.Random) -> dict[str, Any]:
    """Return a conversation in a shop: the assistant looks a price up, answers, and multiplies it."""
    name, thing, price, count = rng.choice(NAMES), rng.choice(THINGS), rng.randint(1, 5), rng.randint(2, 5)
    questions = [f"What do {thing} cost?", f"How much are {thing}?", f"Do you sell {thing}?"]
    call = {"type": "function", "function": {"name": "price", "arguments": {"thing": thing}}}
    return {
        "messages": [
            {"role": "system", "content": "You sell things. Answer in one short sentence."},
            {"role": "user", "content": f"{name} asks: {rng.choice(questions)}"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(price)},
            {"role": "assistant", "content": f"One of the {thing} costs {price}."},
            {"role": "user", "content": rng.choice([f"And {count} of them?", f"I want {count}."])},
            {"role": "assistant", "content": f"For {count} of them you pay {price * count}."},
        ],
        "tools": [PRICE],
    }


def articles(rng: random.Random) -> dict[str, str]:
    """Return an article of four sentences and its summary, which needs two of them."""
    place, building = rng.choice(PLACES), rng.choice(BUILDINGS)
    years, cost = rng.choice(NUMBERS[2:]), rng.choice(NUMBERS[2:])
    is_open = rng.random() < 0.5
    start = f"The {building} of {place} {'opened' if is_open else 'closed'} on {rng.choice(['Monday', 'Friday'])}."
    end = f"It was {'built' if is_open else 'used'} for {years} years."
    filling = [
        f"{rng.choice(NAMES)} was there with {rng.choice(NUMBERS[2:])} friends.",
        f"It cost {cost} million.",
        rng.choice(["The sun was out.", "It rained all day.", "There was music."]),
    ]
    rng.shuffle(filling)
    return {
        "article": " ".join([start, filling[0], end, filling[1]]),
        "summary": f"{place} {'has a new' if is_open else 'lost its'} {building} after {years} years.",
    }


def news(rng: random.Random) -> dict[str, str]:
    """Return a headline with a sentence below it, and their topic; each third sentence is that of any topic."""
    label = rng.choice(list(NEWS))
    (a, b), (firm, other) = rng.sample(PLACES, 2), rng.sample(FIRMS, 2)
    words = {"a": a, "b": b, "firm": firm, "other": other, "who": rng.choice(NAMES), "thing": rng.choice(THINGS)}
    words["n"] = rng.choice(NUMBERS[2:])
    below = MORE[rng.choice(list(MORE)) if rng.random() < 1 / 3 else label]
    return {
        "label": label,
        "title": rng.choice(NEWS[label]).format(**words),
        "text": rng.choice(below).format(**words),
    }


def tasks(rng: random.Random) -> dict[str, Any]:
    """Return a programming task with its tests and a solution."""
    n = rng.randint(2, 30)
    name, text, body, cases = rng.choice(
        [
            ("add", f"adds {n} to x", f"x + {n}", {"1": 1 + n, "10": 10 + n}),
            ("take", f"takes {n} from x", f"x - {n}", {"1": 1 - n, "40": 40 - n}),
            ("times", f"multiplies x by {n}", f"x * {n}", {"2": 2 * n, "-3": -3 * n}),
            ("first", f"returns the first {n} letters of x", f"x[:{n}]", {"'ab' * 20": ("ab" * 20)[:n]}),
            ("last", f"returns the last {n} letters of x", f"x[-{n}:]", {"'ab' * 20": ("ab" * 20)[-n:]}),
            ("most", f"returns x, but at most {n}", f"min(x, {n})", {"100": n, "1": 1}),
        ]
    )
    prompt = rng.choice([f"Write {name}(x), which {text}.", f"The function {name}(x) {text}."])
    return {
        "prompt": prompt,
        "tests": [f"assert {name}({x}) == {y!r}" for x, y in cases.items()],
        "solution": f"def {name}(x):\n    return {body}",
        "entry_point": name,
    }


def different(make: Callable[[random.Random], dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return rows no two of which are equal."""
    rng = random.Random(0)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        row = make(rng)
        rows[json.dumps(row)] = row
    return list(rows.values())


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and of the commonest pieces of texts, with a chat template."""
    roles = [f"<|{role}|>" for role in ("system", "tools", "user", "assistant", "call", "tool")]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=["<|pad|>", "<|end|>", *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(folder: Path) -> None:
    """Write all files into a folder."""
    files = {
        "sums": different(sums, 320),
        "articles": different(articles, 320),
        "tasks": different(tasks, 240),
    }
    # No two talks begin alike, so that no prompt of a held-out talk occurs in training.
    conversations = list({row["messages"][1]["content"]: row for row in different(talks, 800)}.values())[:160]
    files |= {"talks": conversations[:120], "talks_held_out": conversations[120:]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    headlines = different(news, 400)
    unlabelled = [row | {"label": ""} for row in headlines[NUM_GOLD:320]]
    write_csv(folder / "news.csv", [*headlines[:NUM_GOLD], *unlabelled])
    write_csv(folder / "news_held_out.csv", headlines[320:])
    texts = [json.dumps(row).replace("\\n", "\n") for rows in files.values() for row in rows]
    tokenizer(texts).save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    write(FOLDER)
