"""The default corpus: docstrings of installed packages, stripped to their sentences."""

import re
import sys

import pytest
from toy_packages import installer

from training.data import docstrings
from training.data.docstrings import docstring_documents, docstring_sentences, reads_as_english


@pytest.fixture
def package(tmp_path, monkeypatch):
    return installer(tmp_path, monkeypatch)


SPHINX = """
    Computes the mean of :class:`~torch.Tensor` rows, as :func:`the reference <numpy.mean>` does. It is
    *much* faster than a loop over ``rows`` [1]_ in almost all of the cases.

    .. note::
        The result is of the same type as the input, which may be surprising.

    .. math::
        \\mu = the sum of all of the values that are in the row

        over the number of the values that are in the row.

    :param x: The rows that are to be averaged, as an array.

    An example of what this is good for is given here::

        # The comment of the example is not a sentence of the text.
        The output of the example is not to be taken for prose.

        The literal block goes on after a blank line of its own.

    Notes
    -----
    This paragraph stands under a heading and has to be kept.

    .. [1] A reference that is not to be found in the corpus at all.
    """
NUMPY = """Return the values that are sorted along the given axis.

    Parameters
    ----------
    a, b : array_like, optional
        The array that is to be sorted, which is not changed.
    axis : int
        Axis along which to sort. If it is None, the array is flattened before sorting.

    >>> the_result_of(the, call)
    This is the output of the call, and it is not prose.

    | this is | a row of the table that | is not kept |
    """
GOOGLE = """Loads a model from a folder that was written by the trainer.

    Args:
        path (`str` or [`Path`], *optional*): The folder that holds the weights of the model. It
            has to be there before this is called (see [the guide](https://example.org/guide)).
        strict: Whether it is an error if a weight is missing in the file.

    ```python
    model = load("this is not a sentence of the corpus, it is code.")
    ```

    - The first item of the list is a sentence as well.
    - The second item of the list is not to be joined to it.
    """


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            SPHINX,
            [
                "Computes the mean of Tensor rows, as the reference does.",
                "It is much faster than a loop over rows in almost all of the cases.",
                "The result is of the same type as the input, which may be surprising.",
                "The rows that are to be averaged, as an array.",
                "An example of what this is good for is given here:",
                "This paragraph stands under a heading and has to be kept.",
            ],
        ),
        (
            NUMPY,
            [
                "Return the values that are sorted along the given axis.",
                "The array that is to be sorted, which is not changed.",
                "Axis along which to sort.",
                "If it is None, the array is flattened before sorting.",
            ],
        ),
        (
            GOOGLE,
            [
                "Loads a model from a folder that was written by the trainer.",
                "The folder that holds the weights of the model.",
                "It has to be there before this is called (see the guide).",
                "Whether it is an error if a weight is missing in the file.",
                "The first item of the list is a sentence as well.",
                "The second item of the list is not to be joined to it.",
            ],
        ),
    ],
    ids=["sphinx", "numpy", "google"],
)
def test_docstrings_are_stripped_to_their_sentences(docstring, expected):
    found = [sentence for paragraph in docstring_sentences(docstring) for sentence in paragraph]
    assert [sentence for sentence in found if sentence in expected or reads_as_english(sentence)] == expected


def test_abbreviations_do_not_end_a_sentence():
    text = "Any mapping will do, e.g. The one of the caller, i.e. A dictionary. The rest is not read."
    assert list(docstring_sentences(text)) == [[text[:67], "The rest is not read."]]


@pytest.mark.parametrize(
    "sentence",
    [
        "The quick brown fox jumps over the lazy dog.",
        "Is it an error if the file does not exist (see below)?",
        "The arguments are the same as those of the function, which are:",
    ],
)
def test_prose_reads_as_english(sentence):
    assert reads_as_english(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "the quick brown fox jumps over the lazy dog.",  # the rest of a sentence
        "The quick brown fox jumps over the lazy dog",  # the beginning of one
        "The name of the file.",  # too short
        "Numerical Optimization, Nocedal, Wright, Springer, New York, second edition.",  # no stop words
        "The value of x[0] is the sum of the others in the row.",  # code
        "The result is x = y + z for all of the values that are given.",
        "The sizes are 1 2 3 4 5 6 7 8 9 10 and the rest is 0.",  # figures
        "The end " + "of the line " * 40 + "is far.",  # too long
    ],
)
def test_other_text_does_not_read_as_english(sentence):
    assert not reads_as_english(sentence)


def test_docstrings_of_a_package_are_found_in_order_without_importing_it(package):
    first = "The first sentence of the file is a good one."
    second = "The other sentence of the file is not so bad."
    package(
        {
            "b.py": f'raise SystemExit("imported")\n"""{second}"""\n',
            "a.py": f"def f():\n    '''{first}'''\ndef g():\n    '''{second} {second}\n\n    {first}'''\n",
            "c.py": f'"""{first}"""',
            "d.py": b'"""The caf\xe9 of the town is not to be read as it is."""',
            "tests/e.py": '"""This is the sentence of a test, which is left out."""',
            "f.txt": '"""This is the sentence of a file that is not Python."""',
        }
    )
    # Of b.py and c.py nothing is left: no sentence comes twice.
    assert docstring_documents(["prosaic"]) == [{"text": f"{first}\n{second}", "source": "prosaic"}]
    assert "prosaic" not in sys.modules


def test_documents_follow_package_and_path(package):
    package({f"{name}.py": f'"""This is the sentence of the file that is called {name}."""' for name in "bca"})
    documents = docstring_documents(["prosaic", "evaluate"])
    sources = [document["source"] for document in documents]
    assert sources == sorted(sources)
    assert set(sources) == {"evaluate", "prosaic"}
    assert [document["text"][-2] for document in documents if document["source"] == "prosaic"] == ["a", "b", "c"]


def test_corpus_is_cached_by_version(package, tmp_path):
    cache = tmp_path / "cache"
    package({"a.py": '"""This is the sentence of the first version of it."""'})
    first = docstring_documents(["prosaic"], cache)
    package({"a.py": '"""This is the sentence of the second version of it."""'})
    assert docstring_documents(["prosaic"], cache) == first
    package({}, version="2.0")
    package({"a.py": '"""This is the sentence of the second version of it."""'}, version="2.0")
    assert docstring_documents(["prosaic"], cache) != first
    assert len(list(cache.iterdir())) == 2


def test_corpus_names_packages_it_cannot_read(package):
    package({"a.py": "'''Nothing.'''"})
    with pytest.raises(ValueError, match=r"'no-such-package' is not installed; install it or omit it"):
        docstring_documents(["numpy", "no-such-package"])
    with pytest.raises(ValueError, match=r"no English in the docstrings of prosaic; name packages with more text"):
        docstring_documents(["prosaic"])


def sentences_of(documents):
    for document in documents:
        for line in document["text"].split("\n"):
            yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z\"'(])", line)


def assert_reads_like_english(documents):
    text = "\n".join(document["text"] for document in documents)
    assert not re.search(r">>>|^\.\.\. |```|::$|:\w+:`|----|====|\\|^def |\|", text, re.MULTILINE)
    assert sum(character.isalpha() or character.isspace() for character in text) > 0.93 * len(text)
    words = re.findall(r"[a-z]+", text.lower())
    assert sum(word in {"the", "a", "of", "to", "is", "in", "and", "for", "be", "that"} for word in words) > 0.2 * len(
        words
    )


def test_corpus_of_numpy_is_english():
    documents = docstring_documents(["numpy"])
    sentences = list(sentences_of(documents))
    assert len(sentences) > 3000
    assert_reads_like_english(documents)
    whole = [line for document in documents for line in document["text"].split("\n")]
    assert len(whole) == len(set(whole))


@pytest.mark.slow
def test_default_corpus_is_large_and_english():
    documents = docstring_documents()
    sentences = list(sentences_of(documents))
    assert len(set(sentences)) > 100_000
    assert sum(len(document["text"].split()) for document in documents) > 1_500_000
    assert {"torch", "transformers", "scipy", "numpy", "pandas", "datasets", "python"} <= {
        d["source"] for d in documents
    }
    assert_reads_like_english(documents)


def test_cache_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "here"))
    assert docstrings.cache_folder(None) == tmp_path / "here"
    assert docstrings.cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("MAGIC_CACHE")
    assert docstrings.cache_folder(None).parts[-2:] == (".cache", "magic-nas")
