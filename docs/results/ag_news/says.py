"""A reward for models that were not trained to stop behind a label."""


def begins(completions, answer, **_):
    """Give 1 to a completion that begins with the words of the gold label, whatever follows."""
    return [float(text.strip().startswith(gold.strip())) for text, gold in zip(completions, answer, strict=True)]
