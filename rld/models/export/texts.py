"""Texts on which an exported model and its tokenizer are verified where there are no held-out rows."""

from __future__ import annotations

PROSE = """\
A small river runs past the mill, and in spring it floods the lower field. The miller's daughter keeps a \
notebook in which she writes down the height of the water every morning. On the third of March it was 42 \
centimetres, on the fourth 57, and on the fifth it stood at 63, which was the highest mark since she had \
begun. Her brother asked why she took the trouble. "Because one day somebody will want to build a bridge," she \
said, "and then they will ask how high it has to be."

Bread needs only flour, water, salt and time. Mix 500 grams of flour with 350 grams of water and 10 grams of \
salt, add a spoonful of leaven, and let it rest under a cloth for 12 hours. Then shape the dough, wait until \
it has risen by half, and bake it at 230 degrees for 40 minutes. If the crust sounds hollow when you knock on \
it, the loaf is done.

Question: A train leaves at 9:15 and arrives at 11:40. How long does the journey take?
Answer: From 9:15 to 11:15 it is 2 hours, and from 11:15 to 11:40 it is 25 minutes. The journey takes 2 hours \
and 25 minutes, which is 145 minutes.

def mean(values):
    \"\"\"Return the mean of some numbers, or None if there are none.\"\"\"
    if not values:
        return None
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

print(mean([3, 5, 10]))  # 6.0

The sky looks blue because the air scatters short waves of light more than long ones. At sunset the light has \
come a longer way through the air, most of the blue has been scattered out of it, and what is left is orange \
and red. On the moon, where there is no air, the sky is black even at noon."""
"""Plain English, numbers and code, a page of it: over 400 tokens of a tokenizer of 50,000."""

SPELLINGS = (
    "It's 7 o'clock; we've 1,024 items (3.14 each) and they'll cost 50% more!",
    "  two  spaces,\ttabs\n\n\nand lines \n ends  ",
    "naïve café, Ünïcödé, Привет, 日本語 テスト, 🙂🚀",
    "for i in range(10):\n    x_1 += i**2  # done\n",
)
"""What tokenizers spell differently where they are not the same: digits, spaces, endings, scripts and emoji."""
