"""Tokenizers: the trained one is BERT's, a loaded one can mask, and text is encoded as plain text."""

import logging
import random
from collections import Counter

import pytest
from datasets import Dataset
from toy_text import ROBERTA, WORDS, ids_of, make_texts, unigram_tokenizer, word_level_tokenizer
from transformers import AutoTokenizer, BertConfig, BertTokenizer

from training.data import tokenizing
from training.data.documents import text_pieces
from training.data.text import pack_blocks, prepare_data
from training.data.tokenizing import encode_text, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(60), vocab_size=200)


def test_same_texts_give_the_same_vocabulary():
    texts = make_texts(60)
    first, *others = (train_tokenizer(iter(texts), vocab_size=90).get_vocab() for _ in range(4))
    assert all(other == first for other in others)
    assert len(first) == 90


def test_vocabulary_begins_with_the_special_tokens_and_holds_the_frequent_words(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert [tokenizer.sep_token_id, tokenizer.mask_token_id] == [3, 4]
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert set(WORDS) <= set(vocabulary)
    # Words that were not seen are spelled.
    assert tokenizer.tokenize("Trainers!") == ["train", "##er", "##s", "[UNK]"]


def test_tokenizer_is_the_same_after_reloading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    text = ["The Model reads, models and unseen trainers.", "[MASK] of the layers"]
    assert type(reloaded) is BertTokenizer
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert reloaded.model_max_length == tokenizer.model_max_length == 512
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_case_and_accents_are_kept_on_demand():
    texts = ["Élan ÉLAN élan elan"] * 5
    lower = train_tokenizer(texts, 100, strip_accents=True)
    cased = train_tokenizer(texts, 100, lowercase=False)
    assert lower.tokenize("ÉLAN Elan") == ["elan", "elan"]
    assert cased.tokenize("ÉLAN élan") == ["ÉLAN", "élan"]


def test_rare_characters_give_way_to_frequent_ones():
    # 200 letters that come once, and before the letters of the frequent words in the order of Unicode.
    rare = "".join(map(chr, range(0x400, 0x400 + 200)))
    words = ["".join(chr(0xAC00 + ord(letter)) for letter in word) for word in WORDS]
    texts = [" ".join(words)] * 20 + [" ".join(rare)]
    trained = train_tokenizer(texts, vocab_size=400, lowercase=False, character_coverage=0.9)
    assert set(words) <= set(trained.get_vocab())
    # There is room for 128 characters.
    known = set(rare) & set(trained.get_vocab())
    assert len(known) == 128 - len(set("".join(words)))


def test_the_alphabet_covers_a_share_of_the_characters():
    rng = random.Random(0)
    # 3,000 Chinese characters, with frequencies as in Zipf's law.
    characters = [chr(0x4E00 + number) for number in range(3000)]
    weights = [1 / (number + 10) for number in range(3000)]
    texts = ["".join(rng.choices(characters, weights, k=500)) for _ in range(200)]
    counts = Counter("".join(texts))
    known = set(train_tokenizer(texts, vocab_size=8192).get_vocab()) & counts.keys()
    assert len(known) > 2000
    missing = sum(count for character, count in counts.items() if character not in known)
    assert 0 < missing <= 0.0005 * counts.total()
    # The next one fewer would not do.
    assert missing + min(counts[character] for character in known) > 0.0005 * counts.total()
    everything = train_tokenizer(texts, vocab_size=8192, character_coverage=1.0)
    assert counts.keys() <= everything.get_vocab().keys()
    with pytest.raises(ValueError, match=r"vocab_size is 1000 but .* or a character_coverage below 0\.9995"):
        train_tokenizer(texts, vocab_size=1000)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Die Bäume grünen schön", "bäume grünen schön"),
        ("हिन्दी में लिखी हुई बातें", "हिन्दी में लिखी हुई बातें"),
        ("한국어 문장", "한국어 문장"),
        (" ".join(["the naïve reader"] + ["the plain words of a longer English text"] * 20), "naive reader"),
    ],
)
def test_marks_are_kept_where_they_are_many(text, kept, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "training"):
        trained = train_tokenizer([text] * 5, 300)
    assert {*kept.split()} <= {word for word in trained.get_vocab() if not word.startswith("##")}
    assert ("the tokenizer keeps accents" in caplog.text) == (kept != "naive reader")
    trained.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(text) == trained.tokenize(text)
    assert train_tokenizer([text] * 5, 300, strip_accents=False).tokenize("naïve") != ["naive"]


def test_vocabulary_needs_room_for_the_characters():
    with pytest.raises(
        ValueError, match=r"vocab_size is 20 but the text needs \d+ pieces .*; choose a larger vocab_size"
    ):
        train_tokenizer(make_texts(10), vocab_size=20)


@pytest.mark.parametrize(
    ("absent", "message"),
    [({"mask_token"}, "no mask_token"), ({"pad_token", "mask_token"}, "no mask_token and no pad_token")],
)
def test_tokenizer_without_mask_or_pad_token_is_refused(tmp_path, absent, message):
    given_tokens = {name: token for name, token in ROBERTA.items() if name not in absent}
    word_level_tokenizer(**given_tokens).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"has {message}; set it, or use the tokenizer of an encoder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare_data("unread.txt", tokenizer=AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ["no/such/folder", "owner/no-such-model"])
def test_unknown_tokenizer_is_named(name):
    with pytest.raises(ValueError, match=f"the tokenizer '{name}' cannot be loaded: .*; give a model or a folder"):
        load_tokenizer(name)


def test_a_model_without_a_vocabulary_is_no_tokenizer(tmp_path):
    BertConfig(vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no vocabulary; give a model or folder that contains a tokenizer"):
        load_tokenizer(tmp_path)


def test_vocabulary_is_learnt_in_pieces(monkeypatch):
    texts = make_texts(60)
    whole = train_tokenizer([" ".join(texts)], vocab_size=90).get_vocab()
    sizes = []

    def recorded(text):
        for piece in text_pieces(text):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr("training.data.documents._PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenizing, "text_pieces", recorded)
    assert train_tokenizer([" ".join(texts)], vocab_size=90).get_vocab() == whole
    assert 50 < max(sizes) <= 100


# ---- Plain text ----


@pytest.mark.parametrize("kind", ["wordpiece", "words", "unigram"])
def test_special_tokens_that_are_spelled_in_text_are_text(tokenizer, kind):
    made = {"wordpiece": tokenizer, "words": word_level_tokenizer(**ROBERTA), "unigram": unigram_tokenizer()}[kind]
    spelled = " ".join(made.all_special_tokens)
    encoded = encode_text(made, [f"the {spelled} model", "the text"], ["a", spelled])
    assert "special_tokens_mask" not in encoded
    plain = made(["the model", "the text"], ["a", "b"])["input_ids"]
    special = set(made.all_special_ids) - {made.unk_token_id}
    for ids, expected in zip(encoded["input_ids"], plain, strict=True):
        assert [one for one in ids if one in special] == [one for one in expected if one in special]
    rows = ids_of(pack_blocks(Dataset.from_dict({"text": [f"{spelled} the model"] * 9}), made, 8))
    kept = [token for row in rows for token in row[1:-1]]
    assert special & set(kept) == {made.sep_token_id}
    assert kept.count(made.sep_token_id) <= 9
