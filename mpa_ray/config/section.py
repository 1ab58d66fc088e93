"""What every part of the configuration is made of."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Marker = TypeVar("Marker")


@dataclass(frozen=True)
class MayChange:
    """Stands beside a field that is no part of a run's identity: it may change between two calls on
    one output, because it decides how fast or where a run runs and not what comes out.
    """


@dataclass(frozen=True)
class ReadBy:
    """Stands beside a field that only some comparisons read, and MPA itself never: it may change
    until one of them has been trained.
    """

    arms: frozenset[str]


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """What stands beside a field, of a kind; None where nothing does."""
    found: list[Any] = [mark for mark in field.metadata if isinstance(mark, kind)]
    return found[0] if found else None


class Section(BaseModel):
    """A part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
