"""What needs a run and is needed by none."""
