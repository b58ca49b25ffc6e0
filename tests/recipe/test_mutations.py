"""Mutated recipes: whatever stands in a recipe's file or override, `rld` reads it, or refuses it as a user's mistake.

3,600 mutants, half of them of a fixed seed and half of a fresh one, which a failure prints with how to see it again.
What goes how far:

- 3,500 of the recipes that ship and of those in the docs are read, and what they cost is estimated.
- Of 100 the whole `rld check` runs, by the command line.
