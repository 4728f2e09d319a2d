"""Fine-tune any encoder on sentences or pairs, using only transformers: a searched encoder needs nothing else.

    python examples/text_classification.py --model encoder --train-file train.csv --validation-file dev.csv \
        --output-dir classifier

The files are CSV with a column "label" (whole numbers) and one or two text columns, "sentence1" and "sentence2".
"""

import argparse

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder, or a name on the Hub")
    parser.add_argument("--train-file", required=True)
    parser.add_argument("--validation-file", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=3)
    # The folder contains the model's code, for machines without the package.
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args()


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of correct answers."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


def main() -> None:
    """Fine-tunes the model and saves it with its tokenizer."""
    options = parse_arguments()
    data = load_dataset("csv", data_files={"train": options.train_file, "validation": options.validation_file})
    columns = [name for name in ("sentence1", "sentence2") if name in data["train"].column_names]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoded = data.map(
        lambda rows: tokenizer(*(rows[name] for name in columns), truncation=True, max_length=options.max_length),
        batched=True,
        remove_columns=columns,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        num_labels=len(set(data["train"]["label"])),
        trust_remote_code=options.trust_remote_code,
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            options.output_dir,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            num_train_epochs=options.epochs,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
