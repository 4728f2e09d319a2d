"""The way from text to masked batches: tokenizer, blocks, masks, and what is kept on disk."""

import copy
import json
import math
import pickle
import random
from hashlib import sha256

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from toy_packages import installer
from toy_text import ROBERTA, WORDS, ids_of, make_texts, word_level_tokenizer

from training.data import docstrings
from training.data import text as data
from training.data.documents import is_held_out
from training.data.text import (
    MaskingCollator,
    PreparedData,
    held_out_texts,
    pack_blocks,
    prepare_data,
)
from training.data.tokenizing import encode_text, train_tokenizer


disable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(60), vocab_size=200)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_texts(200)), encoding="utf-8")
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    return installer(tmp_path, monkeypatch)


# ---- Blocks ----


def line_of(texts, tokenizer):
    """All that packing has to keep, in order."""
    line = []
    for text in texts:
        if ids := tokenizer(text, add_special_tokens=False)["input_ids"]:
            line += [*ids, tokenizer.sep_token_id]
    return line


sentences = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


@settings(max_examples=25)
@given(texts=st.lists(sentences, min_size=1, max_size=12), block_size=st.integers(8, 24))
def test_blocks_hold_the_text_in_order(tokenizer, texts, block_size):
    line, width = line_of(texts, tokenizer), block_size - 2
    documents = Dataset.from_dict({"text": texts, "source": ["x"] * len(texts)})
    streamed = pack_blocks(documents.to_iterable_dataset(), tokenizer, block_size)
    if len(line) < width:
        assert not list(streamed)
        return
    blocks = pack_blocks(documents, tokenizer, block_size)
    assert blocks.column_names == ["input_ids"]
    rows = ids_of(blocks)
    assert all(len(row) == block_size for row in rows)
    assert all((row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for row in rows)
    kept = [token for row in rows for token in row[1:-1]]
    assert kept == line[: len(kept)]
    assert len(line) - len(kept) < width
    assert ids_of(streamed) == rows


def test_text_that_fills_its_blocks_is_kept_to_the_end(tokenizer):
    text = "the model reads the text"
    first, second = ids_of(pack_blocks(Dataset.from_dict({"text": [text, text]}), tokenizer, 8))
    line = line_of([text], tokenizer)
    assert (first[1:-1], second[1:-1]) == (line, line)


def test_less_than_a_block_is_lost_in_a_thousand_documents(tokenizer):
    texts = make_texts(2500, num_words=3)
    documents = Dataset.from_dict({"text": texts})
    rows = ids_of(pack_blocks(documents, tokenizer, 64))
    parts = [line_of(texts[start : start + 1000], tokenizer) for start in (0, 1000, 2000)]
    assert len(rows) == sum(len(part) // 62 for part in parts)
    kept = [token for row in rows for token in row[1:-1]]
    assert kept == [token for part in parts for token in part[: len(part) // 62 * 62]]
    assert ids_of(pack_blocks(documents.to_iterable_dataset(), tokenizer, 64)) == rows


def test_blocks_of_a_roberta_tokenizer_are_framed_by_its_own_tokens():
    roberta = word_level_tokenizer(**ROBERTA)
    rows = ids_of(pack_blocks(Dataset.from_dict({"text": ["the model reads", "the text of the layer"]}), roberta, 8))
    assert roberta.convert_ids_to_tokens(rows[0]) == ["<s>", "the", "model", "reads", "</s>", "the", "text", "</s>"]


def test_packing_does_not_warn_of_long_documents(tokenizer, caplog):
    pack_blocks(Dataset.from_dict({"text": make_texts(2, num_words=600)}), tokenizer)
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 7}, "block_size is 7; it must be at least 8"),
        (
            {"block_size": 129, "max_positions": 128},
            "block_size is 129 but the model accepts 128 tokens; choose a smaller",
        ),
        (
            {"block_size": 128},
            r"2 documents have 6 tokens, not a full block of 128; give more text, a smaller block_size",
        ),
    ],
)
def test_blocks_that_cannot_be_cut_are_an_error(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        pack_blocks(Dataset.from_dict({"text": ["the model reads", "the text learns"]}), tokenizer, **arguments)


def test_blocks_need_class_and_separator_tokens(monkeypatch):
    bare = word_level_tokenizer(pad_token="<pad>", mask_token="<mask>")
    message = "has no cls_token and no sep_token; set it, or use the tokenizer"
    with pytest.raises(ValueError, match=message):
        pack_blocks(Dataset.from_dict({"text": make_texts(3)}), bare)
    monkeypatch.setattr(data, "load_documents", None)
    with pytest.raises(ValueError, match=message):
        prepare_data(tokenizer=bare)


def test_documents_are_tokenised_in_pieces(tokenizer, monkeypatch):
    text = " ".join(make_texts(4000))
    assert len(text) > 800_000
    sizes = []

    def recorded(made, pieces, **arguments):
        sizes.append(sum(map(len, pieces)))
        return encode_text(made, pieces, **arguments)

    monkeypatch.setattr(data, "encode_text", recorded)
    rows = ids_of(pack_blocks(Dataset.from_dict({"text": [text, "the end"]}), tokenizer, 128))
    assert len(sizes) > 3
    assert max(sizes) <= 2**18 + 2**16
    kept = [token for row in rows for token in row[1:-1]]
    assert kept == line_of([text, "the end"], tokenizer)[: len(kept)]


# ---- Masking ----


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Blocks with special tokens inside them, unknown words among those."""
    texts = [f"{text} £ {text}" for text in make_texts(100, num_words=11)]
    return list(pack_blocks(Dataset.from_dict({"text": texts}), tokenizer, 32))


def assert_equal_batches(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_masking_statistics(tokenizer):
    num, vocab = 400_000, len(tokenizer)
    ids = torch.randint(5, vocab, (num // 100, 100), generator=torch.Generator().manual_seed(0))
    batch = MaskingCollator(tokenizer)([{"input_ids": row} for row in ids.tolist()])
    chosen = batch["labels"] != -100
    masked = chosen & (batch["input_ids"] == tokenizer.mask_token_id)
    kept = chosen & (batch["input_ids"] == ids)
    replaced = chosen & ~masked & ~kept

    def assert_share(part, whole, expected):
        assert abs(part - whole * expected) < 4 * math.sqrt(whole * expected * (1 - expected)), (
            part / whole,
            expected,
        )

    num_chosen = chosen.sum().item()
    assert_share(num_chosen, num, 0.15)
    # A random token is the mask token, or the token that was there, in one of `vocab` cases each.
    assert_share(masked.sum().item(), num_chosen, 0.8 + 0.1 / vocab)
    assert_share(kept.sum().item(), num_chosen, 0.1 + 0.1 / vocab)
    assert_share(replaced.sum().item(), num_chosen, 0.1 - 0.2 / vocab)
    assert torch.equal(batch["labels"][chosen], ids[chosen])
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert_share(chosen[:, :50].sum().item(), num // 2, 0.15)


def test_masking_probability_is_an_argument(tokenizer, rows):
    everything = MaskingCollator(tokenizer, mlm_probability=1.0)(rows)["labels"] != -100
    nothing = MaskingCollator(tokenizer, mlm_probability=0.0)(rows)["labels"] != -100
    assert everything.float().mean() > 0.8
    assert not nothing.any()


def test_special_tokens_are_never_masked(tokenizer, rows):
    ids = torch.tensor(ids_of(rows))
    special = (ids[..., None] == torch.tensor(tokenizer.all_special_ids)).any(-1)
    assert (ids == tokenizer.unk_token_id).any()
    assert (ids[:, 1:-1] == tokenizer.sep_token_id).any()
    batch = MaskingCollator(tokenizer, mlm_probability=1.0)(rows)
    assert torch.equal(batch["labels"] == -100, special)
    assert torch.equal(batch["input_ids"][special], ids[special])


def test_masks_are_a_function_of_seed_and_batch(tokenizer, rows):
    collator = MaskingCollator(tokenizer, seed=1)
    first = collator(rows[:8])
    collator(rows[8:16])
    assert_equal_batches(collator(rows[:8]), first)
    assert_equal_batches(MaskingCollator(tokenizer, seed=1)(rows[:8]), first)
    assert_equal_batches(pickle.loads(pickle.dumps(collator))(rows[:8]), first)

    def masks(batch):
        return batch["labels"] != -100

    assert not torch.equal(masks(MaskingCollator(tokenizer, seed=2)(rows[:8])), masks(first))
    # The same block in another order or in other company is masked anew.
    assert not torch.equal(masks(collator(rows[7::-1])).flip(0), masks(first))
    assert not torch.equal(masks(collator([*rows[:7], rows[9]]))[:7], masks(first)[:7])


def test_masks_leave_the_callers_rows_and_the_global_generators_alone(tokenizer, rows):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    tensors = [{"input_ids": torch.tensor(row["input_ids"])} for row in rows]
    collator = MaskingCollator(tokenizer)
    torch.manual_seed(0)
    first = collator(tensors)
    torch.manual_seed(1)
    assert_equal_batches(collator(rows), first)
    assert [row["input_ids"].tolist() for row in tensors] == ids_of(rows)
    torch.set_rng_state(before[0])
    collator(rows)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_masks_do_not_depend_on_workers(tokenizer, rows):
    collator = MaskingCollator(tokenizer)
    alone, together = (
        list(DataLoader(rows[:24], batch_size=4, collate_fn=collator, num_workers=number)) for number in (0, 2)
    )
    for one, other in zip(alone, together, strict=True):
        assert_equal_batches(one, other)


def test_rows_of_equal_length_bring_their_own_fields(tokenizer, rows):
    collator = MaskingCollator(tokenizer)
    plain = collator(rows[:4])
    assert set(plain) == {"input_ids", "labels"}
    assert plain["input_ids"].dtype == plain["labels"].dtype == torch.int64
    mask = [1] * 30 + [0] * 2
    with_mask = collator([{**row, "attention_mask": mask} for row in rows[:4]])
    assert with_mask["attention_mask"].tolist() == [mask] * 4
    assert torch.equal(with_mask["labels"], plain["labels"])
    small = collator([{"input_ids": np.array(row["input_ids"], dtype=np.int32)} for row in rows[:4]])
    assert_equal_batches(small, plain)


def test_special_tokens_mask_of_the_rows_is_followed(tokenizer, rows):
    collator = MaskingCollator(tokenizer, mlm_probability=1.0)
    mask = [1] * 20 + [0] * 12
    batch = collator([{**row, "special_tokens_mask": mask} for row in rows[:4]])
    assert set(batch) == {"input_ids", "labels"}
    assert (batch["labels"] == -100).tolist() == [[True] * 20 + [False] * 12] * 4


def test_rows_of_unequal_length_are_padded(tokenizer, rows):
    uneven = [rows[0], {"input_ids": rows[1]["input_ids"][:20]}]
    collator = MaskingCollator(tokenizer, mlm_probability=1.0)
    batch = collator(uneven)
    assert batch["attention_mask"].tolist() == [[1] * 32, [1] * 20 + [0] * 12]
    assert batch["input_ids"][1, 20:].tolist() == [tokenizer.pad_token_id] * 12
    assert (batch["labels"][1, 20:] == -100).all()
    assert (batch["labels"][1, :20] != -100).sum() > 10
    assert_equal_batches(MaskingCollator(tokenizer, mlm_probability=1.0)(uneven), batch)


# ---- All together ----


def prepare(source, cache, **changes):
    arguments = {"vocab_size": 120, "block_size": 16, "validation_fraction": 0.2, "cache_dir": cache}
    return prepare_data(source, **{**arguments, **changes})


def test_fingerprint_says_what_was_prepared(text_file, tmp_path):
    prepared = prepare(text_file, tmp_path / "cache", seed=5)
    texts = make_texts(200)
    train = [text for text in texts if not is_held_out(text, 0.2, 5)]
    validation = [text for text in texts if is_held_out(text, 0.2, 5)]
    fingerprint = prepared.fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["source"] == str(text_file)
    assert fingerprint["documents"] == {"train": len(train), "validation": len(validation)}
    assert fingerprint["words"] == {"train": 40 * len(train), "validation": 40 * len(validation)}
    assert fingerprint["blocks"] == {"train": len(prepared.train), "validation": len(prepared.validation)}
    assert fingerprint["tokens"] == {"train": 14 * len(prepared.train), "validation": 14 * len(prepared.validation)}
    hashed = sha256("".join(f"{text}\0" for text in validation).encode()).hexdigest()
    assert fingerprint["sha256"]["validation"] == hashed
    assert fingerprint["vocab_size"] == len(prepared.tokenizer) == 120
    assert (fingerprint["block_size"], fingerprint["seed"], fingerprint["validation_fraction"]) == (16, 5, 0.2)
    assert {"python", "datasets", "tokenizers", "transformers"} == fingerprint["versions"].keys()
    # Nothing of the validation set trains the tokenizer.
    assert prepared.tokenizer.get_vocab() == train_tokenizer(train, 120).get_vocab()
    assert ids_of(prepared.validation) == ids_of(
        pack_blocks(Dataset.from_dict({"text": validation}), prepared.tokenizer, 16)
    )


def test_fingerprint_changes_with_the_text_and_not_otherwise(text_file, tmp_path):
    first = prepare(text_file, tmp_path / "one").fingerprint
    assert prepare(text_file, tmp_path / "two").fingerprint == first
    text = text_file.read_text()
    held_out = next(text for text in make_texts(200) if is_held_out(text, 0.2))
    trained_on = next(text for text in make_texts(200) if not is_held_out(text, 0.2))
    for side, document in (("train", trained_on), ("validation", held_out)):
        word = next(word for word in WORDS if is_held_out(f"{document} {word}", 0.2) == (side == "validation"))
        text_file.write_text(text.replace(document, f"{document} {word}"))
        changed = prepare(text_file, tmp_path / "one").fingerprint
        other = "train" if side == "validation" else "validation"
        assert changed["sha256"][side] != first["sha256"][side]
        assert changed["sha256"][other] == first["sha256"][other]
        assert changed["words"][side] == first["words"][side] + 1
    # Order counts too, for the blocks depend on it.
    text_file.write_text("\n\n".join(reversed(text.split("\n\n"))))
    assert prepare(text_file, tmp_path / "one").fingerprint["sha256"] != first["sha256"]


def test_second_run_reads_what_the_first_has_written(text_file, tmp_path, monkeypatch):
    first = prepare(text_file, tmp_path / "cache")
    monkeypatch.setattr(data, "train_tokenizer", None)
    monkeypatch.setattr(data, "pack_blocks", None)
    second = prepare(text_file, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    assert ids_of(second.train) == ids_of(first.train)
    assert ids_of(second.validation) == ids_of(first.validation)
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": 24},
        {"vocab_size": 100},
        {"validation_fraction": 0.3},
        {"seed": 1},
        {"max_documents": 90},
        {"lowercase": False},
    ],
)
def test_other_settings_are_prepared_anew(text_file, tmp_path, changes):
    first = prepare(text_file, tmp_path / "cache")
    second = prepare(text_file, tmp_path / "cache", **changes)
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == prepare(text_file, tmp_path / "other", **changes).fingerprint


def test_failure_leaves_nothing_behind(text_file, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "load_from_disk", fail)
        patch.setattr(Dataset, "save_to_disk", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(text_file, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert len(prepare(text_file, tmp_path / "cache").train)


def test_process_that_comes_second_takes_what_the_first_has_written(tmp_path):
    with docstrings.written_at_once(tmp_path / "folder") as slow:
        with docstrings.written_at_once(tmp_path / "folder") as fast:
            fast.mkdir()
            (fast / "file").write_text("the same")
        slow.mkdir()
        (slow / "file").write_text("the same")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_given_tokenizer_is_used(text_file, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    by_object = prepare(text_file, tmp_path / "cache", tokenizer=tokenizer)
    by_name = prepare(text_file, tmp_path / "cache", tokenizer=str(tmp_path / "tokenizer"))
    assert by_object.tokenizer is tokenizer
    assert by_name.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert by_name.fingerprint == by_object.fingerprint
    assert by_name.fingerprint["vocab_size"] == len(tokenizer)
    # What was asked of it before is no property of a tokenizer.
    tokenizer("text", padding="max_length", truncation=True, max_length=5)
    num_prepared = len(list((tmp_path / "cache").iterdir()))
    assert prepare(text_file, tmp_path / "cache", tokenizer=tokenizer).fingerprint == by_object.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == num_prepared == 1
    cased = train_tokenizer(make_texts(60), vocab_size=200, lowercase=False)
    assert (
        prepare(text_file, tmp_path / "cache", tokenizer=cased).fingerprint["tokenizer"]
        != by_object.fingerprint["tokenizer"]
    )


def test_stream_gives_the_same_blocks(text_file, tmp_path):
    whole = prepare(text_file, tmp_path / "cache")
    streamed = prepare(text_file, tmp_path / "stream", streaming=True)
    assert isinstance(streamed.train, IterableDataset)
    assert ids_of(streamed.train) == ids_of(whole.train)
    assert ids_of(streamed.validation) == ids_of(whole.validation)
    assert streamed.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    for name in ("documents", "words", "blocks", "tokens"):
        assert streamed.fingerprint[name] == {"train": None, "validation": whole.fingerprint[name]["validation"]}
    assert streamed.fingerprint["sha256"] == {
        "train": "streamed",
        "validation": whole.fingerprint["sha256"]["validation"],
    }
    assert not (tmp_path / "stream").exists()


def test_only_the_head_of_a_stream_is_read_beforehand(text_file, monkeypatch):
    monkeypatch.setattr(data, "_STREAM_HEAD", 50)
    streamed = prepare(text_file, None, streaming=True)
    head, rest = make_texts(200)[:50], make_texts(200)[50:]
    assert streamed.fingerprint["documents"]["validation"] == sum(is_held_out(text, 0.2) for text in head)
    # What is held out of the rest is neither trained nor validated on.
    train = [text for text in [*head, *rest] if not is_held_out(text, 0.2)]
    expected = pack_blocks(Dataset.from_dict({"text": train}), streamed.tokenizer, 16)
    assert ids_of(streamed.train) == ids_of(expected)


def test_default_corpus_is_fingerprinted_by_its_packages(package, monkeypatch, tmp_path):
    monkeypatch.setattr(docstrings, "DOCSTRING_PACKAGES", ("prosaic",))
    package(
        {
            f"{n}.py": f'"""It is not the same in the file {n}: {text}"""'
            for n, text in enumerate(make_texts(60, num_words=15))
        }
    )
    prepared = prepare(None, tmp_path / "cache")
    assert prepared.fingerprint["source"] == "docstrings"
    assert prepared.fingerprint["versions"]["prosaic"] == "1.0"
    assert sum(prepared.fingerprint["documents"].values()) == 60
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()) == ["docstrings", "prepared"]


@pytest.mark.parametrize("reading", [{}, {"max_documents": 40, "document": "line"}, {"streaming": True}])
def test_the_held_out_text_is_read_again_as_it_was(text_file, tmp_path, tokenizer, reading):
    prepared = prepare_data(text_file, tokenizer=tokenizer, block_size=16, seed=3, validation_fraction=0.2, **reading)
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text_file.read_bytes())
    held_out = held_out_texts(str(moved), prepared.fingerprint)
    assert pack_blocks(held_out, tokenizer, 16)["input_ids"][:] == prepared.validation["input_ids"][:]
    moved.write_text(moved.read_text().upper())
    with pytest.raises(
        ValueError, match=r"moved.txt is a different text: the SHA-256 of its held-out documents begins with"
    ):
        held_out_texts(str(moved), prepared.fingerprint)


def test_unknown_tokens_of_the_held_out_text_are_warned_of(text_file, tmp_path, tokenizer, caplog):
    prepared = prepare(text_file, tmp_path / "cache", tokenizer=tokenizer)
    assert prepared.fingerprint["unknown"] == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    text_file.write_text("\n\n".join(f"{text} \u0436" for text in make_texts(200)), encoding="utf-8")
    # From the cache too.
    for _ in range(2):
        caplog.clear()
        prepared = prepare(text_file, tmp_path / "cache", tokenizer=tokenizer)
        held_out = [token for row in ids_of(prepared.validation) for token in row[1:-1]]
        assert prepared.fingerprint["unknown"] == held_out.count(tokenizer.unk_token_id) / len(held_out) > 0.01
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"does not know {prepared.fingerprint['unknown']:.1%} of the tokens of the held-out" in record.message
        assert "use one made for this text" in record.message
    assert prepare(text_file, tmp_path / "cache").fingerprint["unknown"] == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_document_a_line_is_prepared(tmp_path, streaming):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(make_texts(200)), encoding="utf-8")
    prepared = prepare(path, tmp_path / "cache", streaming=streaming)
    assert prepared.fingerprint["documents"]["validation"] == sum(is_held_out(one, 0.2) for one in make_texts(200))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_fraction": 2}, "validation_fraction is 2; it must be between 0 and 1"),
        ({"block_size": 4}, "block_size is 4; it must be at least 8"),
        ({"tokenizer": "no/such/folder"}, "the tokenizer 'no/such/folder' cannot be loaded: there is no such folder"),
    ],
)
def test_settings_are_checked_before_the_text_is_read(monkeypatch, changes, message):
    monkeypatch.setattr(data, "load_documents", None)
    with pytest.raises(ValueError, match=message):
        prepare_data(**changes)


def test_block_is_checked_against_the_tokenizer(tokenizer, monkeypatch):
    monkeypatch.setattr(data, "load_documents", None)
    with pytest.raises(ValueError, match="block_size is 600 but the model accepts 512 tokens; choose a smaller one"):
        prepare_data(tokenizer=tokenizer, block_size=600)


@pytest.mark.parametrize(
    ("takes", "max_positions", "block_size"), [(32, None, 32), (32, 24, 24), (512, 24, 24), (512, 512, 128)]
)
def test_a_block_nobody_asked_for_is_as_long_as_tokenizer_and_model_take(
    tokenizer, text_file, tmp_path, takes, max_positions, block_size
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = takes
    prepared = prepare(text_file, tmp_path, tokenizer=tokenizer, block_size=None, max_positions=max_positions)
    assert prepared.block_size == block_size
    assert {len(row["input_ids"]) for row in prepared.train} == {block_size}


def test_trained_tokenizer_takes_long_blocks(text_file, tmp_path):
    assert prepare(text_file, tmp_path, block_size=600).tokenizer.model_max_length == 600


# ---- What a notebook shows ----


def test_prepared_data_are_shown_by_their_sizes(text_file):
    prepared = prepare_data(text_file, vocab_size=200, block_size=16)
    assert (
        repr(prepared)
        == f"PreparedData(source={str(text_file)!r}, block_size=16, vocab_size={len(prepared.tokenizer)})"
    )
    shown = prepared._repr_html_()
    assert f"<td>{len(prepared.train):,}</td>" in shown
    assert f"<td>{len(prepared.validation):,}</td>" in shown


def test_what_is_not_known_of_a_stream_is_left_empty():
    fingerprint = {"source": "<script>", "block_size": 8, "blocks": {"train": None, "validation": 2000}}
    shown = PreparedData(None, [], [], fingerprint)._repr_html_()
    assert "<script" not in shown
    assert "<tr><td>train</td><td></td><td></td><td></td><td></td></tr>" in shown
    assert "<tr><td>validation</td><td></td><td></td><td>2,000</td><td></td></tr>" in shown
