"""The embedded default: images that the package renders itself, and a pair of tiny Qwen2-VL models
that were trained on such images.

With them the whole of MPA runs on a CPU, offline, in minutes, and the S-VLM's gain is a real one.
"""

from mpa_ray.demo.weights import LVLM, SVLM

__all__ = ["LVLM", "SVLM"]
