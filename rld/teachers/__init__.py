"""Teachers in this process, on servers and on disk, and how they score a rollout."""
