"""Settings as people read them: names, kinds, defaults, meanings."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from mpa_ray.config import Config, ModelSection
from mpa_ray.config.describe import Setting, help_lines, kind_of, settings
from mpa_ray.config.section import Section


class Inner(Section):
    depth: PositiveInt = 3
    """How deep."""


class Outer(Section):
    inner: Inner = Inner()
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share. More of it
    below."""
    price: Annotated[float, Field(ge=0)] | None = None
    names: tuple[Literal["a", "b"], ...] = ("a",)
    on: bool = False


def test_names_defaults_and_meanings() -> None:
    found = {
        setting.name: setting for setting in settings(Outer, values=Outer(inner=Inner(depth=7)))
    }
    assert list(found) == ["inner.depth", "share", "price", "names", "on"]
    assert [setting.default for setting in found.values()] == ["7", "0.5", "", "a", "false"]
    assert (found["share"].meaning, found["share"].gist) == (
        "The share. More of it below.",
        "The share.",
    )


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (PositiveFloat, "number above 0"),
        (Annotated[int, Field(ge=-1)], "integer from -1"),
        (Annotated[float, Field(ge=0, lt=0.5)], "number from 0 and below 0.5"),
        (Annotated[float, Field(ge=0)] | None, "number from 0 or null"),
        (PositiveInt | Literal["auto"], "integer above 0 or auto"),
        (tuple[Literal["a", "b"], ...], "list of a or b"),
        (dict[str, Any], "mapping"),
        (tuple[ModelSection, ...], "list of section"),
    ],
)
def test_kinds(annotation: Any, kind: str) -> None:
    from pydantic import create_model

    assert kind_of(create_model("Made", field=(annotation, ...)).model_fields["field"]) == kind


def test_every_setting_of_a_run_says_what_it_means() -> None:
    assert [setting.name for setting in settings(Config) if not setting.meaning] == []


def test_help_is_wrapped() -> None:
    found = [
        Setting(
            name="a.very_long_name_of_some_setting",
            kind="text",
            default="x",
            meaning="Word " * 30 + "end. Further.",
        )
    ]
    lines = help_lines(found, width=80, whole=False)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "  --a.very_long_name_of_some_setting"
    assert "Further" not in " ".join(lines) and "Further" in " ".join(
        help_lines(found, width=80, whole=True)
    )
