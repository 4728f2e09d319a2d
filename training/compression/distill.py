"""Distilling children from the checkpoint, the controls at the compute of the found child."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import TrainingArguments

from modeling_magic import MagicConfig
from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..progress import show_progress
from ..runs.training import finish_training
from ..space.costs import operator_flops
from ..space.search_space import Architecture
from .settings import CompressSettings
from .teacher_trainers import ChildTrainer, freeze_embeddings
from .workbench import (
    Workbench,
    keep_trained,
    load_trained,
    start_supernet,
    training_arguments,
)


DISTILLED_NAME = "distilled.json"
# A backward pass costs as much as two forward passes.
_TRAINING_PASSES = 3


class Compute:
    """FLOPs ("electra") of the parts of a compression, without heads and without embeddings, which are frozen.

    Args:
        config: the checkpoint's configuration.
        settings: settings of the run.
        tokens_per_sentence: mean length of the text.
        num_processes: number of processes; each takes one batch per training step.
    """

    def __init__(
        self, config: MagicConfig, settings: CompressSettings, tokens_per_sentence: float, num_processes: int = 1
    ):
        self._config, self._settings = config, settings
        self._length = max(2, min(round(tokens_per_sentence), config.max_sequence_length))
        self._step_sentences = settings.batch_size * num_processes

    def operator(self, name: str) -> float:
        """Returns the FLOPs of one operator's forward pass over one sentence."""
        return operator_flops(name, self._config, self._length)

    def child(self, architecture: Sequence[str]) -> float:
        """Returns the FLOPs of a child's forward pass over one sentence."""
        return sum(map(self.operator, architecture))

    def calibration(self, candidates: Sequence[Sequence[str]]) -> float:
        """Returns the FLOPs of the calibration: passes of the checkpoint, and steps of each new operator.

        Args:
            candidates: operators of each layer of the super-net.
        """
        new = sum(
            self.operator(name)
            for own, names in zip(self._config.chain, candidates, strict=True)
            for name in names
            if name != own
        )
        passes = self.child(self._config.chain) + _TRAINING_PASSES * new
        return self._settings.calibration_steps * self._settings.batch_size * passes

    def supernet(self, visits: Sequence[dict[str, int]]) -> float:
        """Returns the FLOPs of a super-net's training, including the teacher's if children are aligned to it.

        Args:
            visits: for each layer, how often each operator was trained.
        """
        trained = sum(times * self.operator(name) for layer in visits for name, times in layer.items())
        flops = _TRAINING_PASSES * trained
        if self._settings.alignment == "checkpoint":
            flops += sum(visits[0].values()) * self.child(self._config.chain)
        return self._step_sentences * flops

    def judging(self, passes: Mapping[str, int], num_sentences: int) -> float:
        """Returns the FLOPs of judging children on `num_sentences` sentences.

        Args:
            passes: how often each operator ran over all of the sentences.
            num_sentences: number of sentences that children are judged on.
        """
        return num_sentences * sum(times * self.operator(name) for name, times in passes.items())

    def step(self, architecture: Sequence[str]) -> float:
        """Returns the FLOPs of a step of a child's distillation, including the teacher's if states are compared."""
        flops = _TRAINING_PASSES * self.child(architecture)
        if self._settings.states_weight:
            flops += self.child(self._config.chain)
        return self._step_sentences * flops

    def equal_steps(self, architecture: Sequence[str], flops: float) -> int:
        """Returns the number of a child's distillation steps that cost as much as `flops`, at least one."""
        return max(1, round(flops / self.step(architecture)))


def distill(
    bench: Workbench, architecture: Architecture, steps: int, folder: Path, progress: bool
) -> MagicPreTrainedModel:
    """Returns a child distilled from the checkpoint, beginning with its calibrated weights.

    The folder keeps its weights and a record of the training. A stopped training resumes, and a finished one is not
    repeated.

    Args:
        bench: workbench of the run.
        architecture: the child, with its SKIPs.
        steps: number of training steps.
        folder: a folder for this training alone.
        progress: whether to show a bar.
    """
    if not bench.is_file(folder / DISTILLED_NAME):
        _distill(bench, architecture, steps, folder, progress)
    return load_trained(bench, folder)


def _distill(bench: Workbench, architecture: Architecture, steps: int, folder: Path, progress: bool) -> None:
    settings = bench.settings
    model = start_supernet(bench, progress).extract_child(architecture)
    freeze_embeddings(model)
    trainer = ChildTrainer(
        model=model,
        args=training_arguments(bench, TrainingArguments, folder, steps, settings.learning_rate, progress),
        objective=bench.objective,
        teacher=bench.teacher,
        states_weight=settings.states_weight,
        labels_weight=settings.labels_weight,
        train_dataset=bench.train,
        data_collator=bench.train_outputs.collate,
    )
    show_progress(trainer, ["loss_checkpoint", "loss_states"])
    seconds = finish_training(trainer)
    record = {
        "architecture": list(architecture),
        "steps": steps,
        "seconds": seconds,
        "log_history": trainer.state.log_history,
    }
    keep_trained(bench, trainer, DISTILLED_NAME, record)
