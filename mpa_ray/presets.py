"""Named sets of settings: the demo's, and the paper's S-VLMs with Table 11's hyperparameters. A preset fills in; a YAML file and flags come after it."""

from typing import Any

from mpa_ray import demo
from mpa_ray.engines import vllm_is_installed

DEMO_IMAGES = 4000
DEMO_QUESTIONS = 1000


def _paper(svlm: str, *, batch_size: int, learning_rate: float) -> dict[str, Any]:
    return {"svlm": {"model": svlm}, "pl": {"batch_size": batch_size, "learning_rate": learning_rate}}


PAPER: dict[str, dict[str, Any]] = {
    "qwen2vl-2b": _paper("Qwen/Qwen2-VL-2B-Instruct", batch_size=16, learning_rate=1e-5),
    "internvl2-2b": _paper("OpenGVLab/InternVL2-2B", batch_size=16, learning_rate=4e-5),
    "internvl2-4b": _paper("OpenGVLab/InternVL2-4B", batch_size=6, learning_rate=4e-5),
    "smolvlm-500m": _paper("HuggingFaceTB/SmolVLM-500M-Instruct", batch_size=16, learning_rate=1e-4),
    "tinyllava-2b": _paper("bczhou/TinyLLaVA-2.0B", batch_size=16, learning_rate=1e-4),
}

NAMES = ("demo", *PAPER)


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, nested as in YAML."""
    return _demo() if name == "demo" else PAPER[name]


def _demo() -> dict[str, Any]:
    """Tiny embedded models on two CPU cores, minutes. Everything else is the code that runs the large ones."""
    engine = "vllm" if vllm_is_installed() else "transformers"
    model = {"engine": engine, "gpus_per_replica": 0, "cpus_per_replica": 0.5, "max_model_len": 512, "images_in_flight": 64}
    return {
        "demo": {"images": DEMO_IMAGES, "questions": DEMO_QUESTIONS},
        "lvlm": model | {"model": str(demo.LVLM)},
        "svlm": model | {"model": str(demo.SVLM)},
        # A tiny model asks the same few questions at low temperatures.
        "annotate": {"temperature": 1.0, "max_tokens": 48},
        "pl": {
            "learning_rate": 6e-4,
            "batch_size": 4,
            "micro_batch_size": 2,
            "warmup": 0.05,
            "workers": 2,
            "gpus_per_worker": 0,
            "cpus_per_worker": 0.5,
            "precision": "float32",
            "gradient_checkpointing": False,
        },
        "evaluate": {"lvlm": True},
        "ablations": ("no_pi_same_size", "no_pi_all"),
        "images_per_part": 128,
    }
