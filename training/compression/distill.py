"""Distilling children from the checkpoint, the controls at the compute of the child that was found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from modeling_magic import MagicConfig
from modeling_magic.configuration_magic import SKIP
from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..files import read_json, write_json, written_at_once
from ..progress import show_progress
from ..runs.folders import MODEL_FOLDER
from ..runs.training import finish_training
from ..space.costs import operator_flops
from ..space.search_space import Architecture
from .teacher_trainers import ChildTrainer, freeze_embeddings
from .workbench import Workbench, load_model, start_supernet, training_arguments


DISTILLED_NAME = "distilled.json"
# A backward pass costs as much as two forward passes.
_TRAINING_PASSES = 3


class Compute:
    """FLOPs ("electra") of the parts of a compression; the embeddings, which are frozen, are left out.

    Args:
        config: sizes.
        tokens_per_sentence: the mean length of the text.
        batch_size: sentences in a step of any training.
    """

    def __init__(self, config: MagicConfig, tokens_per_sentence: float, batch_size: int):
        self._config = config
        self._length = max(2, min(round(tokens_per_sentence), config.max_sequence_length))
        self._batch_size = batch_size

    def operator(self, name: str) -> float:
        """Returns the FLOPs of one operator's forward pass over one sentence."""
        return operator_flops(name, self._config, self._length)

    def child(self, architecture: Sequence[str]) -> float:
        """Returns the FLOPs of a child's forward pass over one sentence."""
        return sum(map(self.operator, architecture))

    def step(self, architecture: Sequence[str]) -> float:
        """Returns the FLOPs of a training step of a child."""
        return _TRAINING_PASSES * self._batch_size * self.child(architecture)

    def calibration(self, chain: Sequence[str], candidates: Sequence[Sequence[str]], steps: int) -> float:
        """Returns the FLOPs of the calibration: a pass of the checkpoint, and a step of each new operator."""
        new = sum(
            self.operator(name)
            for own, names in zip(chain, candidates, strict=True)
            for name in names
            if name not in (own, SKIP)
        )
        return steps * self._batch_size * (self.child(chain) + _TRAINING_PASSES * new)

    def supernet(self, visits: Sequence[dict[str, int]]) -> float:
        """Returns the FLOPs of a super-net's training, from how often each operator was trained."""
        trained = sum(times * self.operator(name) for layer in visits for name, times in layer.items())
        return _TRAINING_PASSES * self._batch_size * trained

    def equal_steps(self, architecture: Sequence[str], flops: float) -> int:
        """Returns the steps of a child's training that cost as much as `flops`, one at least."""
        return max(1, round(flops / self.step(architecture)))


def distill(
    bench: Workbench, architecture: Architecture, steps: int, folder: Path, progress: bool, seed: int | None = None
) -> MagicPreTrainedModel:
    """Returns a child that was distilled from the checkpoint, from its calibrated weights.

    Its weights, and how they came about, are kept in the folder; a training that was stopped goes on.

    Args:
        bench: of the run.
        architecture: the child, with its SKIPs.
        steps: of the training.
        folder: of this training alone.
        progress: shows a bar.
        seed: of the order of the text; `None` is that of the settings.
    """
    settings = bench.settings
    seed = settings.seed if seed is None else seed
    record = {"architecture": list(architecture), "steps": steps, "seed": seed}
    path = folder / DISTILLED_NAME
    if not path.is_file() or {**read_json(path), **record} != read_json(path):
        model = start_supernet(bench, progress).extract_child(architecture)
        freeze_embeddings(model)
        set_seed(seed)
        trainer = _trainer(bench, model, steps, folder, seed, progress)
        seconds = finish_training(trainer)
        if bench.accelerator.is_main_process:
            with written_at_once(folder / MODEL_FOLDER, replaces=True) as temporary:
                model.save_pretrained(temporary)
            write_json(path, {**record, "seconds": seconds, "log_history": trainer.state.log_history})
        bench.accelerator.wait_for_everyone()
    return load_model(bench, folder / MODEL_FOLDER)


def _trainer(
    bench: Workbench, model: MagicPreTrainedModel, steps: int, folder: Path, seed: int, progress: bool
) -> ChildTrainer:
    settings = bench.settings
    args: Any = training_arguments(
        bench, folder, steps, settings.learning_rate, TrainingArguments, seed=seed, disable_tqdm=not progress
    )
    trainer = ChildTrainer(
        model=model,
        args=args,
        objective=bench.objective,
        teacher=bench.teacher,
        states_weight=settings.states_weight,
        train_dataset=bench.train,
        data_collator=bench.outputs.collate,
    )
    show_progress(trainer, ["loss_teacher", "loss_states"])
    return trainer
