"""A training run: its steps, losses, schedule and record, and what a dry run says of it."""
