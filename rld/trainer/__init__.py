"""One update: TRL's GRPO trainer with teachers, more signals and a controller. No recipe."""
