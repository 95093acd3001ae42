"""Text that may come from anybody, on a terminal."""

import pytest

from sae_lens_hsae.storage.json_files import printable


@pytest.mark.parametrize(
    "text",
    ["naïve\nÀ bientôt\u00a0!", "我们在\u3000北京", "می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧 👋🏽 ✓\ufe0f"],
)
def test_text_of_any_script_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize("steering", ["\x1b", "\x07", "\r", "\u202e", "\u2066", "\u2028", "\u200b", "\x9b"])
def test_what_steers_a_terminal_is_spelled_out(steering):
    assert printable(f"a{steering}b") == f"a{ascii(steering)[1:-1]}b"


def test_a_joiner_alone_can_be_seen():
    assert printable("\u200d") == "\\u200d"
