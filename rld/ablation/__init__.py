"""Many runs compared: arms, processes, statistics, page. It starts `rld train`, it does not import it."""
