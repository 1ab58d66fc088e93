"""Text from elsewhere, as it is stored and shown."""

import pytest

from mpa_ray.observability.clean_text import storable, visible, visible_line


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("", ""),
        ("a\n東京 \U0001f600\0", "a\n東京 \U0001f600\0"),
        ("\ud83d", "\ufffd"),
        ("\ude00", "\ufffd"),
        ("a\ud83db\ud83d\ud83dc\ude00", "a\ufffdb\ufffd\ufffdc\ufffd"),
        # Two halves that came one by one.
        ("\ud83d" + "\ude00", "\U0001f600"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_what_is_stored_can_be_written_as_utf_8(text: str, stored: str) -> None:
    assert storable(text) == stored
    assert storable(text).encode().decode() == stored


def test_what_is_shown_does_not_act() -> None:
    assert visible("a\x1b[2J\u202e\ud800\r\n\tb") == "a⟨U+001B⟩[2J⟨U+202E⟩⟨U+D800⟩⟨U+000D⟩\n\tb"
    assert visible_line("a\nb\u2028c\x85d") == "a⟨U+000A⟩b⟨U+2028⟩c⟨U+0085⟩d"
    assert visible_line("नमस्ते, שלום, \u200e1\u200f") == "नमस्ते, שלום, \u200e1\u200f"
