"""Model names are checked before anything loads them."""

from pathlib import Path

import pytest

from mpa_ray import models
from mpa_ray.errors import ConfigurationError


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_what_can_be_a_model(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    monkeypatch.setenv("HOME", str(model_folder.parent))
    for name in (str(model_folder), "model", "./model", "~/model", "Qwen/Qwen2-VL-2B-Instruct", "bczhou/TinyLLaVA-2.0B"):
        models.check("svlm.model", name)


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./missing",
        "~/missing",
        "missing",
        "",
        "Qwen/Qwen2-VL/extra",
        "Qwen/Qwen2 VL",
        "Qwen/",
        "../Qwen",
        "http://host/model",
    ],
)
def test_what_cannot_be_a_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"svlm\.model=") as caught:
        models.check("svlm.model", name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in (tmp_path, tmp_path / "weights.bin"):
        with pytest.raises(ConfigurationError, match=r"holds no config\.json; give a folder in the Hugging Face layout"):
            models.check("lvlm.model", str(name))


def test_local_names_stay_and_home_is_expanded(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert models.local("~/model") == str(model_folder)
    assert models.local(str(model_folder)) == str(model_folder)
    assert models.local("Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"
