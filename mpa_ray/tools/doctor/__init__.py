"""What can be known of a machine or cluster before a run: versions, memory, GPUs, Ray, storage,
models, keys, and one small run.

Each check is a function that gives findings; none raises where a thing is not well.
"""
