"""Rows: from generators and files to prompts and training examples. No model."""
