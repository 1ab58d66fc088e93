"""Named sets of settings: the demo's, and the paper's S-VLMs and L-VLMs. `--preset qwen2vl-2b
internvl2-8b`; a YAML file and flags come after them.

InternVL2 and TinyLLaVA-2.0B were published in layouts of their authors' own, which transformers
cannot train: `svlm.model` then names a converted copy, and what is refused says so
(`mpa_ray.models.families`).
"""

import importlib.util
from typing import Any

from mpa_ray.demo import weights

IMAGES = 3000
QUESTIONS = 1000
ABLATIONS = ("no_pi_same_size", "no_pi_all")

PAPER: dict[str, dict[str, Any]] = {
    "qwen2vl-2b": {"svlm": {"model": "Qwen/Qwen2-VL-2B-Instruct"}},
    "internvl2-2b": {"svlm": {"model": "OpenGVLab/InternVL2-2B"}},
    "internvl2-4b": {"svlm": {"model": "OpenGVLab/InternVL2-4B"}},
    "smolvlm-500m": {"svlm": {"model": "HuggingFaceTB/SmolVLM-500M-Instruct"}},
    "tinyllava-2b": {"svlm": {"model": "bczhou/TinyLLaVA-2.0B"}},
    "qwen2vl-7b": {"lvlm": {"model": "Qwen/Qwen2-VL-7B-Instruct"}},
    "internvl2-8b": {"lvlm": {"model": "OpenGVLab/InternVL2-8B"}},
    "gpt-4o": {"lvlm": {"model": "gpt-4o-2024-11-20", "engine": "openai"}},
}

NAMES = ("demo", *PAPER)


def preset(name: str, *, own_inputs: bool = False) -> dict[str, Any]:
    """The settings of a preset, nested as in YAML.

    Args:
        name: one of `NAMES`.
        own_inputs: the run has images, annotations or a parity set of its own: of the demo, its
            models and how they are run are taken, and nothing is rendered or compared.
    """
    if name != "demo":
        return PAPER[name]
    rendered = (
        {}
        if own_inputs
        else {"demo": {"images": IMAGES, "questions": QUESTIONS}, "ablations": ABLATIONS}
    )
    return rendered | _embedded_pair()


def _embedded_pair() -> dict[str, Any]:
    """Tiny embedded models on two CPU cores, minutes. Everything else is the code that runs the
    large ones.
    """
    engine = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    model = {
        "engine": engine,
        "gpus_per_replica": 0,
        "cpus_per_replica": 0.5,
        "max_model_len": 512,
        "images_in_flight": 64,
    }
    return {
        "lvlm": model | {"model": str(weights.LVLM)},
        "svlm": model | {"model": str(weights.SVLM)},
        # A tiny model asks the same few questions at low temperatures, and knows no words but its
        # prompts.
        "annotate": {"temperature": 1.0, "max_tokens": 48, "preamble": ""},
        "pl": {
            "learning_rate": 6e-4,
            "batch_size": 4,
            "micro_batch_size": 4,
            "warmup": 0.05,
            # With so small a model, two workers wait for each other longer than they train.
            "workers": 1,
            "gpus_per_worker": 0,
            "precision": "float32",
            "gradient_checkpointing": False,
        },
        "evaluate": {"models_at_once": 2},
        "images_per_part": 128,
    }
