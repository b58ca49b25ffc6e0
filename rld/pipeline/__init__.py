"""Run the stages of a recipe in order."""
