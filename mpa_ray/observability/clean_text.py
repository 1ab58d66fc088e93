"""Text from models, files and servers, made fit to be stored and to be shown to people."""

import re

# Embeddings, overrides and isolates reorder what stands around them; the plain marks (U+200E,
# U+200F) do not and belong to ordinary text. A lone surrogate cannot be written to any stream.
_REORDERING = "\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff{_REORDERING}]")
_BREAKS = re.compile("[\n\u2028\u2029]")


def storable(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, so that it can be encoded as UTF-8: JSON may hold
    them, and files, tables and terminals may not."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def visible(text: object) -> str:
    """`text` with control characters and those that reorder text shown by their code, as ⟨U+202E⟩.
    Tabs and line feeds stay."""
    return _INVISIBLE.sub(_code, str(text))


def visible_line(text: object) -> str:
    """`visible` for a text that must stay on its line: line breaks are shown by their code too."""
    return _BREAKS.sub(_code, visible(text))


def _code(found: re.Match[str]) -> str:
    return f"⟨U+{ord(found[0]):04X}⟩"
