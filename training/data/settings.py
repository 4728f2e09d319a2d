"""Where the text comes from."""

from dataclasses import dataclass

from ..options import Settings, option


# What a document is in a text file.
DOCUMENTS = ("block", "line", "file")


@dataclass(frozen=True)
class DataSettings(Settings):
    """Where the text comes from and how it is cut into blocks; the keys of `data` in a recipe."""

    source: str | None = option(
        None,
        flag="--text",
        help="A file or folder of text (.txt, packed or not) or of rows with text (.jsonl, .parquet and others), or a "
        "`datasets` name. Default: docstrings of installed packages.",
    )
    dataset_config: str | None = option(None, help="The configuration of the data set that `source` names.")
    split: str = option("train", help="The split of the data set that `source` names.")
    text_column: str = option("text", help="The column of data files and data sets that holds the text.")
    document: str | None = option(
        None,
        choices=DOCUMENTS,
        help="What a document is in .txt files: a block of lines between blank lines, a line or a file. Default: a "
        "block; with hardly any blank lines a line, or a file where there are many short ones or lines are wrapped.",
    )
    streaming: bool = option(False, help="Read the data set while training instead of preparing it on disk.")
    max_documents: int | None = option(None, at_least=1, help="Documents to read. Default: all.")
    tokenizer: str | None = option(
        None, flag="--tokenizer", help="A tokenizer's name or folder. Default: one is trained on the text."
    )
    vocab_size: int = option(
        8192, at_least=1, unit="tokens", help="Vocabulary of a tokenizer that is trained on the text."
    )
    lowercase: bool = option(True, help="Whether a tokenizer trained on the text lowercases it.")
    strip_accents: bool | None = option(
        None,
        help="Whether a tokenizer that is trained on the text strips the marks of letters, vowel signs included. "
        "Default: with `lowercase`, where that changes at most 0.5% of the letters.",
    )
    character_coverage: float = option(
        0.9995,
        above=0,
        at_most=1,
        help="Share of the text's characters that the alphabet of a tokenizer trained on it has; a word with another "
        "character is [UNK].",
    )
    block_size: int | None = option(
        None,
        at_least=8,
        unit="tokens",
        help="Length of a training sequence. Default: 128 or the most that model, teacher and tokenizer take, "
        "whichever is shorter.",
    )
    validation_fraction: float = option(
        0.02, above=0, below=1, help="Share of the documents that is held out for validation."
    )
    seed: int = option(0, help="Seed of the split into training and validation documents.")
