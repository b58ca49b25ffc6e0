"""A whole run: a recipe's stages, one after the other."""
