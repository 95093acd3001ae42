"""Every kind of tokenizer, made here, and the texts of its first tokens."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = bytes_to_unicode()


def fast(model, decoder=None, **special) -> Any:
    backend = Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def vocabulary(*tokens: str) -> dict[str, int]:
    return {token: id_ for id_, token in enumerate(tokens)}


def as_bytes(text: str) -> str:
    """A byte-level token for a text."""
    return "".join(BYTES[byte] for byte in text.encode())


def byte_level(*tokens: str, **special) -> Any:
    vocab = vocabulary("<|end|>", *tokens)
    vocab |= {character: len(vocab) + i for i, character in enumerate(sorted(set(BYTES.values()) - set(vocab)))}
    made = fast(models.BPE(vocab, []), decoders.ByteLevel(), bos_token="<|end|>", eos_token="<|end|>", **special)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def llama_like(*tokens: str) -> Any:
    """SentencePiece's BPE with byte fallback, as Llama and Gemma have it."""
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocab = vocabulary("<s>", *tokens)
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    return fast(models.BPE(vocab, [], byte_fallback=True), decoder, bos_token="<s>")


KINDS = {
    "WordPiece": (
        fast(
            models.WordPiece(vocabulary("[CLS]", "walk", "##ing", "a", ".", "[UNK]"), unk_token="[UNK]"),
            decoders.WordPiece(),
            cls_token="[CLS]",
        ),
        ["[CLS]", " walk", "ing", " a", "."],
    ),
    # A comment of code or a heading of Markdown makes no WordPiece.
    "byte-level with ##": (
        byte_level("walk", "Ġis", "##", "##a", "Ċ", "ĊĊ", as_bytes(" naïve"), as_bytes("你好"), "a"),
        ["<|end|>", "walk", " is", "##", "##a", "\n", "\n\n", " naïve", "你好", "a"],
    ),
    "Unigram": (
        fast(
            models.Unigram([("<unk>", 0.0), ("▁walk", -1.0), ("ing", -1.0), ("▁", -2.0), ("▁▁", -2.0)], unk_id=0),
            decoders.Metaspace(),
            unk_token="<unk>",
        ),
        ["<unk>", " walk", "ing", " ", "  "],
    ),
    "Unigram of words alone": (
        fast(models.Unigram([("<unk>", 0.0), ("▁w1", -1.0), ("▁w2", -1.0)], unk_id=0), decoders.Metaspace()),
        ["<unk>", "w1", "w2"],
    ),
    "byte fallback": (
        llama_like("▁walk", "ing", "▁", "▁▁", "a"),
        ["<s>", " walk", "ing", " ", "  ", "a"],
    ),
    "suffix at the end of a word": (
        fast(models.BPE(vocabulary("walk</w>", "walk", "ing</w>", "a"), [], end_of_word_suffix="</w>"),
             decoders.BPEDecoder(suffix="</w>")),
        ["walk ", "walk", "ing ", "a"],
    ),
    "words without decoder": (
        fast(models.WordLevel(vocabulary("<unk>", "w1", "w2"), unk_token="<unk>"), unk_token="<unk>"),
        ["<unk>", " w1", " w2"],
    ),
}  # fmt: skip
