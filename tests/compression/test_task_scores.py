"""Task scores of encoders: files are checked as they are read; scores agree with scipy, sklearn and brute force."""

import json
import random
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import average_precision_score, f1_score
from toy_packages import installer

from training.compression.task_scores import Task, TaskScore, docstring_retrieval, read_task, score_task
from training.data.docstrings import docstring_documents


def encode(texts):
    """Embeddings that depend on each text alone."""
    seeds = [int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=6) for seed in seeds]).astype(np.float32)


def cosine(one, other):
    first, second = encode([one])[0].astype(float), encode([other])[0].astype(float)
    return first @ second / np.sqrt((first @ first) * (second @ second))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def further(score):
    return dict(score.further)


def pairs_file(path, labels, column="score"):
    """A file of pairs, half of whose sentences come twice."""
    rows = [(f"Sentence {number // 2}.", f"Another one {number}.", label) for number, label in enumerate(labels)]
    if path.suffix == ".jsonl":
        keys = ("sentence1", "sentence2", column)
        return write(path, "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [f"idx{separator}sentence1{separator}sentence2{separator}{column}"]
    lines += [separator.join(map(str, (number, *row))) for number, row in enumerate(rows)]
    return write(path, "\n".join(lines) + "\n")


# ---- Sentences ----


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("name", ["stsb", "sts", "STS-B"])
def test_similarity_is_the_rank_correlation_of_cosines(tmp_path, suffix, name):
    scores = [0.25 * (number * 7 % 20) for number in range(30)]
    path = pairs_file(tmp_path / f"dev.{suffix}", scores)
    task = read_task(name, path, "sentence")
    asked = []
    score = score_task(task, lambda texts: asked.extend(texts) or encode(texts))
    cosines = [cosine(f"Sentence {number // 2}.", f"Another one {number}.") for number in range(30)]
    assert score.value == pytest.approx(100 * spearmanr(cosines, scores).statistic, abs=1e-9)
    assert further(score)["pearson"] == pytest.approx(100 * pearsonr(cosines, scores).statistic, abs=1e-5)
    assert score[:2] == (f"{name.lower().replace('-', '')} (dev.{suffix})", "spearman")
    assert score.num_examples == 30
    # Each text once.
    assert len(asked) == len(set(asked)) == 45


@pytest.mark.parametrize("spell", [int, float, bool], ids=["whole", "decimal", "words"])
def test_pairs_are_scored_by_average_precision(tmp_path, spell):
    labels = [number * 7 % 3 == 0 for number in range(40)]
    task = read_task("pairs", pairs_file(tmp_path / "rows.jsonl", map(spell, labels), "label"), "sentence")
    score = score_task(task, encode)
    cosines = [cosine(f"Sentence {number // 2}.", f"Another one {number}.") for number in range(40)]
    assert score.value == pytest.approx(100 * average_precision_score(labels, cosines))
    assert score == ("pairs (rows.jsonl)", "average_precision", score.value, 40, ())


def brute_force_ranks(queries, documents):
    """1 + how many different documents that are not right for the query are at least as near as its own."""
    right = {query: {d for q, d in zip(queries, documents, strict=True) if q == query} for query in queries}
    ranks = []
    for query, own in zip(queries, documents, strict=True):
        nearer = [
            other for other in set(documents) - right[query] if cosine(query, other) >= cosine(query, own) - 1e-12
        ]
        ranks.append(1 + len(nearer))
    return np.array(ranks)


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), min_size=2, max_size=25).filter(
        lambda rows: len({document for _, document in rows}) > 1
    )
)
def test_retrieval_ranks_as_brute_force_does(rows):
    queries, documents = [f"query {q}" for q, _ in rows], [f"document {d}" for _, d in rows]
    score = score_task(Task("retrieval", "sentence", None, "accuracy@1", (queries, documents)), encode)
    ranks = brute_force_ranks(queries, documents)
    assert score.value == pytest.approx(100 * np.mean(ranks == 1))
    assert further(score)["mrr@10"] == pytest.approx(100 * np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))


def test_retrieval_is_ranked_in_parts_alike(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [f"query {number}\tdocument {rng.randrange(40)}" for number in range(60)]
    task = read_task("retrieval", write(tmp_path / "rows.tsv", "query\tdocument\n" + "\n".join(rows)), "sentence")
    whole = score_task(task, encode)
    monkeypatch.setattr("training.compression.task_scores._RANKED_TOGETHER", 7)
    assert score_task(task, encode) == whole
    assert whole.num_examples == 60


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_model_for_which_all_texts_are_alike_scores_nothing(tmp_path, value):
    def same(texts):
        return np.full((len(texts), 4), value)

    sts = read_task("sts", pairs_file(tmp_path / "dev.tsv", range(9)), "sentence")
    assert score_task(sts, same).value == 0
    rows = "".join(f"query {number}\tdocument {number}\n" for number in range(9))
    retrieval = read_task("retrieval", write(tmp_path / "rows.tsv", f"query\tdocument\n{rows}"), "sentence")
    score = score_task(retrieval, same)
    assert score.value == 0
    assert further(score)["mrr@10"] == pytest.approx(100 / 9)


def test_nearest_documents_are_found(tmp_path):
    rows = "".join(f"query {number}\tdocument {number}\n" for number in range(9))
    task = read_task("retrieval", write(tmp_path / "rows.tsv", f"query\tdocument\n{rows}"), "sentence")
    score = score_task(task, lambda texts: np.eye(9)[[int(text.split()[1]) for text in texts]])
    assert score == TaskScore("retrieval (rows.tsv)", "accuracy@1", 100, 9, (("mrr@10", 100),))


# ---- Sequences ----


def logits_of(texts, num_labels):
    return encode(texts)[:, :num_labels]


@pytest.mark.parametrize(
    ("labels", "spelled"),
    [
        (("negative", "positive"), ("negative", "positive")),
        (("NEGATIVE", "POSITIVE"), ("negative", "Positive")),
        (("negative", "positive"), ("0", "1")),
        (("a", "b", "c"), ("A", "1", "c")),
        # Labels that are numbers are meant by name.
        (("1", "2", "3"), ("1", "2", "3")),
        # In these the case alone tells them apart.
        (("x", "X"), ("x", "X")),
    ],
)
def test_labels_are_known_by_name_and_number(tmp_path, labels, spelled):
    lines = [f"Text {number}.,{spelled[number * 5 % 7 % len(spelled)]}" for number in range(40)]
    path = write(tmp_path / "dev.csv", "text,label\n" + "\n".join(lines))
    task = read_task("labels", path, "sequence", id2label=dict(enumerate(labels)))
    seconds = []

    def predict(texts, text_pairs):
        seconds.append(text_pairs)
        return logits_of(texts, len(labels))

    score = score_task(task, predict)
    truth = [number * 5 % 7 % len(spelled) for number in range(40)]
    predicted = logits_of([f"Text {number}." for number in range(40)], len(labels)).argmax(1)
    assert seconds == [None]
    assert score[:2] == ("labels (dev.csv)", "accuracy")
    assert score.value == pytest.approx(100 * np.mean(predicted == truth))
    name, average = ("f1", "binary") if len(labels) == 2 else ("macro_f1", "macro")
    assert further(score) == {name: pytest.approx(100 * f1_score(truth, predicted, average=average))}


@pytest.mark.parametrize(
    "header", ["text\ttext_pair\tgenre\tlabel", "premise\thypothesis\tidx\tlabel", "premise\thypothesis\t\tlabel"]
)
def test_pairs_of_texts_are_given_to_the_model(tmp_path, header):
    rows = [f"First {number}.\tSecond {number}.\t{number}\t{number % 3}" for number in range(9)]
    path = write(tmp_path / "dev.tsv", "\n".join([header, *rows]))
    task = read_task("labels", path, "sequence", id2label=dict(enumerate("abc")))
    names = "'text' and 'text_pair'" if header.startswith("text") else "'premise' and 'hypothesis'"
    assert task.note == f"labels (dev.tsv): text in {names}, 9 rows, scored by accuracy"

    def predict(texts, text_pairs):
        assert texts == [f"First {number}." for number in range(9)]
        assert text_pairs == [f"Second {number}." for number in range(9)]
        return np.eye(3)[np.arange(9) % 3]

    assert score_task(task, predict).value == 100


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_regression_is_scored_by_ranks(tmp_path, shape):
    numbers = [0.5 * (number * 3 % 20) for number in range(20)]
    path = write(tmp_path / "dev.tsv", "text\tscore\n" + "".join(f"Text {n}.\t{n}\n" for n in numbers))
    task = read_task("labels", path, "sequence", id2label={0: "LABEL_0"})
    outputs = encode([f"Text {number}." for number in numbers])[:, 0]
    score = score_task(task, lambda texts, text_pairs: outputs.reshape(shape))
    assert score.metric == "spearman"
    assert score.value == pytest.approx(100 * spearmanr(outputs, numbers).statistic)
    assert further(score) == {"pearson": pytest.approx(100 * pearsonr(outputs, numbers).statistic)}


def test_several_labels_a_row_are_scored_by_f1(tmp_path):
    names = ["news", "sport", "weather"]
    rows = [
        {"text": f"Text {n}.", "labels": [names[n % 3]] * (n % 4 > 0) + ["news"] * (n % 5 == 0)} for n in range(30)
    ]
    path = write(tmp_path / "dev.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(
        "labels", path, "sequence", id2label=dict(enumerate(names)), problem_type="multi_label_classification"
    )
    truth = np.array([[int(name in row["labels"]) for name in names] for row in rows])
    predicted = logits_of([row["text"] for row in rows], 3) > 0
    score = score_task(task, lambda texts, text_pairs: logits_of(texts, 3))
    assert score.metric == "micro_f1"
    assert score.value == pytest.approx(100 * f1_score(truth, predicted, average="micro"))
    assert further(score) == {"macro_f1": pytest.approx(100 * f1_score(truth, predicted, average="macro"))}


# ---- Tokens and spans ----

TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
TAGGED = [
    (["Anna", "Karenina", "went", "to", "Moscow"], ["B-PER", "I-PER", "O", "O", "B-LOC"]),
    (["Nothing", "here"], ["O", "O"]),
]


@pytest.mark.parametrize("by", ["name", "number", "text"])
def test_tags_are_scored_by_entities(tmp_path, by):
    ids = {name: number for number, name in TAGS.items()}
    if by == "text":
        path = write(
            tmp_path / "dev.tsv", "words\ttags\n" + "".join(f"{' '.join(w)}\t{' '.join(t)}\n" for w, t in TAGGED)
        )
    else:
        rows = [{"id": 1, "tokens": w, "ner_tags": t if by == "name" else [ids[one] for one in t]} for w, t in TAGGED]
        path = write(tmp_path / "dev.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = read_task("labels", path, "token", id2label=TAGS)

    def predict(words):
        assert words == [row for row, _ in TAGGED]
        # One of two entities of the first row, and one too many in the second.
        return [[1, 2, 0, 0, 0], np.array([0, 1])]

    score = score_task(task, predict)
    assert score[1:4] == ("entity_f1", pytest.approx(50.0), 7)
    assert further(score) == {"accuracy": pytest.approx(100 * 5 / 7)}
    # What the model does not see is not scored.
    cut = score_task(task, lambda words: [[1, 2], [0, 0]])
    assert cut[2:4] == (100, 4)


def test_tags_of_no_entities_are_scored_by_accuracy(tmp_path):
    path = write(tmp_path / "dev.tsv", "tokens\tlabel\nthe cat sat\tdet noun verb\n")
    task = read_task("labels", path, "token", id2label=dict(enumerate(("det", "noun", "verb"))))
    score = score_task(task, lambda words: [[0, 1, 1]])
    assert score == ("labels (dev.tsv)", "accuracy", pytest.approx(200 / 3), 3, ())


def squad_file(path, questions):
    context = "Anna went to Moscow in the cold winter."
    qas = [
        {"id": name, "question": "Where?", "answers": [{"text": a, "answer_start": context.find(a)} for a in answers]}
        for name, answers in questions.items()
    ]
    return write(path, json.dumps({"data": [{"title": "A", "paragraphs": [{"context": context, "qas": qas}]}]}))


@pytest.mark.parametrize("has_unanswerable", [False, True])
def test_answers_are_scored_as_squad_does(tmp_path, has_unanswerable):
    questions = {"a": ["Moscow"], "b": ["the cold winter", "winter"], **({"c": []} if has_unanswerable else {})}
    task = read_task("squad", squad_file(tmp_path / "dev.json", questions), "span")

    def predict(squad):
        assert squad.questions["id"][:] == list(questions)
        return {"a": "Moscow", "b": "cold", **({"c": ""} if has_unanswerable else {})}

    score = score_task(task, predict)
    # "cold" shares one word with "cold winter", whose article does not count.
    right = 2 if has_unanswerable else 1
    assert score[1:4] == ("f1", pytest.approx(100 * (right + 2 / 3) / len(questions)), len(questions))
    assert further(score) == {"exact_match": pytest.approx(100 * right / len(questions))}


# ---- What is refused ----


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("stsb", "masked_lm", r"--eval stsb: a masked language model is scored .*; remove --eval"),
        (
            "retreival",
            "sentence",
            r"--eval retreival: a sentence model has no such task; did you mean 'retrieval'\? choose among stsb",
        ),
        ("stsb", "sequence", r"--eval stsb: a sequence model has no such task; choose among labels"),
        ("labels", "sentence", r"choose among stsb, sts, pairs, retrieval"),
        (
            "stsb",
            "decoder",
            r"unknown kind of model 'decoder'; choose among sentence, sequence, token, span, masked_lm",
        ),
    ],
)
def test_tasks_that_a_model_does_not_have_are_refused(tmp_path, name, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        read_task(name, tmp_path / "missing.tsv", kind)
    assert "\n" not in str(error.value)


LABELS = {"id2label": {0: "no", 1: "yes"}}


@pytest.mark.parametrize(
    ("name", "kind", "content", "arguments", "message"),
    [
        ("sts", "sentence", None, {}, r"there is no file .*dev\.tsv; check the path"),
        ("squad", "span", None, {}, r"there is no file .*dev\.tsv; check the path"),
        ("sts", "sentence", "sentence1\tsentence2\tscore\n", {}, r"dev\.tsv holds no rows"),
        ("sts", "sentence", "sentence1\tsentence\tscore\na\tb\t1\n", {}, r"no column 'sentence2' .*did you mean 'sen"),
        ("sts", "sentence", "sentence1\tsentence2\tgold\na\tb\t1\n", {}, r"line 1: no column 'score' among"),
        ("sts", "sentence", "sentence1\tsentence2\tscore\na\tb\thigh\n", {}, r"line 2: .*'high'; regression needs"),
        ("sts", "sentence", "sentence1\tsentence2\tscore\na\tb\tnan\n", {}, r"line 2: .*'nan'; regression needs"),
        ("sts", "sentence", "sentence1\tsentence2\tscore\na\t \t1\n", {}, r"line 2: column 'sentence2' is empty"),
        (
            "sts",
            "sentence",
            "sentence1\tsentence2\tscore\na\tb\t1\nb\tc\t1\n",
            {},
            r"'score' holds only 1; a ranking",
        ),
        (
            "pairs",
            "sentence",
            "sentence1\tsentence2\tlabel\na\tb\t2\n",
            {},
            r"line 2: unknown label '2'; known labels",
        ),
        ("pairs", "sentence", "sentence1\tsentence2\tlabel\na\tb\t1\n", {}, r"'label' holds only 1; give pairs of b"),
        (
            "retrieval",
            "sentence",
            "query\tdocument\na\tb\nc\tb\n",
            {},
            r"dev\.tsv holds only one document; give at least",
        ),
        (
            "labels",
            "sequence",
            "text\tlabel\na\tmaybe\n",
            LABELS,
            r"line 2: unknown label 'maybe'; known labels: no, ",
        ),
        (
            "labels",
            "sequence",
            "text\tlabel\na\t2\n",
            LABELS,
            r"line 2: unknown label '2'; known labels: no, yes, 0, 1",
        ),
        ("labels", "sequence", "text\tlabel\na\tno\n", {}, r"the sequence model has no id2label"),
        (
            "labels",
            "sequence",
            "a\tb\tc\tlabel\na\tb\tc\tno\n",
            LABELS,
            r"name by calling them 'text' and 'text_pair' one or two of the columns a, b, c, label",
        ),
        (
            "labels",
            "sequence",
            "label\nno\n",
            LABELS,
            r"name by calling them 'text' and 'text_pair' one or two of the columns label",
        ),
        ("labels", "token", "tokens\ttags\na b\tno\n", LABELS, r"line 2: 2 words but 1 tags; give one tag per word"),
        (
            "labels",
            "token",
            "a\tb\ttags\na b\tc d\tno\n",
            LABELS,
            r"a, b hold text next to 'tags'; name the column of the words",
        ),
        ("squad", "span", "[]", {}, r"dev\.tsv holds list at its top, not an object"),
    ],
)
def test_files_that_do_not_serve_are_named(tmp_path, name, kind, content, arguments, message):
    path = tmp_path / "dev.tsv"
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_task(name, path, kind, **arguments)
    assert "\n" not in str(error.value)


def test_problem_types_that_sequences_do_not_have_are_refused(tmp_path):
    path = write(tmp_path / "dev.tsv", "text\tlabel\na\tno\n")
    with pytest.raises(
        ValueError, match="problem_type 'token_classification' is not one for sequences; choose among s"
    ):
        read_task("labels", path, "sequence", problem_type="token_classification", **LABELS)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (np.ones((3, 2)), r"outputs of shape \(3, 2\) for 9 rows; give one per row"),
        (np.float32(1), r"outputs of shape \(\) for 9 rows"),
        (np.ones(9), r"embeddings of shape \(9,\); give one row per text"),
        (np.full((9, 2), np.nan), r"sts \(dev\.tsv\): 18 of 18 outputs are not finite"),
    ],
)
def test_embeddings_that_are_none_are_refused(tmp_path, outputs, message):
    # 3 different first sentences and 6 second ones.
    task = read_task("sts", pairs_file(tmp_path / "dev.tsv", [1, 2, 3, 4, 5, 6]), "sentence")
    with pytest.raises(ValueError, match=message):
        score_task(task, lambda texts: outputs)


def test_logits_and_tags_of_another_shape_are_refused(tmp_path):
    task = read_task("labels", write(tmp_path / "dev.tsv", "text\tlabel\na\tno\nb\tyes\n"), "sequence", **LABELS)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\); give one per label, 2 in each row"):
        score_task(task, lambda texts, text_pairs: np.ones((2, 3)))
    regression = read_task(
        "labels", write(tmp_path / "r.tsv", "text\tlabel\na\t1\nb\t2\n"), "sequence", id2label={0: "a"}
    )
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 3\); regression needs one number per row"):
        score_task(regression, lambda texts, text_pairs: np.ones((2, 3)))
    tags = read_task("labels", write(tmp_path / "t.tsv", "tokens\ttags\na b\tno yes\n"), "token", **LABELS)
    with pytest.raises(ValueError, match="tags of 2 rows for 1; give tags for each row"):
        score_task(tags, lambda words: [[0], [0]])
    with pytest.raises(ValueError, match="3 tags for the 2 words of row 1"):
        score_task(tags, lambda words: [[0, 0, 0]])


# ---- Docstrings ----

BODY = (
    "The {0} that is given to this function must be in the order in which it was read.\n    All that is left of the "
    "{0} will be given back to you in the end.\n"
)
NOUNS = "lake river hill road town house tree stone cloud wind".split()


def docstring(noun, body=BODY):
    return (
        f'def f():\n    """Returns the {noun} that is next to the one before it.\n\n    {body.format(noun)}    """\n'
    )


def test_docstrings_give_pairs_of_first_sentence_and_body(tmp_path, monkeypatch):
    install = installer(tmp_path, monkeypatch)
    files = {f"{noun}.py": docstring(noun) for noun in NOUNS}
    # No body, no English, a copy, and one body for another first sentence.
    files["zz.py"] = '"""Returns the sea that is next to the one before it."""\n"""x = 1"""\n' + docstring("lake")
    files["zzz.py"] = docstring("field", BODY.format("lake")) + docstring("hill")
    install(files)
    task = docstring_retrieval(10, packages=["prosaic"])
    queries, documents = task.texts
    pairs = dict(zip(queries, documents, strict=True))
    assert len(pairs) == 10
    for noun in NOUNS:
        query = f"Returns the {noun} that is next to the one before it."
        if noun != "lake":
            assert pairs[query] == " ".join(BODY.format(noun).split())
    assert (task.title, task.metric, task.kind) == ("docstrings", "accuracy@1", "sentence")
    assert docstring_retrieval(10, packages=["prosaic"]) == task
    assert docstring_retrieval(5, seed=0, packages=["prosaic"]).texts[0] == queries[:5]
    assert docstring_retrieval(5, seed=1, packages=["prosaic"]).texts[0] != queries[:5]
    with pytest.raises(ValueError, match="10 of 11 pairs in the docstrings of 12 files; ask for fewer"):
        docstring_retrieval(11, packages=["prosaic"])
    with pytest.raises(ValueError, match="num_pairs is 1; it must be at least 2"):
        docstring_retrieval(1)
    words = {word: place for place, word in enumerate(NOUNS)}

    def encode_nouns(texts):
        return np.eye(11)[[next((words[w] for w in text.split() if w in words), 10) for text in texts]]

    assert score_task(task, encode_nouns).value >= 90


def test_a_file_gives_three_pairs_and_its_tests_none(tmp_path, monkeypatch):
    install = installer(tmp_path, monkeypatch)
    install({"a.py": "".join(map(docstring, NOUNS)), "tests/b.py": docstring("sea")})
    with pytest.raises(ValueError, match="3 of 4 pairs in the docstrings of 1 files"):
        docstring_retrieval(4, packages=["prosaic"])


def test_documents_are_sentences_of_the_default_corpus(tmp_path, monkeypatch):
    """Oracle: the reader of docstrings that pre-training uses."""
    install = installer(tmp_path, monkeypatch)
    install({f"{noun}.py": docstring(noun, BODY + "    >>> code\n\n    Not English: x\n") for noun in NOUNS})
    corpus = " ".join(document["text"] for document in docstring_documents(["prosaic"])).replace("\n", " ")
    task = docstring_retrieval(10, packages=["prosaic"])
    for query, document in zip(*task.texts, strict=True):
        assert query in corpus
        assert document in corpus


# ---- Real data ----


@pytest.mark.data
@pytest.mark.parametrize(("split", "num_rows"), [("dev", 1500), ("test", 1379)])
def test_stsb_is_read_and_scored(data_folder, split, num_rows):
    path = data_folder / "glue" / "STS-B" / f"{split}.tsv"
    task = read_task("stsb", path, "sentence")
    vectors = TfidfVectorizer().fit(task.texts[0] + task.texts[1])
    score = score_task(task, lambda texts: vectors.transform(texts).toarray())
    sides = [vectors.transform(column) for column in task.texts]
    cosines = sides[0].multiply(sides[1]).sum(axis=1).A1
    expected = spearmanr(cosines.round(9), task.truth).statistic
    assert score.num_examples == num_rows
    assert score.value == pytest.approx(100 * expected, abs=1e-6)
    assert 55 < score.value < 80


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "labels"),
    [
        ("SST-2/dev", ("NEGATIVE", "POSITIVE")),
        ("MNLI/dev_part", ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")),
        ("QNLI/dev", ("entailment", "not_entailment")),
        ("MRPC/dev", ("not_equivalent", "equivalent")),
    ],
)
def test_tasks_of_glue_are_read_as_labels(data_folder, file, labels):
    task = read_task("labels", data_folder / "glue" / f"{file}.tsv", "sequence", id2label=dict(enumerate(labels)))
    assert len(task.texts) == (1 if file.startswith("SST") else 2)
    score = score_task(task, lambda texts, text_pairs: np.eye(len(labels))[task.truth])
    assert score.value == 100
    assert score.num_examples == len(task.truth) > 400


@pytest.mark.data
def test_squad_answered_rightly_scores_everything(data_folder):
    task = read_task("squad", data_folder / "squad" / "dev-v2.0.json", "span")
    score = score_task(task, lambda squad: {name: (texts or [""])[0] for name, texts in squad.references.items()})
    assert score[1:4] == ("f1", 100, 11873)
