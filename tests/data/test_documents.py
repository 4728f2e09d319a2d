"""Documents: the sources they are read from, what is one of them, and which are held out."""

import bz2
import csv
import gzip
import json
import logging
import lzma
import math
import textwrap

import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, disable_progress_bars
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from toy_packages import installer
from toy_text import make_texts

from training.data import docstrings
from training.data import documents as documents_module
from training.data.documents import files_of, is_held_out, load_documents, split_documents, text_pieces


disable_progress_bars()


@pytest.fixture
def package(tmp_path, monkeypatch):
    return installer(tmp_path, monkeypatch)


# ---- Sources ----


def test_documents_of_a_text_file_are_blocks_between_blank_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeff\r\nA first line,\r\nand a second.\r\n \t\r\n\r\n\r\nCafé.\r\n".encode())
    expected = ["A first line,\nand a second.", "Café."]
    assert load_documents(path)["text"][:] == expected
    assert [row["text"] for row in load_documents(str(path), streaming=True)] == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_is_read_in_sorted_order_with_its_subfolders(tmp_path, streaming):
    for name in ("b.txt", "a/z.txt", "a/b.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents = load_documents(tmp_path, streaming=streaming)
    assert isinstance(documents, IterableDataset if streaming else Dataset)
    assert [row["text"] for row in documents] == ["a/b.txt", "a/z.txt", "b.txt"]
    assert [row["text"] for row in load_documents(tmp_path, streaming=streaming, max_documents=2)] == [
        "a/b.txt",
        "a/z.txt",
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_local_data_files_give_their_text_column(tmp_path, suffix, streaming):
    rows = [{"n": 1, "body": "One."}, {"n": 2, "body": "  "}, {"n": 3, "body": None}, {"n": 4, "body": "Four."}]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = load_documents(path, text_column="body", split="validation", streaming=streaming)
    assert list(documents) == [{"text": "One."}, {"text": "Four."}]


ROWS = [{"n": number, "text": text} for number, text in enumerate(make_texts(30, num_words=6))]
TEXTS = [row["text"] for row in ROWS]
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def content_of(suffix, rows):
    """The rows as a file of a kind holds them."""
    if suffix == ".txt":
        return "\n\n".join(row["text"] for row in rows).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    separator = "\t" if suffix == ".tsv" else ","
    return "\n".join(["n" + separator + "text", *(f"{row['n']}{separator}{row['text']}" for row in rows)]).encode()


def texts_of(documents):
    return [row["text"] for row in documents]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", list(PACKERS))
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_files_and_folders_of_files_are_read_packed_or_not(tmp_path, suffix, packed, streaming):
    for number in (0, 1):
        path = tmp_path / "text" / f"{number}{suffix}{packed}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PACKERS[packed](content_of(suffix, ROWS[15 * number : 15 * number + 15])))
    documents = load_documents(path, streaming=streaming)
    assert isinstance(documents, IterableDataset if streaming else Dataset)
    assert texts_of(documents) == TEXTS[15:]
    assert texts_of(load_documents(path.parent, streaming=streaming)) == TEXTS
    assert texts_of(load_documents(path.parent, streaming=streaming, max_documents=16)) == TEXTS[:16]


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_parquet_and_of_several_kinds_are_read(tmp_path, streaming):
    # What a name has of a pattern is no pattern.
    folder = tmp_path / "we[i]rd*"
    (folder / "data").mkdir(parents=True)
    for number in (0, 1):
        Dataset.from_list(ROWS[10 * number : 10 * number + 10]).to_parquet(folder / "data" / f"{number}.PARQUET")
    assert texts_of(load_documents(folder, streaming=streaming)) == TEXTS[:20]
    (folder / "more.tsv").write_bytes(content_of(".tsv", ROWS[20:25]))
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(content_of(".jsonl", ROWS[25:])))
    assert sorted(texts_of(load_documents(folder, streaming=streaming))) == sorted(TEXTS)


def test_files_with_other_columns_beside_the_text_are_read(tmp_path, capfd):
    (tmp_path / "0.jsonl").write_text('{"text": "One.", "id": 1}\n')
    (tmp_path / "1.jsonl").write_text('{"text": "Two.", "id": "b", "lengths": [1]}\n')
    assert texts_of(load_documents(tmp_path)) == ["One.", "Two."]
    (tmp_path / "1.jsonl").write_text('{"text": "Tw')
    with pytest.raises(ValueError, match=r"cannot read data set '.*1\.jsonl' \(JSON parse error"):
        load_documents(tmp_path)
    assert "Failed" not in capfd.readouterr().err


@pytest.mark.parametrize("streaming", [False, True])
def test_long_strings_of_arrow_are_joined_to_those_of_other_files(tmp_path, streaming):
    features = Features({"text": Value("large_string")})
    Dataset.from_dict({"text": ["One."]}, features).to_parquet(tmp_path / "0.parquet")
    (tmp_path / "1.tsv").write_text("n\ttext\n2\tTwo.\n")
    assert sorted(texts_of(load_documents(tmp_path, streaming=streaming))) == ["One.", "Two."]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_was_saved_to_disk_is_read(tmp_path, streaming):
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "dev": rows.select(range(3))}).save_to_disk(tmp_path / "two")
    assert texts_of(load_documents(tmp_path / "one", streaming=streaming)) == TEXTS
    assert texts_of(load_documents(tmp_path / "two", streaming=streaming)) == TEXTS
    assert texts_of(load_documents(tmp_path / "two", split="dev", streaming=streaming)) == TEXTS[:3]
    with pytest.raises(ValueError, match="two has no split 'test'; give the folder of a split: train, dev"):
        load_documents(tmp_path / "two", split="test", streaming=streaming)
    with pytest.raises(ValueError, match="one has no column 'body'; choose one of: n, text"):
        load_documents(tmp_path / "one", text_column="body", streaming=streaming)
    # Nothing is left there.
    (part,) = (tmp_path / "one").glob("*.arrow")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [part.name, "dataset_info.json", "state.json"]
    part.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*one \(.*\); save it again"):
        load_documents(tmp_path / "one", streaming=streaming)


def test_data_files_that_are_named_for_the_split_are_taken_alone(tmp_path, caplog):
    names = ("data/train-00000.jsonl", "data/train-00001.jsonl", "data/test-00000.jsonl", "info.json", "trained.jsonl")
    for name in (*names, ".cache/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "A row."}')
    with caplog.at_level(logging.INFO, "training"):
        assert [file.name for file in files_of(tmp_path)] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert "2 of 5 data files are named for the split 'train'" in caplog.text
    assert [file.name for file in files_of(tmp_path, "test")] == ["test-00000.jsonl"]
    assert len(files_of(tmp_path, "other")) == 5
    # Text has no splits, and goes before data.
    (tmp_path / "valid.txt").write_text("A text.")
    assert [file.name for file in files_of(tmp_path)] == ["valid.txt"]


@pytest.mark.parametrize("streaming", [False, True])
def test_without_blank_lines_a_line_is_a_document(tmp_path, streaming, caplog):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    with caplog.at_level(logging.INFO, "training"):
        assert texts_of(load_documents(path, streaming=streaming)) == TEXTS
    assert "documents are lines, because there are no blank lines between them; 30 lines in 1 file;" in caplog.text
    path.write_text("\n".join([*TEXTS, "", "The last."]))
    assert texts_of(load_documents(path, streaming=streaming)) == ["\n".join(TEXTS), "The last."]


def test_stray_blank_lines_do_not_make_blocks(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(documents_module, "_LONGEST_DOCUMENT", 10)
    path = tmp_path / "lines.txt"
    path.write_text("\n".join([*TEXTS[:14], "", *TEXTS[14:]]))
    with caplog.at_level(logging.INFO, "training"):
        assert texts_of(load_documents(path)) == TEXTS
    assert "documents are lines, because blank lines are 1,000 or more lines apart on average; 30 lines" in caplog.text
    path.write_text("\n".join([*TEXTS[:14], "", *TEXTS[14:17], "", *TEXTS[17:]]))
    assert texts_of(load_documents(path)) == TEXTS
    path.write_text("\n".join([*TEXTS[:4], "", *TEXTS[4:8], "", *TEXTS[8:12], "", *TEXTS[12:]]))
    assert len(load_documents(path)) == 4
    # Long paragraphs whose lines an editor has broken.
    path.write_text("\n\n".join(textwrap.fill(" ".join(TEXTS), 80) for _ in range(2)))
    assert len(load_documents(path)) == 2


def test_lines_that_an_editor_has_broken_are_one_document(tmp_path):
    path = tmp_path / "wrapped.txt"
    path.write_text(textwrap.fill(" ".join(TEXTS), 70))
    assert texts_of(load_documents(path)) == [path.read_text()]


def test_short_files_without_blank_lines_are_documents(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[10 * number : 10 * number + 10]))
    assert texts_of(load_documents(tmp_path)) == ["\n".join(TEXTS[start : start + 10]) for start in (0, 10, 20)]
    # As many lines as no document has.
    monkeypatch.setattr(documents_module, "_LONGEST_DOCUMENT", 10)
    assert texts_of(load_documents(tmp_path)) == TEXTS


def test_what_a_document_is_can_be_said(tmp_path):
    (tmp_path / "a.txt").write_text("One.\nTwo.\n\nThree.")
    (tmp_path / "b.txt").write_text("Four.\nFive.")
    (tmp_path / "c.txt").write_text(" \n")
    expected = {
        "block": ["One.\nTwo.", "Three.", "Four.\nFive."],
        "line": ["One.", "Two.", "Three.", "Four.", "Five."],
        "file": ["One.\nTwo.\n\nThree.", "Four.\nFive."],
    }
    assert {kind: texts_of(load_documents(tmp_path, document=kind)) for kind in expected} == expected


# ---- Pieces ----


@given(text=st.text(st.sampled_from("ab  \n\u8fd9\u3000"), max_size=300), size=st.sampled_from([4, 16, 64]))
def test_pieces_make_the_text_and_break_no_word_that_fits(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "_PIECE_CHARACTERS", size)
        pieces = list(text_pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= size for piece in pieces)
    words = [word for piece in pieces for word in piece.split()]
    if max(map(len, text.split()), default=0) < size // 2 and "  " not in text and "\n" not in text:
        assert words == text.split()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_pieces_are_tokenised_as_the_whole_text(monkeypatch, kind):
    text = "\n".join(f"{one}  {other}\n" for one, other in zip(TEXTS, reversed(TEXTS), strict=True))
    pre_tokenizer = {
        "byte_level": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "metaspace": pre_tokenizers.Metaspace(),
    }[kind]
    words = {word for word, _ in pre_tokenizer.pre_tokenize_str(text.replace("\n", " ") + text)}
    whole = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<unk>", *sorted(words)])}, "<unk>"))
    whole.pre_tokenizer = pre_tokenizer
    # As SentencePiece takes any white space.
    whole.normalizer = normalizers.Replace("\n", " ") if kind == "metaspace" else None
    monkeypatch.setattr(documents_module, "_PIECE_CHARACTERS", 64)
    pieces = list(text_pieces(text))
    assert len(pieces) > 30
    assert [token for piece in pieces for token in whole.encode(piece).ids] == whole.encode(text).ids


# ---- Sources by name, and what is refused ----


def test_docstrings_are_the_default(package, monkeypatch):
    monkeypatch.setattr(docstrings, "DOCSTRING_PACKAGES", ("not-installed", "prosaic"))
    package({"a.py": '"""This is the sentence that stands for all of the others."""'})
    expected = [{"text": "This is the sentence that stands for all of the others.", "source": "prosaic"}]
    assert list(load_documents()) == expected
    assert list(load_documents("docstrings", streaming=True)) == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"there is no file or folder '.*missing\.txt'; check the path"),
        ("missing", None, r"there is no file or folder '.*missing'; check the path"),
        ("empty", "folder", r"folder .*empty contains no text; known suffixes: \.txt, .* also compressed as \.gz"),
        ("blank.txt", " \n\n", r"there is no text in .*blank\.txt; give files or folders that contain text"),
        ("wide.txt", "Three words".encode("utf-16-le"), r"wide\.txt is not UTF-8 \(it has zero bytes.*\); convert it"),
        ("broken.txt.gz", "text", r"cannot read .*broken\.txt\.gz \(Not a gzipped file.*\); repair or remove it"),
        (
            "half.txt.gz",
            gzip.compress(b"text " * 99, mtime=0)[:-9],
            r"cannot read .*half\.txt\.gz \(.*\); repair or remove it",
        ),
        ("rows.tsv", "title\tbody\na\tb\n", r"rows\.tsv has no column 'text'; choose one of: title, body"),
        ("none.tsv", "title\ttext\na\t\n", r"none\.tsv' has no text in column 'text'; choose another"),
        ("latin.txt", b"caf\xe9 ", r"latin\.txt is not UTF-8 \(.*\); convert it"),
        (
            "paper.pdf",
            "text",
            r"paper\.pdf is not of a readable kind; known suffixes: \.txt, .*rename plain",
        ),
        ("rows.csv", "title,body\na,b\n", r"rows\.csv' has no column 'text'; choose one of: title, body"),
        ("empty.jsonl", "", r"cannot read data set '.*empty\.jsonl' \(it is empty\); check its name or the file"),
        ("empty.csv", "", r"cannot read data set '.*empty\.csv' \(.*\); check its name or the file"),
        ("quote.csv", 'text\n"a\n', r"cannot read data set '.*quote\.csv' \(.*\); check its name or the file"),
        ("broken.jsonl", '{"text": "a"\n{', r"cannot read data set '.*broken\.jsonl' \(.*\); check its name or the"),
        ("broken.parquet", "text", r"cannot read data set '.*broken\.parquet' \(.*\); check its name or the file"),
    ],
)
def test_sources_that_cannot_be_read_are_named(tmp_path, name, content, message, streaming):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        list(load_documents(str(path), streaming=streaming))
    assert "\n" not in str(error.value)


def test_rows_with_a_cell_more_than_the_header_are_not_taken_for_another_column(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nOne, two.,1\nThree, four.,0\n")
    with pytest.raises(ValueError, match=r"rows\.csv' \(Length of header or names does not match length of data"):
        load_documents(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["no-such-data-set", "owner/no-such-data-set"])
def test_unknown_data_set_is_named(name):
    with pytest.raises(ValueError, match=rf"cannot read data set '{name}' \(.*\); check its name or the file"):
        load_documents(name)


def test_column_without_text_is_an_error(tmp_path):
    (tmp_path / "rows.csv").write_text("n,empty,text\n1,,Two.\n")
    for column in ("n", "empty"):
        message = rf"rows\.csv' has no text in column '{column}'; choose one of: n, empty, text"
        with pytest.raises(ValueError, match=message):
            load_documents(tmp_path / "rows.csv", text_column=column)


def test_number_of_documents_is_checked():
    with pytest.raises(ValueError, match="max_documents is 0; it must be at least 1, or None for all"):
        load_documents(max_documents=0)


# ---- Held-out documents ----


def test_split_never_changes():
    # Pinned: another hash would move the documents of every corpus, and old validation losses would compare no more.
    assert [n for n in range(12) if is_held_out(f"document {n}", 0.3, seed=0)] == [1, 2, 5]


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**40))
def test_what_is_held_out_stays_so_at_larger_fractions(text, one, other, seed):
    assert is_held_out(text, min(one, other), seed) <= is_held_out(text, max(one, other), seed)
    assert is_held_out(text, 1, seed)
    assert not is_held_out(text, 0, seed)


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_share_of_held_out_documents(fraction):
    num, sides = (
        20_000,
        [{n for n in range(20_000) if is_held_out(f"document {n}", fraction, seed)} for seed in (0, 1)],
    )
    for side in sides:
        assert abs(len(side) - num * fraction) < 5 * math.sqrt(num * fraction * (1 - fraction))
    # Seeds are independent of one another.
    both = num * fraction**2
    assert abs(len(sides[0] & sides[1]) - both) < 5 * math.sqrt(both)


@pytest.mark.parametrize("streaming", [False, True])
def test_split_is_a_partition_in_order(streaming):
    texts = make_texts(300, num_words=5)
    documents = Dataset.from_dict({"text": texts, "source": ["x"] * 300})
    parts = split_documents(documents.to_iterable_dataset() if streaming else documents, 0.2, seed=3)
    train, validation = ([row["text"] for row in part] for part in parts)
    assert train == [text for text in texts if not is_held_out(text, 0.2, 3)]
    assert validation == [text for text in texts if is_held_out(text, 0.2, 3)]
    assert not set(train) & set(validation)
    assert min(len(train), len(validation)) > 0


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match=f"validation_fraction is {fraction}; it must be between 0 and 1"):
        split_documents(Dataset.from_dict({"text": ["a"]}), fraction)


@pytest.mark.parametrize(("fraction", "name"), [(1e-9, "validation"), (1 - 1e-9, "training")])
def test_empty_side_is_an_error(fraction, name):
    documents = Dataset.from_dict({"text": make_texts(10)})
    message = (
        rf"none of 10 documents are left for the {name} set at validation_fraction {fraction}; give more documents"
    )
    with pytest.raises(ValueError, match=message):
        split_documents(documents, fraction)
    with pytest.raises(ValueError, match=r"for text files, another `document` \(block, line or file\)"):
        split_documents(documents, fraction)
