"""What the Parity Leveler's workers do: read samples, make batches of them, train with DeepSpeed
ZeRO, and keep what to resume from.
"""
