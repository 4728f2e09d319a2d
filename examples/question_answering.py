"""Fine-tune any encoder on questions with answers in a context, using only transformers.

    python examples/question_answering.py --model encoder --train-file train.json --output-dir reader

The file is JSON lines with "question", "context", "answer" and "answer_start", the position of the answer's first
character in the context.
"""

import argparse

from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder, or a name on the Hub")
    parser.add_argument("--train-file", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2)
    # The folder contains the model's code, for machines without the package.
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args()


def windows(rows: dict, tokenizer, max_length: int, stride: int) -> dict:
    """Returns overlapping windows over the contexts, each with the positions of the answer's first and last token.

    In a window that does not contain the whole answer, both are 0, the position of [CLS].
    """
    encoded = tokenizer(
        rows["question"],
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )
    encoded["start_positions"], encoded["end_positions"] = [], []
    offsets = encoded.pop("offset_mapping")
    for window, row in enumerate(encoded.pop("overflow_to_sample_mapping")):
        first = rows["answer_start"][row]
        last = first + len(rows["answer"][row]) - 1
        spans = list(zip(encoded.sequence_ids(window), offsets[window], strict=True))
        start, end = (
            [token for token, (part, (begin, stop)) in enumerate(spans) if part == 1 and begin <= character < stop]
            for character in (first, last)
        )
        inside = bool(start and end)
        encoded["start_positions"].append(start[0] if inside else 0)
        encoded["end_positions"].append(end[0] if inside else 0)
    return encoded


def main() -> None:
    """Fine-tunes the model and saves it with its tokenizer."""
    options = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = load_dataset("json", data_files=options.train_file, split="train")
    encoded = data.map(
        windows,
        batched=True,
        remove_columns=data.column_names,
        fn_kwargs={"tokenizer": tokenizer, "max_length": options.max_length, "stride": options.stride},
    )
    model = AutoModelForQuestionAnswering.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            options.output_dir,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=options.epochs,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=encoded,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    print(trainer.train().metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
