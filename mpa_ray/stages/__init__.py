"""The machinery of a stage: the engine actor, what it remembers, how it ends, and the stages that
are no algorithm of their own.
"""
