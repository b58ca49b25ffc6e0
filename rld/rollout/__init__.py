"""From completions to a scored batch: rewards, verifier, gate, audit, teachers' scores. No update."""
