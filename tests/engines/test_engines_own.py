"""An engine of the user's own, named as module:function."""

import sys
from pathlib import Path

import pytest

from mpa_ray import engines
from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.steps.checks import check
from mpa_ray.storage.folder import Folder

ENGINE = """
class Engine:
    def __init__(self, model):
        self.model = model

def load(model):
    return Engine(model)

nothing = 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_own_engine.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_own_engine", None)
    return "my_own_engine"


def test_its_function_is_called_with_the_section(module: str) -> None:
    model = ModelSection(
        model="what only it knows", engine=f"{module}:load", engine_options={"a": 1}
    )
    engine = engines.load(model)
    assert type(engine).__name__ == "Engine" and engine.model is model


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            "not_there:load",
            "engine='not_there:load': no module 'not_there'; install it, or run from its folder",
        ),
        (
            "my_own_engine:other",
            "engine='my_own_engine:other': my_own_engine has no function 'other'",
        ),
        (
            "my_own_engine:nothing",
            "engine='my_own_engine:nothing': my_own_engine has no function 'nothing'",
        ),
    ],
)
def test_what_is_not_there_is_said_before_anything_loads(
    module: str, tmp_path: Path, engine: str, said: str
) -> None:
    given = {
        "images": str(tmp_path),
        "output": str(tmp_path / "out"),
        "svlm": ModelSection(model="m"),
    }
    config = Config(lvlm=ModelSection(model="m", engine=engine), **given)
    with pytest.raises(ConfigurationError) as error:
        check(config, Folder.at(config.output))
    assert str(error.value) == said


@pytest.mark.parametrize(
    "name", ["vlm", "my_engine", "my-engine:load", "os:system()", ":load", "a:b:c"]
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError,
        match="is no engine; give one of vllm, transformers, openai, or one of your own as"
        " module:function",
    ):
        ModelSection(engine=name)
