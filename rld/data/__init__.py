"""Data: items from generators and files, and the prompts and training examples built from them, without a model."""
