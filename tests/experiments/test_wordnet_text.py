"""Glosses as rows of tokens with their entry words marked."""

import math

import pytest
import torch
from wordnet_helpers import word_tokenizer

from experiments.wordnet.text import NO_SYNSET, entry_text, gloss_activations, gloss_rows


@pytest.mark.parametrize("context_size", [16, 17, 40, 1000])
def test_every_gloss_stands_whole_in_one_row_with_its_entry_word_marked(tiny, context_size):
    tokenizer = word_tokenizer(tiny)
    rows = gloss_rows(tiny, tokenizer, context_size, separator_token=0)
    assert rows.tokens.shape[1] == context_size
    assert len(rows) == len(rows.synset) == len(rows.is_entry_word)
    for number, synset in enumerate(tiny.synsets):
        row, column = (rows.synset == number).nonzero(as_tuple=True)
        assert len(row.unique()) == 1
        assert (column.diff() == 1).all()
        assert tokenizer.decode(rows.tokens[row, column]) == tokenizer.decode(tokenizer.encode(entry_text(synset)[1]))
        assert rows.is_entry_word[row, column].tolist() == [True] + [False] * (len(row) - 1)
        end = column[-1] + 1
        assert end == context_size or rows.tokens[row[0], end] == 0
    assert not rows.is_entry_word[rows.synset == NO_SYNSET].any()


def test_activations_keep_their_labels(tiny):
    rows = gloss_rows(tiny, word_tokenizer(tiny), 20, separator_token=0)
    # As activation the token and its place in the row.
    place = torch.arange(20.0).expand(len(rows), 20)

    def activations_of(tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens.float(), place[: len(tokens)]], dim=-1)

    batches = list(gloss_activations(rows, activations_of, rows_at_once=3))
    assert len(batches) == math.ceil(len(rows) / 3)
    x, synset, is_entry_word = (torch.cat(parts) for parts in zip(*batches, strict=True))
    kept = rows.synset != NO_SYNSET
    assert torch.equal(x, torch.stack([rows.tokens.float(), place], dim=-1)[kept])
    assert torch.equal(synset, rows.synset[kept])
    assert torch.equal(is_entry_word, rows.is_entry_word[kept])
    with pytest.raises(ValueError, match=r"gave the shape \(3, 10, 2\) for tokens of shape \(3, 20\)"):
        next(gloss_activations(rows, lambda tokens: activations_of(tokens)[:, :10], rows_at_once=3))
