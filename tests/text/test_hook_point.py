"""What is asked of a model before a command relies on it."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from sae_lens_hsae.text.hook_point import check_causal


def test_a_model_that_reads_in_both_directions_is_no_causal_one():
    torch.manual_seed(0)
    bert = BertLMHeadModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
    ).eval()
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5)
    ).eval()
    tokens = torch.tensor([[7, 8, 9], [1, 2, 3]])
    check_causal(lambda ids: gpt2(ids).logits, tokens)
    with pytest.raises(ValueError, match=r"reads texts in both directions.* this needs a causal model"):
        check_causal(lambda ids: bert(ids).logits, tokens)
    gpt2.bfloat16()
    check_causal(lambda ids: gpt2(ids).logits, tokens)
