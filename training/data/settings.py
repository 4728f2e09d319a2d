"""Settings of the text to train on."""

from dataclasses import dataclass

from ..options import Settings, option


# The ways to divide a text file into documents.
DOCUMENTS = ("block", "line", "file")


@dataclass(frozen=True)
class DataSettings(Settings):
    """The source of the text and how it is cut into blocks; the keys of `data` in a recipe."""

    source: str | None = option(
        None,
        flag="--text",
        help="File or folder with text (.txt, compressed or not) or with rows of text (.jsonl, .parquet and others), "
        "or the name of a data set for `datasets`. Default: docstrings of installed packages.",
    )
    dataset_config: str | None = option(None, help="Configuration of the data set named by `source`.")
    split: str = option("train", help="Split of the data set named by `source`.")
    text_column: str = option("text", help="Column that holds the text, in data files and data sets.")
    document: str | None = option(
        None,
        choices=DOCUMENTS,
        help="Unit that forms a document in .txt files: a block of lines between blank lines, a line, or a file. "
        "Default: a block; if there are hardly any blank lines, a line, or a file if there are several short files "
        "or lines are wrapped.",
    )
    streaming: bool = option(False, help="Read the data set during training instead of preparing it on disk.")
    max_documents: int | None = option(None, at_least=1, help="Largest number of documents to read. Default: all.")
    tokenizer: str | None = option(
        None, flag="--tokenizer", help="Name or folder of a tokenizer. Default: train one on the text."
    )
    vocab_size: int = option(
        8192, at_least=1, unit="tokens", help="Vocabulary size of a tokenizer trained on the text."
    )
    lowercase: bool = option(True, help="Whether a tokenizer trained on the text lowercases it.")
    strip_accents: bool | None = option(
        None,
        help="Whether a tokenizer trained on the text strips the marks of letters, including vowel signs. "
        "Default: yes if `lowercase` is set and stripping changes at most 0.5% of the letters.",
    )
    character_coverage: float = option(
        0.9995,
        above=0,
        at_most=1,
        help="Share of the text's characters covered by the alphabet of a tokenizer trained on it; a word with any "
        "other character becomes [UNK].",
    )
    block_size: int | None = option(
        None,
        at_least=8,
        unit="tokens",
        help="Length of a training sequence. Default: 128, or less if the model, teacher or tokenizer allows less.",
    )
    validation_fraction: float = option(0.02, above=0, below=1, help="Share of the documents held out for validation.")
    seed: int = option(0, help="Seed for the split into training and validation documents.")
