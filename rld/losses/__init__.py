"""Formulas: tensors in, tensors out. No model is loaded or run here."""
