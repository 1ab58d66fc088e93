"""Text that came from models and files, made fit for people's eyes and for a page."""

import json
import re
from typing import Any

from markupsafe import Markup

LONGEST = 2000

# Embeddings, overrides and isolates reorder what stands around them; the plain marks (U+200E, U+200F) do not and belong to ordinary text.
_REORDERING = "\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff{_REORDERING}]")
_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def visible(text: object) -> str:
    """`text` with control characters and those that reorder text shown by their code, as ⟨U+202E⟩."""
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(text))


def cut(text: str | None, longest: int = LONGEST) -> str | None:
    """`text`, or its beginning and how long it is."""
    return text if text is None or len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def embedded(value: Any) -> Markup:
    """`value` as JSON for a script element of type application/json: no `<` that could end it, no `&` that could be decoded."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_IN_SCRIPT))
