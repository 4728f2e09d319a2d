"""Tokenizers as their models take them: rows for every id, positions for every token, types that are known."""

import pytest
from toy_hub import SENTENCES
from transformers import AutoTokenizer, BertConfig, DistilBertConfig, RobertaConfig

from modeling_magic import MagicConfig
from training.data.fitting import fit_tokenizer, knows_token_types, max_sequence_length, num_rows
from training.data.tokenizing import train_tokenizer


CHAIN = [["MHA4"], ["FFN"]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 20, vocab_size=120, model_max_length=512)


def config_of(**changes) -> MagicConfig:
    return MagicConfig(candidate_operators=CHAIN, hidden_size=32, intermediate_size=48, **changes)


def test_a_gap_in_the_ids_needs_rows(tokenizer, tmp_path):
    assert num_rows(tokenizer) == len(tokenizer)
    vocab = dict(tokenizer.get_vocab())
    last = max(vocab, key=lambda token: vocab[token])
    vocab[last] += 10
    assert num_rows(type(tokenizer)(vocab=vocab)) == len(tokenizer) + 10


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (config_of(max_position_embeddings=64), 64),
        (config_of(max_position_embeddings=66, padding_aware_positions=True, pad_token_id=1), 64),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (config_of(max_position_embeddings=1024), 512),
    ],
)
def test_inputs_are_cut_at_the_positions(tokenizer, tmp_path, config, longest):
    fit_tokenizer(tokenizer, config).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == longest
    assert max_sequence_length(config) in (longest, 1024)
    assert len(loaded("guitar " * 600, truncation=True).input_ids) == longest
    windows = loaded("guitar " * 600, truncation=True, stride=16, return_overflowing_tokens=True).input_ids
    assert len(windows) > 1
    assert max(map(len, windows)) == longest
    assert tokenizer.model_max_length == 512


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (config_of(), True),
        (config_of(type_vocab_size=1), False),
        (BertConfig(type_vocab_size=1), False),
        (DistilBertConfig(), True),
    ],
)
def test_a_model_of_one_type_gets_no_types(tokenizer, tmp_path, config, known):
    assert knows_token_types(config) == known
    fit_tokenizer(tokenizer, config).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ("token_type_ids" in loaded("a man", "a guitar")) == known
    assert "token_type_ids" in tokenizer("a man", "a guitar")
