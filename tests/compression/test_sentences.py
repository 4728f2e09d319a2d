"""Sentences to distil on: how text is cut, drawn, held out and tokenised, and batches of like lengths."""

import csv
import gzip
import json
import lzma
import random
import textwrap
import time
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, disable_progress_bars
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_packages import installer
from transformers import BertTokenizer, PreTrainedTokenizerFast

from training.compression import sentences as sentences_module
from training.compression.sentences import collate, length_batches, read_sentences, split_sentences
from training.data import docstrings
from training.data.tokenizing import train_tokenizer


disable_progress_bars()

WORDS = (
    "the a of to and in is model models reads reading reader learns learning layer layers search searching searched "
    "network networks children child weights weight trained training trains batch batches attention hidden states"
).split()


def make_sentences(count, seed=0, num_words=(4, 20)):
    rng = random.Random(seed)
    drawn = {}
    while len(drawn) < count:
        words = " ".join(rng.choices(WORDS, k=rng.randint(*num_words)))
        drawn[f"{words.capitalize()}."] = None
    return list(drawn)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_sentences(300), vocab_size=200, model_max_length=64)


def decoded(rows, tokenizer):
    return [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def as_decoded(sentences, tokenizer):
    return [tokenizer.decode(tokenizer(one)["input_ids"], skip_special_tokens=True) for one in sentences]


def everything(sentences, tokenizer):
    return sorted(decoded(sentences.train, tokenizer) + decoded(sentences.validation, tokenizer))


# ---- Sentences ----

FILLING = "Words that fill a line " * 12


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  Short lines. Stay  whole!\t", ["Short lines. Stay whole!"]),
        ("   ", []),
        (FILLING + "end. Next one here.", [FILLING + "end.", "Next one here."]),
        (FILLING + 'he said "end." Next one!  Is it? (Yes.) 12 more.', None),
        (FILLING + "of Mr. Smith and J. Doe, e.g. those in St. Ives etc. and so on.", [...]),
        ("\u8fd9" * 300 + "\u3002\u4e0b\u4e00\u53e5\u3002", ["\u8fd9" * 300 + "\u3002", "\u4e0b\u4e00\u53e5\u3002"]),
    ],
)
def test_lines_are_cut_where_sentences_end(line, expected):
    if expected is None:
        expected = [FILLING + 'he said "end."', "Next one!", "Is it?", "(Yes.)", "12 more."]
    assert split_sentences(line) == ([line] if expected == [...] else expected)


def test_what_has_no_sentence_end_is_cut_between_words():
    words = [f"w{number}" for number in range(1000)]
    parts = split_sentences(" ".join(words))
    assert " ".join(parts).split() == words
    # As full as they can be.
    assert parts == textwrap.wrap(" ".join(words), 1000)
    assert split_sentences("x" * 2500) == ["x" * 1000, "x" * 1000, "x" * 500]


@given(st.text(st.sampled_from("aB .!?\"'()\u3002\n"), max_size=1500).map(lambda drawn: drawn * 3))
def test_cutting_loses_nothing_but_white_space(line):
    assert "".join("".join(split_sentences(line)).split()) == "".join(line.split())


@pytest.mark.parametrize("width", [40, 72, 100])
def test_paragraphs_that_an_editor_has_broken_are_put_together(width):
    paragraphs = [" ".join(make_sentences(12, seed)) for seed in range(20)]
    wrapped = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
    assert list(sentences_module._lines(wrapped)) == paragraphs


def test_lines_that_end_by_themselves_stay_lines():
    lines = make_sentences(200)
    assert list(sentences_module._lines("\n".join(lines))) == lines
    assert list(
        sentences_module._lines("\ufeff".join(["", "One line\r\n  and another  \r\n\r\n \t\r\nA third."]))
    ) == [
        "\ufeffOne line",
        "and another",
        "A third.",
    ]


@pytest.mark.parametrize(
    ("sentence", "is_kept"),
    [
        ("One two three", True),
        ("One, two", False),
        ("- - - - -", False),
        ("extraordinarily", False),
        ("\u4e09\u500b\u5b57", True),
        ("\u4e8c\u5b57", False),
        ("Une \u00e9t\u00e9 chaud", True),
    ],
)
def test_a_sentence_has_three_words(sentence, is_kept):
    assert (sentences_module._THREE_WORDS.search(sentence) is not None) == is_kept


# ---- Pieces ----


@given(
    content=st.text(st.sampled_from("ab \n\u00e9\u8fd9"), max_size=400),
    piece=st.sampled_from([8, 16, 64]),
)
def test_pieces_make_the_whole_file(tmp_path_factory, content, piece):
    path = tmp_path_factory.mktemp("pieces") / "text.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences_module, "_PIECE_BYTES", piece)
        starts = range(0, path.stat().st_size, piece)
        assert "".join(sentences_module._read_piece(path, start) for start in starts) == content


def test_pieces_end_with_lines_where_lines_are_shorter(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences_module, "_PIECE_BYTES", 200)
    lines = make_sentences(100)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    read = list(sentences_module._text_lines(path, seed=0))
    assert sorted(read) == sorted(lines)
    assert read != lines


def test_huge_text_is_read_in_part_and_from_all_over(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sentences_module, "_PIECE_BYTES", 500)
    pieces = []
    read_piece = sentences_module._read_piece
    monkeypatch.setattr(
        sentences_module, "_read_piece", lambda path, start: pieces.append(start) or read_piece(path, start)
    )
    lines = make_sentences(8000)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    sentences = read_sentences([path], tokenizer, 64, num_sentences=150, num_validation=50)
    assert len(sentences.train) == 150
    assert len(sentences.validation) == 50
    # 4 x 200 of 8,000 lines.
    assert 0.08 < 500 * len(pieces) / path.stat().st_size < 0.13
    assert "read pieces drawn at random" in sentences.notes[0]
    places = {line: number for number, line in enumerate(as_decoded(lines, tokenizer))}
    quarters = Counter(places[line] // 2000 for line in decoded(sentences.train, tokenizer))
    assert min(quarters[number] for number in range(4)) > 15


def test_files_have_their_turns_by_their_size(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sentences_module, "_PIECE_BYTES", 500)
    lines = make_sentences(10_000)
    (tmp_path / "small.txt").write_text("\n".join(lines[:2000]))
    (tmp_path / "large.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[2000:]))
    paths = [tmp_path / "small.txt", tmp_path / "large.jsonl"]
    sentences = read_sentences(paths, tokenizer, 64, num_sentences=600, num_validation=100)
    small = set(as_decoded(lines[:2000], tokenizer))
    share = sum(line in small for line in everything(sentences, tokenizer)) / 700
    # A fifth of the lines, and of the bytes a little less, since JSON adds some to each line.
    assert 0.1 < share < 0.25


# ---- Sources ----


def write_source(kind, folder, sentences):
    """Writes sentences in one of the forms that are read, and returns its path."""
    rows = [{"n": number, "text": sentence} for number, sentence in enumerate(sentences)]
    path = folder / f"source.{kind}"
    if kind == "txt":
        path.write_text("\n".join(sentences))
    elif kind == "paragraphs":
        path = folder / "paragraphs.txt"
        blocks = ["\r\n".join(sentences[start : start + 7]) for start in range(0, len(sentences), 7)]
        path.write_bytes(("\ufeff" + "\r\n \r\n\r\n".join(blocks)).encode())
    elif kind == "documents":
        path = folder / "documents.txt"
        # More than 256 characters a line.
        path.write_text("\n".join(" ".join(sentences[start : start + 30]) for start in range(0, len(sentences), 30)))
    elif kind == "folder":
        for number in range(0, len(sentences), 50):
            file = folder / "source.folder" / str(number % 100) / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(sentences[number : number + 50]))
        (path / "notes.md").write_text("This is not among what is read.")
        (path / "meta.json").write_text('{"title": "none of the text"}')
    elif kind in ("json", "jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "tsv":
        path.write_text("n\ttext\n" + "".join(f"{row['n']}\t{row['text']}\r\n" for row in rows))
    elif kind in ("txt.gz", "jsonl.xz"):
        packer = {"gz": gzip, "xz": lzma}[kind.split(".")[1]]
        lines = sentences if kind == "txt.gz" else [json.dumps(row) for row in rows]
        path.write_bytes(packer.compress("\n".join(lines).encode()))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "shards":
        path.mkdir()
        for number in (0, 1):
            Dataset.from_list(rows[number::2]).to_parquet(path / f"{number}.parquet")
    elif kind == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif kind == "saved-dict":
        DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:3])}).save_to_disk(path)
    return path


KINDS = "txt paragraphs documents folder json jsonl csv tsv txt.gz jsonl.xz parquet shards saved saved-dict".split()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_its_sentences(tmp_path, tokenizer, kind):
    sentences = make_sentences(310, num_words=(4, 30))
    path = write_source(kind, tmp_path, sentences)
    read = read_sentences([str(path)], tokenizer, 64, num_validation=40)
    assert everything(read, tokenizer) == sorted(as_decoded(sentences, tokenizer))
    assert len(read.validation) == 40
    assert "read all of it" in read.notes[0]


def test_docstrings_stand_for_no_path(tmp_path, monkeypatch, tokenizer):
    installer(tmp_path, monkeypatch)(
        {"a.py": "".join(f'"""This is the {word} that stands for the {one}."""\n' for word in WORDS for one in WORDS)}
    )
    monkeypatch.setattr(docstrings, "DOCSTRING_PACKAGES", ("prosaic",))
    read = read_sentences([], tokenizer, 64, num_sentences=100)
    assert all(line.startswith("this is the") for line in decoded(read.train, tokenizer))
    assert read.notes[0].startswith("text: docstrings, 1 source; read ")
    assert read_sentences(["docstrings"], tokenizer, 64, num_sentences=100).fingerprint == read.fingerprint


def test_another_column_is_read_by_its_name(tmp_path, tokenizer):
    sentences = make_sentences(120)
    path = tmp_path / "rows.tsv"
    path.write_text("label\tbody\n" + "".join(f"1\t{sentence}\n" for sentence in sentences) + "a row without\n")
    read = read_sentences([path], tokenizer, 64, text_column="body")
    assert everything(read, tokenizer) == sorted(as_decoded(sentences, tokenizer))


@pytest.mark.parametrize("kind", ["txt.gz", "jsonl"])
def test_a_huge_document_is_taken_apart_in_pieces(tmp_path, tokenizer, monkeypatch, kind):
    sizes = []
    split = sentences_module.split_sentences
    monkeypatch.setattr(sentences_module, "split_sentences", lambda line: sizes.append(len(line)) or split(line))
    sentences = make_sentences(6000)
    read = read_sentences([write_source(kind, tmp_path, [" ".join(sentences)])], tokenizer, 64, num_sentences=None)
    assert 2**15 < max(sizes) <= 2**16
    # What a cut goes through may differ.
    assert len(set(everything(read, tokenizer)) & set(as_decoded(sentences, tokenizer))) > 5980


# ---- Rows ----


def test_special_tokens_that_are_spelled_in_text_are_text(tmp_path, tokenizer):
    lines = [f"{one} [MASK] [SEP] {one}" for one in make_sentences(120)]
    read = read_sentences([write_source("txt", tmp_path, lines)], tokenizer, 64)
    for row in [*read.train, *read.validation]:
        inside = row["input_ids"][1:-1]
        assert not {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id} & set(inside)


def test_rows_are_what_the_tokenizer_gives(tmp_path, tokenizer):
    sentences = make_sentences(200, num_words=(4, 40))
    read = read_sentences([write_source("txt", tmp_path, sentences)], tokenizer, 16, num_validation=20)
    expected = {tuple(tokenizer(one, truncation=True, max_length=16)["input_ids"]) for one in sentences}
    rows = [*read.train, *read.validation]
    assert {tuple(row["input_ids"]) for row in rows} == expected
    assert all(row.keys() == {"input_ids", "length"} and row["length"] == len(row["input_ids"]) for row in rows)
    # Sentences that differ beyond the cut alone are one.
    assert len(rows) == len(expected)


def test_types_are_given_where_one_is_not_zero(tmp_path):
    words = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", ".", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # As XLNet's, whose last token is of another type.
    backend.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", special_tokens=[("[SEP]", 2), ("[CLS]", 1)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 64}
    typed = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )
    path = write_source("txt", tmp_path, [one.lower() for one in make_sentences(120)])
    read = read_sentences([path], typed, 64)
    assert all(row["token_type_ids"] == [0] * (row["length"] - 1) + [2] for row in read.train)
    untyped = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids"], **names)
    assert read_sentences([path], untyped, 64).train.column_names == ["input_ids", "length"]


def test_each_sentence_is_kept_once_and_on_one_side(tmp_path, tokenizer):
    sentences = make_sentences(300)
    # The tokenizer drops case, so that the last copies differ in their text alone.
    copies = [*sentences, *sentences[:50], *(one.upper() for one in sentences[:30]), "Too short.", "*** *** ***"]
    read = read_sentences([write_source("txt", tmp_path, copies)], tokenizer, 64, num_validation=50)
    assert everything(read, tokenizer) == sorted(as_decoded(sentences, tokenizer))
    assert "250 sentences to train on and 50 held out; dropped 50 duplicates and 2 sentences of fewer" in read.notes[1]
    lengths = [*read.train["length"], *read.validation["length"]]
    assert f"{np.mean(lengths):.1f} tokens per sentence on average" in read.notes[2]


def test_the_held_out_sentences_are_drawn_first(tmp_path, tokenizer):
    path = write_source("txt", tmp_path, make_sentences(500))
    few, many = (
        read_sentences([path], tokenizer, 64, num_sentences=number, num_validation=30) for number in (100, None)
    )
    assert few.validation["input_ids"][:] == many.validation["input_ids"][:]
    assert few.train["input_ids"][:] == many.train["input_ids"][:100]
    assert (len(few.train), len(many.train)) == (100, 470)


def test_at_most_a_fifth_is_held_out(tmp_path, tokenizer):
    read = read_sentences([write_source("txt", tmp_path, make_sentences(150))], tokenizer, 64)
    assert (len(read.train), len(read.validation)) == (120, 30)


def test_the_seed_decides(tmp_path, tokenizer):
    path = write_source("txt", tmp_path, make_sentences(300))
    first, again, other = (read_sentences([path], tokenizer, 64, num_validation=50, seed=seed) for seed in (0, 0, 1))
    assert first.train["input_ids"][:] == again.train["input_ids"][:]
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert set(decoded(first.validation, tokenizer)) != set(decoded(other.validation, tokenizer))


def test_fingerprint_tells_text_tokenizer_and_settings_apart(tmp_path, tokenizer):
    sentences = make_sentences(300)
    path = write_source("txt", tmp_path, sentences)
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*sentences[1:], "The child reads another sentence."]))
    cased = train_tokenizer(make_sentences(300), vocab_size=200, lowercase=False, model_max_length=64)
    prints = [
        read_sentences([path], tokenizer, 64).fingerprint,
        read_sentences([other], tokenizer, 64).fingerprint,
        read_sentences([path], cased, 64).fingerprint,
        read_sentences([path], tokenizer, 32).fingerprint,
        read_sentences([path], tokenizer, 64, num_validation=10).fingerprint,
    ]
    assert len(set(prints)) == len(prints)


def test_little_text_is_warned_of(tmp_path, tokenizer):
    path = write_source("txt", tmp_path, make_sentences(999))
    (warning,) = read_sentences([path], tokenizer, 64).warnings
    assert "only 999 different sentences; with fewer than 1,000" in warning
    path.write_text(path.read_text() + "\nThe reader searches one network more.")
    assert read_sentences([path], tokenizer, 64).warnings == ()


# ---- What is refused ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"there is no file or folder '.*missing\.txt'; check the path"),
        ("empty", "folder", r"folder .*empty contains no text; known suffixes: \.txt, \.tsv"),
        ("blank.txt", " \n\n", r"there is no text in .*blank\.txt; name files or folders of text"),
        ("paper.pdf", "text", r"paper\.pdf is not of a readable kind; known suffixes: \.txt, \.tsv"),
        ("latin.txt", "caf\xe9 au lait".encode("latin1"), r"latin\.txt is not UTF-8 \(.*byte 3\); convert it"),
        ("wide.txt", "Three words here".encode("utf-16-le"), r"wide\.txt is not UTF-8 \(it has zero bytes.*\); conv"),
        ("rows.csv", "title,body\na,b\n", r"rows\.csv' has no column 'text'; choose one of: title, body"),
        ("rows.tsv", "title\tbody\na\tb\n", r"rows\.tsv has no column 'text'; choose one of: title, body"),
        ("latin.tsv", "text\ncaf\xe9 au lait\n".encode("latin1"), r"latin\.tsv is not UTF-8 \(.*\); convert it"),
        ("broken.parquet", "text", r"cannot read data set '.*broken\.parquet' \(.*\); check its name or the file"),
        ("few.txt", "\n".join(make_sentences(99)), r"few\.txt: 99 different sentences .*; at least 100 are needed"),
    ],
)
def test_sources_that_do_not_serve_are_named(tmp_path, tokenizer, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_sentences([path], tokenizer, 64)
    assert "\n" not in str(error.value)


def test_a_file_that_breaks_off_is_named(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    # More than what is read of a file to learn its columns.
    filler = "x" * 20_000
    rows = "".join(json.dumps({"text": line, "filler": filler}) + "\n" for line in make_sentences(1000))
    path.write_text(rows + '{"text": "The last ro')
    with pytest.raises(ValueError, match=r"cannot read .*rows\.jsonl \(.*\); repair it") as error:
        read_sentences([path], tokenizer, 64)
    assert "\n" not in str(error.value)


def test_a_saved_data_set_without_the_split_or_the_column_is_named(tmp_path, tokenizer):
    rows = Dataset.from_dict({"body": make_sentences(10)})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="one has no column 'text'; choose one of: body"):
        read_sentences([tmp_path / "one"], tokenizer, 64)
    with pytest.raises(ValueError, match="two has no split 'train'; give the folder of a split: a, b"):
        read_sentences([tmp_path / "two"], tokenizer, 64)


def test_text_that_the_tokenizer_does_not_know_is_refused(tmp_path, tokenizer):
    rng = random.Random(0)
    # Two words of five are of letters that the tokenizer has not seen.
    lines = [f"{' '.join(rng.sample(WORDS, 3))} \u0436{number} \u0436" for number in range(200)]
    path = write_source("txt", tmp_path, lines)
    with pytest.raises(
        ValueError, match=r"4\d% of the tokens of .* are unknown to the tokenizer; the share must be below 33%"
    ):
        read_sentences([path], tokenizer, 64)
    path = write_source("txt", tmp_path, [f"{line} {' '.join(rng.sample(WORDS, 4))}" for line in lines])
    assert "the limit of 64; 22.22% of the tokens are unknown" in read_sentences([path], tokenizer, 64).notes[2]


def test_text_of_another_script_is_not_called_too_little(tmp_path, tokenizer):
    path = write_source(
        "txt", tmp_path, [" ".join(["\u0436"] * (3 + number % 9)) + f" \u0436{number}" for number in range(500)]
    )
    with pytest.raises(ValueError, match=r"100% of the tokens of .* are unknown to the tokenizer"):
        read_sentences([path], tokenizer, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 2}, "max_length is 2; it must be between 3, which leaves one token for the text, and 64"),
        ({"max_length": 65}, "max_length is 65; it must be between 3, .* and 64, the largest number of tokens that"),
        ({"num_sentences": 99}, "num_sentences is 99; it must be at least 100, or None for all"),
        ({"num_validation": 0}, "num_validation is 0; it must be at least 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused_before_anything_is_read(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_sentences(["missing.txt"], tokenizer, **{"max_length": 64, **arguments})


# ---- Batches ----


@given(
    lengths=st.lists(st.integers(1, 60), max_size=400),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_every_row_is_in_one_batch(lengths, batch_size, seed):
    batches = length_batches(lengths, batch_size, seed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)
    assert batches == length_batches(np.array(lengths, dtype=int), batch_size, seed)


def test_batches_are_of_like_lengths_in_random_order():
    lengths = np.random.default_rng(0).integers(5, 65, 6400)
    batches = length_batches(lengths, 32, seed=1)
    assert len(batches) == 200
    spreads = [np.ptp(lengths[batch]) for batch in batches]
    # 1,600 rows of 60 lengths are sorted together: 27 of each, so a batch of 32 spans about two.
    assert np.mean(spreads) < 2
    longest = np.array([lengths[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2
    # Rows from all over stand together.
    assert np.ptp(batches[0]) > 1000
    assert length_batches(lengths, 32, seed=2) != batches


def test_batches_of_none_are_refused():
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        length_batches([1, 2], 0, seed=0)


@pytest.mark.parametrize("pad_to", [None, 40])
def test_collated_rows_are_as_the_tokenizer_pads_them(tmp_path, tokenizer, pad_to):
    read = read_sentences([write_source("txt", tmp_path, make_sentences(120))], tokenizer, 64)
    rows = read.train.select(range(8)).to_list()
    batch = collate([{**row, "index": 1} for row in rows], tokenizer.pad_token_id, pad_to)
    padding = True if pad_to is None else "max_length"
    inputs = [{"input_ids": row["input_ids"]} for row in rows]
    expected = tokenizer.pad(inputs, padding=padding, max_length=pad_to, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["input_ids"].dtype == torch.int64


def test_rows_of_one_length_have_no_mask():
    rows = [{"input_ids": [5, 6], "token_type_ids": [0, 2]}, {"input_ids": [7, 8], "token_type_ids": [0, 2]}]
    batch = collate(rows, 9)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6], [7, 8]],
        "token_type_ids": [[0, 2], [0, 2]],
    }
    assert {name: tensor.tolist() for name, tensor in collate(rows[:1], 9, pad_to=3).items()} == {
        "input_ids": [[5, 6, 9]],
        "token_type_ids": [[0, 2, 0]],
        "attention_mask": [[1, 1, 0]],
    }


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a row has 3 tokens but pad_to is 2; set it to at least that"):
        collate([{"input_ids": [1, 2, 3]}], 0, pad_to=2)
    with pytest.raises(ValueError, match="a batch has no rows"):
        collate([], 0)


# ---- Real text ----


@pytest.fixture
def bert_tokenizer(data_folder):
    pieces = (data_folder / "vocab" / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)


@pytest.mark.slow
@pytest.mark.data
def test_the_default_number_of_sentences_of_a_corpus_is_read_fast(data_folder, bert_tokenizer):
    start = time.process_time()
    read = read_sentences([data_folder / "corpus" / "wiki"], bert_tokenizer, 128)
    assert time.process_time() - start < 15
    assert (len(read.train), len(read.validation)) == (50_000, 1_000)
    assert read.warnings == ()
    held_out = {tuple(ids) for ids in read.validation["input_ids"]}
    assert held_out.isdisjoint(map(tuple, read.train["input_ids"]))
    lengths = np.array(read.train["length"][:])
    assert 20 < lengths.mean() < 45
    batches = length_batches(lengths, 64, seed=0)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()


@pytest.mark.data
def test_the_sentences_of_a_task_serve_too(data_folder, bert_tokenizer):
    path = data_folder / "glue" / "SST-2" / "train.tsv"
    read = read_sentences([path], bert_tokenizer, 64, num_sentences=2000, text_column="sentence")
    known = {line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()}
    texts = {tuple(bert_tokenizer(one)["input_ids"]) for one in known}
    assert texts.issuperset(map(tuple, read.train["input_ids"]))
