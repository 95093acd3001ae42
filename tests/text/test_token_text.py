"""What the tokens of every kind of tokenizer stand for."""

import pytest
from tokenizer_kinds import BYTES, KINDS, as_bytes, byte_level, fast, vocabulary
from tokenizers import decoders, models
from transformers import AddedToken

from sae_lens_hsae.text.token_text import TokenTexts, joined_characters, parting_tokens, readable, whole_characters


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_read_as_they_stand_amid_text(kind):
    tokenizer, expected = KINDS[kind]
    texts = TokenTexts(tokenizer)
    assert [texts[id_] for id_ in range(len(expected))] == expected
    assert texts[len(tokenizer)] == f"⟨{len(tokenizer)}⟩"


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_a_large_vocabulary_does_not_matter(reverse, monkeypatch):
    """It differs from process to process; here nearly all tokens lose a part of themselves when they are decoded."""
    vocab = vocabulary("▁a", "b", *(f"zz{i}" for i in range(500)))
    tokenizer = fast(models.BPE(vocab, []), decoders.Sequence([decoders.Replace("zz", ""), decoders.Replace("▁", " ")]))
    in_order = dict(sorted(vocab.items(), reverse=reverse))
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: in_order)
    assert TokenTexts(tokenizer)[0] == " a"


@pytest.mark.parametrize("kind", ["byte-level with ##", "byte fallback"])
def test_a_part_of_a_character_shows_its_bytes_and_the_last_part_the_character(kind):
    tokenizer, _ = KINDS[kind]
    single = "".join if kind == "byte fallback" else (lambda hex_: BYTES[int("".join(hex_), 16)])
    names = [f"<0x{byte:02X}>" for byte in "✓é".encode()]
    tokens = [name if kind == "byte fallback" else single(name[3:5]) for name in names]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    texts = TokenTexts(tokenizer)
    assert [texts[id_] for id_ in ids] == names
    a = tokenizer.convert_tokens_to_ids("a")
    line = whole_characters([texts[id_] for id_ in [a, *ids, a, ids[0], a]])
    assert line == ["a", "<0xE2>", "<0x9C>", "✓", "<0xC3>", "é", "a", "<0xE2>", "a"]


def test_a_byte_that_is_a_character_is_shown_as_that():
    tokenizer, _ = KINDS["byte fallback"]
    texts = TokenTexts(tokenizer)
    assert [texts[tokenizer.convert_tokens_to_ids(name)] for name in ("<0x0A>", "<0x41>")] == ["\n", "A"]


def test_tokens_that_hold_text_and_parts_of_characters():
    tick = "✓".encode()
    tokens = ["".join(BYTES[byte] for byte in raw) for raw in (b" " + tick[:2], tick[2:] + b"!", tick + tick[:1])]
    tokenizer = byte_level(*tokens, "a")
    texts = [TokenTexts(tokenizer)[id_] for id_ in range(1, 4)]
    assert texts == [" <0xE2><0x9C>", "<0x93>!", "✓<0xE2>"]
    assert whole_characters([texts[0], texts[1], texts[2], texts[0]]) == [
        " <0xE2><0x9C>", "✓!", "✓<0xE2>", " <0xE2><0x9C>"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        ([" a", "b"], [" a", "b"]),
        (["a", "<0xE6>", "<0x97>", "<0xA5>", "b"], ["a", "日", "b"]),
        ([" <0xE2><0x9C>", "<0x93><0xF0>", "<0x9F>", "b"], [" ✓<0xF0>", "<0x9F>", "b"]),
        ([" <0xE2><0x9C>", "<0x93><0xC3>", "<0xA9>", "b"], [" ✓é", "b"]),
        (["<0x9C>", "<0xE2>", "<0xE2>", "<0x9C>", "<0x93>"], ["<0x9C>", "<0xE2>", "✓"]),
    ],
)
def test_tokens_that_share_a_character_are_joined(texts, expected):
    found = joined_characters(texts)
    assert [text for _, text in found] == expected
    assert [text for tokens, _ in found for text in texts[tokens]] == texts


def test_the_replacement_character_itself_is_no_broken_one():
    tokenizer = byte_level(as_bytes("\ufffd"), "a")
    assert TokenTexts(tokenizer)[1] == "\ufffd"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"ok", "ok"),
        (b"\xe2a", "<0xE2>a"),
        (b"\xe2\xe2\x9c\x93", "<0xE2>✓"),
        (b"\xff\x80z", "<0xFF><0x80>z"),
        (b"", ""),
    ],
)
def test_bytes_are_read_as_far_as_they_are_characters(raw, text):
    assert readable(raw) == text


def test_added_tokens_and_chat_tokens():
    tokenizer = byte_level("a")
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("día", special=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>"]})
    ids = tokenizer.convert_tokens_to_ids(["<tool>", "día", "<start_of_turn>"])
    texts = TokenTexts(tokenizer)
    assert [texts[id_] for id_ in ids] == ["<tool>", "día", "<start_of_turn>"]


def test_an_unknown_word_and_a_masked_one_part_no_texts():
    names = {"unk": "[UNK]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]"}
    model = models.WordPiece(vocabulary(*names.values()), unk_token="[UNK]")
    bert = fast(model, **{f"{role}_token": token for role, token in names.items()})
    bert.add_special_tokens({"additional_special_tokens": ["<start_of_turn>"]})
    assert sorted(parting_tokens(bert)) == ["<start_of_turn>", "[CLS]", "[PAD]", "[SEP]"]
    assert parting_tokens(byte_level("a", unk_token="<|end|>")) == ["<|end|>"], "GPT-2 has one token for all"
    assert parting_tokens(fast(models.WordLevel(vocabulary("a")))) == []
