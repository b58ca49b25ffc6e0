"""A first recipe for a data file, a student and teachers, as `rld init` writes it."""
