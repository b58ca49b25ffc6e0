"""How good a model is: scores on rows that no training sees."""
