"""Every setting of a configuration, one by one: what `--help` and the guide's page of settings are
made of.
"""

import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "mapping",
    type(None): "null",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: as in YAML and flags, `lvlm.model`.
        kind: what it takes, for people.
        default: as YAML has it; empty where there is none.
        meaning: its docstring, in one line.
    """

    name: str
    kind: str
    default: str
    meaning: str

    @property
    def gist(self) -> str:
        """The first sentence of the meaning."""
        head, dot, _ = self.meaning.partition(". ")
        return head + ("." if dot else "")


def settings(
    section: type[BaseModel], *, values: BaseModel | None = None, prefix: str = ""
) -> Iterator[Setting]:
    """The settings of a section and of the sections in it, in the order of the source.

    Args:
        section: a pydantic model.
        values: whose values are the defaults; without it, the section's own.
        prefix: what comes before each name.
    """
    for name, field in section.model_fields.items():
        value = getattr(values, name) if values is not None else field.default
        if isinstance(value, BaseModel) and value.__class__ is field.annotation:
            yield from settings(type(value), values=value, prefix=f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").split())
            yield Setting(
                name=f"{prefix}{name}", kind=kind_of(field), default=_shown(value), meaning=meaning
            )


def kind_of(field: FieldInfo) -> str:
    """What a field takes: `integer above 0`, `text or null`, `bfloat16 or float32`."""
    bounds = [bound for item in field.metadata if (bound := _bound(item))]
    return " ".join([_kind(field.annotation), " and ".join(bounds)]).strip()


def _bound(item: Any) -> str:
    words = {
        annotated_types.Gt: ("gt", "above"),
        annotated_types.Ge: ("ge", "from"),
        annotated_types.Lt: ("lt", "below"),
    }
    words[annotated_types.Le] = ("le", "up to")
    if type(item) in words:
        attribute, word = words[type(item)]
        return f"{word} {getattr(item, attribute)}"
    return ""


def _kind(annotation: Any) -> str:
    words = list(_alternatives(annotation))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _alternatives(annotation: Any) -> Iterator[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        yield _NAMES[annotation]
    elif origin is Literal:
        yield from map(str, parts)
    elif origin is Annotated:
        bounds = [bound for item in parts[1:] for each in _flat(item) if (bound := _bound(each))]
        kinds = list(_alternatives(parts[0]))
        yield from [" ".join([*kinds, " and ".join(bounds)])] if bounds else kinds
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from _alternatives(part)
    elif origin is tuple:
        yield f"list of {_kind(parts[0])}"
    else:
        yield "mapping" if origin is dict else "section"


def _flat(item: Any) -> Iterator[Any]:
    """pydantic's `Field(ge=0)` in an annotation carries its bounds inside."""
    yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "" or value == () or value == {}:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def help_lines(found: Sequence[Setting], *, width: int, whole: bool) -> list[str]:
    """Flags for a terminal of `width` columns: each with its default and its meaning, or the first
    sentence of it.
    """
    column = 32
    lines = []
    for setting in found:
        text = setting.meaning if whole else setting.gist
        text = f"{text} ({setting.default})" if setting.default else text
        if whole:
            text = f"{setting.kind}. {text}"
        flag = f"  --{setting.name}"
        wrapped = textwrap.wrap(text, max(30, width - column)) or [""]
        if len(flag) + 2 > column:
            lines.append(flag)
        else:
            wrapped[0] = flag.ljust(column) + wrapped[0]
            lines.append(wrapped.pop(0))
        lines += [" " * column + line for line in wrapped]
    return lines
