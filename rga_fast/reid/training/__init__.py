"""A training run: steps, losses, schedule, record, and the dry run."""
