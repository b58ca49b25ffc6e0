"""Language models as machinery: heads, hidden states, rows, prompts, adapters. No loss, no teacher."""
