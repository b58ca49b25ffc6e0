"""Evaluation of models on held-out rows, which are never trained on."""
