"""Where the text comes from."""

from dataclasses import dataclass

from ..options import Settings, option


@dataclass(frozen=True)
class DataSettings(Settings):
    """Where the text comes from and how it is cut into blocks; the keys of `data` in a recipe."""

    source: str | None = option(
        None,
        flag="--text",
        help="A text file, a folder of text files or a `datasets` name. Default: docstrings of installed packages.",
    )
    dataset_config: str | None = option(None, help="The configuration of the data set that `source` names.")
    split: str = option("train", help="The split of the data set that `source` names.")
    text_column: str = option("text", help="The column of a data set that holds the text.")
    streaming: bool = option(False, help="Read the data set while training instead of preparing it on disk.")
    max_documents: int | None = option(None, at_least=1, help="Documents to read. Default: all.")
    tokenizer: str | None = option(
        None, flag="--tokenizer", help="A tokenizer's name or folder. Default: one is trained on the text."
    )
    vocab_size: int = option(
        8192, at_least=1, unit="tokens", help="Vocabulary of a tokenizer that is trained on the text."
    )
    block_size: int = option(128, at_least=8, unit="tokens", help="Length of a training sequence.")
    validation_fraction: float = option(
        0.02, above=0, below=1, help="Share of the documents that is held out for validation."
    )
    seed: int = option(0, help="Seed of the split into training and validation documents.")
