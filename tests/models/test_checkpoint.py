"""Model names are checked before anything loads them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mpa_ray.config import ModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.models import checkpoint
from mpa_ray.models.families import count_parameters


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_what_can_be_a_model(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    monkeypatch.setenv("HOME", str(model_folder.parent))
    for name in (
        str(model_folder),
        "model",
        "./model",
        "~/model",
        "Qwen/Qwen2-VL-2B-Instruct",
        "bczhou/TinyLLaVA-2.0B",
    ):
        checkpoint.check("svlm.model", name)


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
        checkpoint.check("svlm.model", name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in (tmp_path, tmp_path / "weights.bin"):
        with pytest.raises(
            ConfigurationError,
            match=r"holds no config\.json; give a folder in the Hugging Face layout",
        ):
            checkpoint.check("lvlm.model", str(name))


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"],
)
def test_weights_that_are_pickled_are_refused_before_anything_loads(
    name: str, model_folder: Path
) -> None:
    (model_folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        ConfigurationError, match=rf"{name}.*Python pickles.*as safetensors"
    ) as caught:
        checkpoint.check("svlm.model", str(model_folder))
    assert "\n" not in str(caught.value) and str(model_folder) in str(caught.value)
    # What a trainer leaves beside the weights is not looked at.
    save_file({"a": np.zeros(4)}, model_folder / "model.safetensors")
    checkpoint.check("svlm.model", str(model_folder))


DAMAGED = {
    "empty": b"",
    "cut": b"12",
    "of an absurd length": b"\xff" * 8,
    "no JSON": b"\x05\0\0\0\0\0\0\0nope!",
    "no UTF-8": b"\x02\0\0\0\0\0\0\0\xff\xfe",
    "a list": b"\x02\0\0\0\0\0\0\0[]",
    "a tensor that is none": b'\x09\0\0\0\0\0\0\0{"a": 12}',
    "a tensor without a place": b'\x1a\0\0\0\0\0\0\0{"a": {"shape": [2, 3, 4]}}',
    "of a type that is none": b'\x44\0\0\0\0\0\0\0{"a": {"dtype": "\\u001b[31m\\n", "shape": [],'
    b' "data_offsets": [0,0]}}',
    "nested": b"\xa0\x86\x01\0\0\0\0\0" + b"[" * 100_000,
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid"
    b" sha256:4d7a214614ab2935c943f9e0ff69",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_refused_before_anything_loads(kind: str, model_folder: Path) -> None:
    file = model_folder / "model.safetensors"
    file.write_bytes(DAMAGED[kind])
    for look in (
        lambda: checkpoint.check("svlm.model", str(model_folder)),
        lambda: count_parameters(ModelSection(model=str(model_folder))),
    ):
        with pytest.raises(ConfigurationError) as caught:
            look()
        assert str(caught.value).startswith(f"{file} is ") and str(caught.value).endswith(
            "; copy the model again"
        )
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_weights_that_are_not_as_long_as_their_header_says_are_refused(model_folder: Path) -> None:
    file = model_folder / "model.safetensors"
    save_file({"a": np.arange(100.0), "b": np.zeros((3, 2))}, file)
    whole = file.read_bytes()
    for content in (*(whole[:length] for length in (5, 50, 500, len(whole) - 1)), whole + b"\0\0"):
        file.write_bytes(content)
        with pytest.raises(
            ConfigurationError, match=rf"is cut off or damaged: {len(content)} bytes, "
        ):
            checkpoint.check("svlm.model", str(model_folder))


def test_weights_that_cannot_be_opened_are_not_called_missing(model_folder: Path) -> None:
    (model_folder / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        count_parameters(ModelSection(model=str(model_folder)))


@pytest.mark.parametrize(
    "index", [b"", b"[]", b"{}", b'{"weight_map": 7}', b'{"weight_map": {"a": 7}}']
)
def test_an_index_that_is_none_is_refused(index: bytes, model_folder: Path) -> None:
    (model_folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(
        ConfigurationError, match=r"index\.json is no index of weights; copy the model again"
    ):
        checkpoint.check("svlm.model", str(model_folder))


def test_local_names_stay_and_home_is_expanded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert checkpoint.local("~/model") == str(model_folder)
    assert checkpoint.local(str(model_folder)) == str(model_folder)
    assert checkpoint.local("Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"
