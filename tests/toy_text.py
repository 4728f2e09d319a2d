"""Words, texts and tokenizers for tests of the text room."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


WORDS = (
    "the a of to and in is model models reads reading reader text texts learns learning layer layers search searching "
    "searched network children child weights weight trained training trains batch batches attention hidden states"
).split()


def make_texts(count, num_words=40, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=num_words)).capitalize() + "." for _ in range(count)]


def ids_of(blocks):
    return [block["input_ids"] for block in blocks]


def word_level_tokenizer(**special):
    vocabulary = {word: n for n, word in enumerate([*special.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="of"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def unigram_tokenizer():
    """As XLM-R's, whose special tokens are pieces of the vocabulary too."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0), ("\u2581", -2.0)]
    letters = [(letter, -5.0) for letter in "<>/abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram([*pieces, *letters], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA)
