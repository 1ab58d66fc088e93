"""From `--images` to numbered parts: finding images wherever they lie, listing them once, reading
and decoding their bytes.
"""
