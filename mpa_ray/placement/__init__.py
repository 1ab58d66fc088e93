"""Which GPUs and nodes each model gets, and the Ray session that has them."""
