"""The steps of Algorithm 1."""
