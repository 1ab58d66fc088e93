"""How large a model is, told by its files, by its configuration, and by its name."""

import os
import subprocess
import sys
from typing import Any

import pytest

from mpa_ray import demo
from mpa_ray.config import ModelSection
from mpa_ray.models import families
from mpa_ray.models.size import size_from, size_of

# What their config.json says of Qwen2-VL-7B and Qwen2-VL-72B.
QWEN2_VL_7B = {
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "torch_dtype": "bfloat16",
}
QWEN2_VL_72B = QWEN2_VL_7B | {
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 8192,
}


def test_a_folder_is_measured() -> None:
    section = ModelSection(model=str(demo.LVLM))
    found = size_of(section)
    assert found.source == "its files" and found.parameters == families.count_parameters(section)
    assert found.weight_bytes == sum(
        path.stat().st_size for path in demo.LVLM.glob("*.safetensors")
    )


@pytest.mark.parametrize(
    ("config", "kv_bytes", "heads"), [(QWEN2_VL_7B, 57_344, 28), (QWEN2_VL_72B, 327_680, 64)]
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_kv_cache_of_a_token(
    config: dict[str, Any], kv_bytes: int, heads: int, nested: bool
) -> None:
    whole = {"text_config": config, "model_type": "x"} if nested else config
    found = size_from(whole, 16_583_000_000, ModelSection(model="a/b"), source="its files")
    assert (found.kv_bytes, found.heads) == (kv_bytes, heads)
    assert found.parameters == 16_583_000_000 // 2


@pytest.mark.parametrize(
    ("settings", "weight_bytes"),
    [
        ({}, 16e9),
        ({"dtype": "bfloat16"}, 16e9),
        ({"dtype": "float32"}, 32e9),
        ({"engine_options": {"quantization": "fp8"}}, 8e9),
        ({"engine_options": {"quantization": "bitsandbytes"}}, 4e9),
    ],
)
def test_weights_as_they_are_served(settings: dict[str, Any], weight_bytes: float) -> None:
    found = size_from(
        QWEN2_VL_7B, 16_000_000_000, ModelSection(model="a/b", **settings), source="its files"
    )
    assert found.weight_bytes == weight_bytes and found.parameters == 8_000_000_000


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2-VL-72B-Instruct", 72e9),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 5e8),
        ("bczhou/TinyLLaVA-2.0B", 2e9),
        ("OpenGVLab/InternVL2-4B", 4e9),
        ("a/model", None),
        ("4B/model", None),
    ],
)
def test_a_name_tells_where_nothing_else_does(name: str, parameters: float | None) -> None:
    found = size_of(ModelSection(model=name))
    assert (found and found.parameters) == parameters


def test_models_that_run_elsewhere_have_no_size() -> None:
    assert size_of(ModelSection(model="gpt-4o-7B", engine="openai")) is None
    assert size_of(ModelSection(model="own-7B", engine="my:engine")) is None


def test_a_hub_that_cannot_be_reached_is_no_error() -> None:
    lines = (
        "from mpa_ray.config import ModelSection",
        "from mpa_ray.models.size import size_of",
        "print(size_of(ModelSection(model='a/b-7B')).source)",
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.strip() == "its name", result.stderr
