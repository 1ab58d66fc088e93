"""Text that came from models and files, made fit for people's eyes and for a page."""

import json
from typing import Any

from markupsafe import Markup

from mpa_ray.observability.clean_text import visible as visible

LONGEST = 2000

_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def cut(text: str | None, longest: int = LONGEST) -> str | None:
    """`text`, or its beginning and how long it is."""
    return (
        text
        if text is None or len(text) <= longest
        else f"{text[:longest]}… ({len(text):,} characters)"
    )


def embedded(value: Any) -> Markup:
    """`value` as JSON for a script element of type application/json: no `<` that could end it, no
    `&` that could be decoded.
    """
    return Markup(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_IN_SCRIPT)
    )
