"""Ways of working on a task."""
