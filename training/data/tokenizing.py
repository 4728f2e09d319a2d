"""Tokenizers: trained, loaded, applied to plain text, and identified by a hash."""

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BatchEncoding, BertTokenizer, PreTrainedTokenizerBase

from ..pretrained import pretrained_tokenizer
from .documents import text_pieces


logger = logging.getLogger(__name__)

_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# The largest share of letters that stripping may change: a few in ten thousand in English, one in sixty in German.
_MOST_STRIPPED = 0.005


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8192,
    lowercase: bool = True,
    model_max_length: int = 512,
    *,
    strip_accents: bool | None = None,
    character_coverage: float = 0.9995,
) -> BertTokenizer:
    """Returns a WordPiece tokenizer like BERT's, trained on the texts; the same texts give the same vocabulary.

    Args:
        texts: the texts to train on.
        vocab_size: an upper bound; little text gives fewer pieces. [PAD], [UNK], [CLS], [SEP], [MASK] are 0 to 4.
        lowercase: whether to lowercase the text.
        model_max_length: the longest input that the model will accept.
        strip_accents: whether to strip the marks of letters: accents, and the vowel signs of scripts such as
            Devanagari. `None` strips them if `lowercase` is set and at most 0.5% of the letters change.
        character_coverage: the share of the text's characters that the alphabet covers. The alphabet has the most
            common characters, at least a sixteenth of `vocab_size`, bounded to 128 to 1,000. A word with any other
            character becomes [UNK].

    Raises:
        ValueError: `vocab_size` is too small for the single characters.
    """
    texts = list(texts)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if strip_accents is None:
        strip_accents = lowercase and _are_accents_rare(counts)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # `None` if both are equal, as in BERT's own tokenizers.
    as_bert = None if strip_accents == lowercase else strip_accents
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=as_bert)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    at_least = min(1000, max(128, vocab_size // 16))
    alphabet, continuations = _alphabet(
        counts, trained.normalizer, trained.pre_tokenizer, at_least, character_coverage
    )
    reserved = [*_SPECIAL_TOKENS, *continuations]
    if len(reserved) + len(alphabet) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size} but the text needs {len(reserved) + len(alphabet)} pieces for its single "
            f"characters; choose a larger vocab_size, or a character_coverage below {character_coverage}"
        )
    # By default, the trainer numbers the pieces ##x in the order of a hash table, which differs between processes, and
    # breaks ties by these numbers, so the vocabulary would differ between runs. Reserving them fixes their numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator((piece for text in texts for piece in text_pieces(text)), trainer)
    return BertTokenizer(
        vocab=trained.get_vocab(), do_lower_case=lowercase, strip_accents=as_bert, model_max_length=model_max_length
    )


def _are_accents_rare(counts: Mapping[str, int]) -> bool:
    """Whether stripping the marks of letters changes almost nothing; logs a message if it changes more."""
    num_letters = num_changed = 0
    for character, count in counts.items():
        if unicodedata.category(character)[0] in "LM":
            num_letters += count
            num_changed += count * (_without_marks(character) != character)
    share = num_changed / max(1, num_letters)
    if share > _MOST_STRIPPED:
        logger.info(
            f"the tokenizer keeps accents and other marks, because stripping would change {share:.1%} of the letters "
            f"of the text; to change this, set strip_accents"
        )
    return share <= _MOST_STRIPPED


def _without_marks(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    return "".join(part for part in parts if unicodedata.category(part) != "Mn")


def _alphabet(
    counts: Mapping[str, int],
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    at_least: int,
    coverage: float,
) -> tuple[list[str], list[str]]:
    """The most common characters that cover a share of the text, and as ##x those that can occur inside a word."""
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in normalizer.normalize_str(character).strip():
            normal[part] += count
    by_count = sorted(normal, key=lambda part: (-normal[part], part))
    # The number of most common characters needed to reach the coverage.
    num_covering = np.searchsorted(np.cumsum([normal[part] for part in by_count]), coverage * normal.total()) + 1
    alphabet = sorted(by_count[: max(at_least, int(num_covering))])
    # Punctuation and Chinese characters are words of their own.
    pieces = {part: pre_tokenizer.pre_tokenize_str(normalizer.normalize_str("a" + part)) for part in alphabet}
    return alphabet, [f"##{part}" for part in alphabet if len(pieces[part]) == 1]


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder or of the Hub, of any kind, if it is usable for masked batches.

    Raises:
        ValueError: there is no tokenizer, or it has no mask or pad token.
    """
    try:
        tokenizer = pretrained_tokenizer(name_or_path, "the tokenizer")
    except ValueError as error:
        raise ValueError(f"{error}; give a model or a folder that contains a tokenizer") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers returns such a tokenizer for a folder with a model but no vocabulary.
        raise ValueError(f"{str(name_or_path)!r} has no vocabulary; give a model or folder that contains a tokenizer")
    require_tokens(tokenizer, "mask_token", "pad_token")
    return tokenizer


def require_tokens(tokenizer: PreTrainedTokenizerBase, *names: str) -> None:
    """Raises a ValueError if a tokenizer lacks one of these tokens, such as "mask_token"."""
    missing = [name for name in names if getattr(tokenizer, name) is None]
    if missing:
        raise ValueError(
            f"{type(tokenizer).__name__} has no {' and no '.join(missing)}; set it, or use the tokenizer of an "
            f"encoder such as BERT or RoBERTa"
        )


def encode_text(tokenizer: PreTrainedTokenizerBase, *texts: Sequence[str], **arguments: Any) -> BatchEncoding:
    """Returns the encoding of texts or pairs as plain text: "[MASK]" in a text does not become a mask token.

    The spelling of a special token is cut into pieces like other text. Some vocabularies contain the spelling as a
    piece, such as "<s>" in those of SentencePiece; it becomes the unknown token then.

    Args:
        tokenizer: a tokenizer of any kind.
        texts: the first texts and, for pairs, the second texts.
        arguments: further arguments of the tokenizer's call.
    """
    spelled = _spelled_ids(tokenizer)
    encoding = tokenizer(*texts, split_special_tokens=True, return_special_tokens_mask=bool(spelled), **arguments)
    if spelled:
        for ids, added in zip(encoding["input_ids"], encoding.pop("special_tokens_mask"), strict=True):
            for place, token_id in enumerate(ids):
                if token_id in spelled and not added[place]:
                    ids[place] = tokenizer.unk_token_id
    return encoding


def _spelled_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens, except the unknown one, that their spelling in a text is encoded as."""
    encoding = tokenizer(tokenizer.all_special_tokens, add_special_tokens=False, split_special_tokens=True)
    found = {token_id for ids in encoding["input_ids"] for token_id in ids}
    return found & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def share_unknown(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> float:
    """Returns the share of unknown tokens in rows of ids, not counting the tokens that frame a row.

    Args:
        rows: the rows, each framed as a single text.
        tokenizer: the tokenizer of the rows; without an unknown token, the share is 0.
    """
    num_added = tokenizer.num_special_tokens_to_add(pair=False)
    num_tokens = num_unknown = 0
    for row in rows:
        num_tokens += len(row) - num_added
        num_unknown += 0 if tokenizer.unk_token_id is None else row.count(tokenizer.unk_token_id)
    return num_unknown / max(1, num_tokens)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of everything that determines how a tokenizer splits text."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Arguments of the last call, not properties of the tokenizer.
        state |= {"padding": None, "truncation": None}
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    return sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
