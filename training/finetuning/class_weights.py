"""Class weights in the training loss: how they follow from the request, and the weighted loss."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .settings import BALANCED, MULTI_LABEL, SINGLE_LABEL
from .tasks import Task


def find_class_weights(task: Task, rows: Dataset, asked: str | Mapping[str, float]) -> dict[str, float]:
    """Returns the weight of each class by its name, in the order of the classes.

    Balanced weights are those of scikit-learn: rows / (classes * rows of the class). With several labels per row it is
    the weight of the rows that have the label, like torch's `pos_weight`: rows without the label / rows with it. A
    class that is in no row, or a label that is in every row, has the weight 1.

    Args:
        task: a task with one class or several labels per row.
        rows: rows of the training split, with a column "label".
        asked: "balanced", or weights by name; classes without a weight get 1.

    Raises:
        ValueError: the task is of another kind, or has no class of that name.
    """
    if task.problem_type not in (SINGLE_LABEL, MULTI_LABEL):
        raise ValueError(
            f"class_weights are for the classification of texts, but {task.title} is a task of {task.problem_type}; "
            f"remove class_weights"
        )
    if not isinstance(asked, str):
        unknown = [name for name in asked if name not in task.labels]
        if unknown:
            raise ValueError(
                f"class_weights names {unknown[0]!r}, but the classes of {task.title} are {', '.join(task.labels)}"
            )
        return {name: float(asked.get(name, 1.0)) for name in task.labels}
    assert asked == BALANCED
    labels = np.asarray(rows["label"][:])
    if task.problem_type == MULTI_LABEL:
        counts = labels.sum(axis=0)
        wanted = len(labels) - counts
    else:
        counts = np.bincount(labels, minlength=task.num_labels)
        wanted = np.full(task.num_labels, len(labels) / (counts > 0).sum())
    weights = [want / count if want and count else 1.0 for want, count in zip(wanted, counts, strict=True)]
    return dict(zip(task.labels, map(float, weights), strict=True))


def sum_of_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """Returns the divisor that makes a mean of `weighted_loss_sum`, as in torch: the sum of the rows' class weights.

    With several labels per row it is the number of labels, whatever their weights.

    Args:
        labels: class ids (batch,), or 0 and 1 for each label (batch, num_labels).
        weights: class weights, (num_labels,).
    """
    if labels.ndim == 2:
        return weights.new_tensor(labels.numel())
    return weights.to(labels.device)[labels].sum()


def weighted_loss_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Returns the cross-entropy with class weights, summed over a batch.

    Args:
        logits: (batch, num_labels).
        labels: class ids (batch,), or 0 and 1 for each label (batch, num_labels).
        weights: class weights, (num_labels,).
    """
    weights, logits = weights.to(logits.device), logits.float()
    if labels.ndim == 2:
        return binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
    return cross_entropy(logits, labels, weight=weights, reduction="sum")
