"""WordNet's synsets and their hypernyms: concepts whose generality is known without asking a language model.

`read_wordnet` reads the database files of Debian's ``wordnet-base`` (format: wndb(5WN)). NLTK's reader cannot:
it asks for ``lexnames`` and ``index.sense`` as well, and opens no folder outside NLTK's own data.

Nouns and verbs have hypernyms, adjectives and adverbs none. So that any two synsets have a concept in common,
*artificial concepts* stand above the topmost ones: ``(verb)``, ``(adjective)`` and ``(adverb)`` above those of their
part of speech, ``(anything)`` above these and ``entity.n.01``. A single topmost synset needs nothing above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import torch

DEBIAN_FOLDER = Path("/usr/share/wordnet")
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""WordNet's letters and the endings of its files' names."""

ARTIFICIAL = {"n": "(noun)", "v": "(verb)", "a": "(adjective)", "s": "(adjective)", "r": "(adverb)"}
ANYTHING = "(anything)"
HYPERNYM_SYMBOLS = ("@", "@i")
"""A kind of, an instance of: Paris is under ``national_capital.n.01``."""

NO_CONCEPT = -1
MAX_PATHS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes:
        name: first lemma, part of speech and WordNet's number of the lemma's sense: ``dog.n.01``.
        lemmas: its words, the most usual first; underscores for spaces.
        gloss: its definition and examples.
        hypernyms: names of the synsets right above it.
    """

    name: str
    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...] = ()

    @property
    def part_of_speech(self) -> str:
        """``n``, ``v``, ``a``, ``s`` (an adjective's satellite) or ``r`` (an adverb)."""
        return self.name.rsplit(".", 2)[-2]


class WordNet:
    """Synsets and the hierarchy of their hypernyms.

    Concepts are numbered: first the synsets in the order given, then the artificial concepts. Questions about many
    concepts are asked and answered in tensors, on the CPU; ``NO_CONCEPT`` stands for none.

    Args:
        synsets: in any order.

    Raises:
        ValueError: if there is no synset, two have one name, a name or hypernym is invalid, or hypernyms form a cycle.
    """

    def __init__(self, synsets: Iterable[Synset]) -> None:
        self.synsets = tuple(synsets)
        if not self.synsets:
            raise ValueError("synsets is empty; give at least one, or read_wordnet() with another part of speech")
        self._names = [synset.name for synset in self.synsets]
        self._hypernyms = self._numbered_hypernyms()
        self._add_artificial_concepts()
        self._index = {name: i for i, name in enumerate(self._names)}
        self._ancestors, self._offsets = self._closure()

    def __len__(self) -> int:
        """Synsets, without the artificial concepts."""
        return len(self.synsets)

    def __repr__(self) -> str:
        return f"WordNet({len(self):,} synsets, {self.n_concepts - len(self)} artificial concepts)"

    @property
    def n_concepts(self) -> int:
        """Synsets and artificial concepts."""
        return len(self._names)

    @property
    def top(self) -> int:
        """The concept above all others."""
        return self._hypernyms.index([])

    def name(self, concept: int) -> str:
        """Name of a concept, for example ``animal.n.01``; a word in brackets where there is none."""
        return "(no concept)" if concept == NO_CONCEPT else self._names[concept]

    def index(self, name: str) -> int:
        """Number of the concept of that name.

        Raises:
            KeyError: if there is none.
        """
        return self._index[name]

    def hypernyms(self, concept: int) -> list[int]:
        """The concepts right above."""
        return list(self._hypernyms[concept])

    def ancestors(self, concept: int) -> list[int]:
        """The concept itself and all above it, ascending."""
        start, stop = self._offsets[concept : concept + 2].tolist()
        return self._ancestors[start:stop].tolist()

    def paths_up(self, concepts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ancestors of many concepts: (n,) which entry of ``concepts``, and (n,) what is above it or itself."""
        starts, lengths = self._offsets[concepts], self._offsets[concepts + 1] - self._offsets[concepts]
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        entries = torch.arange(len(concepts)).repeat_interleave(lengths)
        return entries, self._ancestors[starts.repeat_interleave(lengths) + within]

    @cached_property
    def n_under(self) -> torch.Tensor:
        """(n_concepts,) int64: synsets that are the concept or under it."""
        return torch.bincount(self._ancestors[: self._offsets[len(self)]], minlength=self.n_concepts)

    @cached_property
    def information(self) -> torch.Tensor:
        """(n_concepts,) float64, nats: −log of the share of the synsets that are the concept or under it.

        Strictly greater for any concept than for those above it, and 0 for the top.
        """
        return math.log(len(self)) - self.n_under.double().log()

    def is_under(self, concepts: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Whether each of ``concepts`` is strictly under the one of ``others`` beside it; False for no concept."""
        wanted = concepts * self.n_concepts + others
        at = torch.searchsorted(self._paths, wanted).clamp(max=len(self._paths) - 1)
        known = (concepts != NO_CONCEPT) & (others != NO_CONCEPT)
        return known & (self._paths[at] == wanted) & (concepts != others)

    def common_hypernyms(self, concepts: torch.Tensor) -> torch.Tensor:
        """The lowest concept over all of each row's concepts; a concept counts as over itself.

        The lowest is the one of highest information; among equals the one of lowest number.

        Args:
            concepts: (n_rows, k) int64; ``NO_CONCEPT`` entries are left out.

        Returns:
            (n_rows,) int64, ``NO_CONCEPT`` for rows that hold none.
        """
        longest = int(self._offsets.diff().max())
        rows_at_once = max(1, MAX_PATHS_AT_ONCE // (longest * max(1, concepts.shape[1])))
        return torch.cat([self._common_hypernyms(part) for part in concepts.split(rows_at_once)])

    def _common_hypernyms(self, concepts: torch.Tensor) -> torch.Tensor:
        n_rows = len(concepts)
        row, column = (concepts != NO_CONCEPT).nonzero(as_tuple=True)
        chosen = torch.full((n_rows,), NO_CONCEPT)
        if not len(row):
            return chosen
        entry, above = self.paths_up(concepts[row, column])
        pairs, n_covered = torch.unique(row[entry] * self.n_concepts + above, return_counts=True)
        row_of, candidate = pairs // self.n_concepts, pairs % self.n_concepts
        over_all = n_covered == torch.bincount(row, minlength=n_rows)[row_of]
        row_of, candidate = row_of[over_all], candidate[over_all]
        rank = self._information_rank[candidate]
        best = torch.full((n_rows,), -1).scatter_reduce(0, row_of, rank, "amax")
        is_best = rank == best[row_of]
        lowest = torch.full((n_rows,), self.n_concepts).scatter_reduce(0, row_of[is_best], candidate[is_best], "amin")
        return torch.where(lowest == self.n_concepts, NO_CONCEPT, lowest)

    def _numbered_hypernyms(self) -> list[list[int]]:
        number = {name: i for i, name in enumerate(self._names)}
        if len(number) < len(self._names):
            twice = next(name for i, name in enumerate(self._names) if number[name] != i)
            raise ValueError(f"synsets holds {twice!r} twice; every synset needs a name of its own")
        for synset in self.synsets:
            if synset.name.count(".") < 2 or synset.part_of_speech not in ARTIFICIAL or not synset.lemmas:
                raise ValueError(f"synset {synset.name!r} needs a lemma and a name like dog.n.01, with n, v, a, s or r")
            for above in synset.hypernyms:
                if above not in number:
                    raise ValueError(f"synset {synset.name!r} has the hypernym {above!r}, which is not among synsets")
        return [sorted({number[above] for above in synset.hypernyms}) for synset in self.synsets]

    def _add_artificial_concepts(self) -> None:
        topmost: dict[str, list[int]] = {}
        for i, synset in enumerate(self.synsets):
            if not self._hypernyms[i]:
                topmost.setdefault(ARTIFICIAL[synset.part_of_speech], []).append(i)
        tops = [self._under_one_concept(name, members) for name, members in topmost.items()]
        # A cycle may have left no top; the topological sort says so.
        if tops:
            self._under_one_concept(ANYTHING, tops)

    def _under_one_concept(self, name: str, members: list[int]) -> int:
        if len(members) == 1:
            return members[0]
        for member in members:
            self._hypernyms[member] = [len(self._names)]
        self._names.append(name)
        self._hypernyms.append([])
        return len(self._names) - 1

    def _closure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(n_paths,) ancestors of all concepts, themselves included, and (n_concepts + 1,) where each one's begin."""
        known: list[list[int]] = [[] for _ in self._names]
        try:
            for concept in TopologicalSorter(dict(enumerate(self._hypernyms))).static_order():
                known[concept] = sorted({concept}.union(*(known[above] for above in self._hypernyms[concept])))
        except CycleError as error:
            cycle = " → ".join(self._names[concept] for concept in error.args[1])
            raise ValueError(f"hypernyms form a cycle: {cycle}; leave one of them out") from None
        lengths = torch.tensor([0, *map(len, known)])
        return torch.tensor([above for path in known for above in path]), lengths.cumsum(0)

    @cached_property
    def _paths(self) -> torch.Tensor:
        """Every pair (concept, one above it or itself) as one number, ascending."""
        concepts = torch.arange(self.n_concepts).repeat_interleave(self._offsets.diff())
        return concepts * self.n_concepts + self._ancestors

    @cached_property
    def _information_rank(self) -> torch.Tensor:
        return torch.unique(self.information, return_inverse=True)[1]


def read_wordnet(folder: str | Path = DEBIAN_FOLDER, parts_of_speech: Sequence[str] = "nvar") -> WordNet:
    """Read the database files of WordNet: ``index.noun``, ``data.noun`` and so on (wndb(5WN)).

    Args:
        folder: where they are; Debian's ``wordnet-base`` puts them there by default.
        parts_of_speech: letters of those wanted: n(oun), v(erb), a(djective), (adve)r(b).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a letter is unknown or a line is not of that format.
    """
    if unknown := [letter for letter in parts_of_speech if letter not in PARTS_OF_SPEECH]:
        raise ValueError(f"parts_of_speech={parts_of_speech!r} holds {unknown[0]!r}; the letters are n, v, a and r")
    parsed = [entry for letter in parts_of_speech for entry in _read_part(Path(folder), letter)]
    name_of = {key: synset.name for key, synset, _ in parsed}
    return WordNet(
        Synset(synset.name, synset.lemmas, synset.gloss, tuple(name_of.get(key, " ".join(key)) for key in above))
        for _, synset, above in parsed
    )


_Key = tuple[str, str]  # part of speech and offset


def _read_part(folder: Path, letter: str) -> Iterator[tuple[_Key, Synset, list[_Key]]]:
    """Synsets of one part of speech without their hypernyms, and beside each where its hypernyms stand."""
    ending = PARTS_OF_SPEECH[letter]
    sense_of = {}
    for line in _lines(folder / f"index.{ending}"):
        lemma, *_ = fields = line.split()
        offsets = fields[len(fields) - int(fields[2]) :]
        sense_of.update({(lemma, offset): sense for sense, offset in enumerate(offsets, start=1)})
    path = folder / f"data.{ending}"
    for line in _lines(path):
        head, _, gloss = line.partition(" | ")
        try:
            offset, _, kind, n_lemmas, *fields = head.split()
            after_lemmas = 2 * int(n_lemmas, 16)
            # Adjectives carry their position as a mark: galore(ip).
            lemmas = tuple(lemma.partition("(")[0] for lemma in fields[:after_lemmas:2])
            n_pointers = int(fields[after_lemmas])
            pointers = fields[after_lemmas + 1 :][: 4 * n_pointers]
            symbols, offsets, parts = pointers[::4], pointers[1::4], pointers[2::4]
            above = [
                (part, to)
                for symbol, to, part in zip(symbols, offsets, parts, strict=True)
                if symbol in HYPERNYM_SYMBOLS
            ]
            first = lemmas[0].lower()
            name = f"{first}.{kind}.{sense_of[first, offset]:02d}"
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path}: cannot read the line {line[:60]!r} ({error!r}); see wndb(5WN)") from error
        yield (letter, offset), Synset(name, lemmas, gloss.strip()), above


def _lines(path: Path) -> Iterator[str]:
    """Lines of a database file after its licence, which is indented."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install WordNet (on Debian and Ubuntu: apt-get install wordnet-base), "
            "or give the folder of its database files"
        )
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith("  "))
