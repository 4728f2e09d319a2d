"""Children trained one by one from scratch: the truth that the ranking of a super-net is held against (5.2)."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig, MagicForMaskedLM

from .data import MaskingCollator, PreparedData
from .evaluation import Batch, Evaluator, evaluate_child, validation_batches
from .hub import load_preset
from .journal import Journal, RankedChild
from .runs import fit_to_tokenizer, load_data, training_arguments
from .search_space import Architecture, SearchSpace
from .settings import DataSettings


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "embedding_size",
    "vocab_size",
    "hidden_dropout_prob",
    "initializer_range",
)


@dataclass(frozen=True)
class StandaloneSettings:
    """Which children are trained one by one, and how.

    Attributes:
        preset: sizes and candidate operators of the space.
        num_children: uniform children without repeats; 0 takes all of the space.
        sample_seed: of that draw.
        seeds: of weights, order of the data and masks; every child is trained once with each.
        num_validation_sequences: held-out sequences that children are judged on, the same for all.
        training_arguments: of the training of every child.
    """

    preset: str = "magic-micro"
    num_children: int = 0
    sample_seed: int = 0
    seeds: tuple[int, ...] = (0,)
    mlm_probability: float = 0.15
    num_validation_sequences: int = 256
    data: DataSettings = field(default_factory=DataSettings)
    training_arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StandaloneChild(RankedChild):
    """A child trained alone, and what that took.

    Attributes:
        seed: of weights, order of the data and masks.
        steps: optimizer steps.
        seconds: CPU time of its training, all threads of the process together.
        losses: validation loss after each quarter of the training.
    """

    seed: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()


def journal_path(output_dir: str | Path, seed: int) -> Path:
    """Returns the journal of the children that were trained with `seed`; every seed has one of its own."""
    return Path(output_dir) / f"standalone-{seed}.jsonl"


def standalone_children(settings: StandaloneSettings) -> tuple[MagicConfig, list[Architecture]]:
    """Returns the sizes and the children that `train_standalone` trains, in its order."""
    config = load_preset(settings.preset)
    space = SearchSpace.from_config(config.candidate_operators)
    rng = random.Random(settings.sample_seed)
    if settings.num_children == 0 or settings.num_children >= space.size:
        children = list(space.children())
        # A table that is stopped half-way is then a uniform sample.
        rng.shuffle(children)
        return config, children
    drawn: dict[Architecture, None] = {}
    while len(drawn) < settings.num_children:
        drawn[space.sample(rng)] = None
    return config, list(drawn)


def train_standalone(
    settings: StandaloneSettings, output_dir: str | Path, progress: bool = True
) -> list[StandaloneChild]:
    """Trains children one by one and returns them; each is on disk before the next one begins.

    A call that was stopped goes on where it was, and any number of processes may work on one folder: a child is
    trained by one of them, and again only where that one died.

    Args:
        settings: which children, and how.
        output_dir: holds a journal for each seed.

    Raises:
        ValueError: the folder holds children of another space, text or recipe.
    """
    hf_logging.disable_progress_bar()
    config, children = standalone_children(settings)
    data = load_data(settings.data)
    config = fit_to_tokenizer(config, data, settings.data.block_size)
    judge = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=0)
    args = _arguments(settings, output_dir, 0)
    batches = validation_batches(
        data.validation, judge, args.per_device_eval_batch_size, settings.num_validation_sequences
    )
    trained: list[StandaloneChild] = []
    for seed in settings.seeds:
        journal = Journal(journal_path(output_dir, seed), _key(settings, config, data, seed), StandaloneChild)
        jobs = tqdm(children, desc=f"children trained, seed {seed}", disable=not progress)
        waiting = [
            child for child in jobs if not _train_if_free(child, seed, settings, config, data, batches, journal)
        ]
        while waiting:
            time.sleep(1)
            journal.refresh()
            waiting = [
                child for child in waiting if not _train_if_free(child, seed, settings, config, data, batches, journal)
            ]
        trained += [record for child in children if (record := journal.get(child)) is not None]
    return trained


def _train_if_free(
    architecture: Architecture,
    seed: int,
    settings: StandaloneSettings,
    config: MagicConfig,
    data: PreparedData,
    batches: Sequence[Batch],
    journal: Journal,
) -> bool:
    """Trains a child unless it is on record, and returns whether it now is; false where another process trains it."""
    with journal.claim(architecture) as granted:
        if not granted:
            return False
        journal.refresh()
        if journal.get(architecture) is None:
            journal.append(_train(architecture, seed, settings, config, data, batches, journal.path.parent))
    return True


def _train(
    architecture: Architecture,
    seed: int,
    settings: StandaloneSettings,
    config: MagicConfig,
    data: PreparedData,
    batches: Sequence[Batch],
    output_dir: Path,
) -> StandaloneChild:
    set_seed(seed)
    child_config = config.child_config(architecture)
    child_config.sparse_prediction = True
    model = MagicForMaskedLM(child_config)
    curve = _Curve(batches)
    trainer = Trainer(
        model=model,
        args=_arguments(settings, output_dir, seed),
        train_dataset=data.train,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=seed),
        callbacks=[curve],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.pop_callback(ProgressCallback)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start - curve.seconds
    judged = Evaluator(model, batches)([architecture])[0]
    return StandaloneChild(
        architecture,
        judged.val_loss,
        judged.val_accuracy,
        judged.batch_losses,
        seed=seed,
        steps=trainer.state.global_step,
        seconds=round(seconds, 2),
        losses=tuple(curve.losses),
    )


class _Curve(TrainerCallback):
    """Validates the child after each quarter of its training but the last."""

    def __init__(self, batches: Sequence[Batch]):
        self._batches = batches
        self.losses: list[float] = []
        self.seconds = 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        quarter = max(state.max_steps // 4, 1)
        if state.global_step % quarter == 0 and state.global_step <= 3 * quarter:
            start = time.process_time()
            self.losses.append(evaluate_child(model, self._batches)[0])
            self.seconds += time.process_time() - start


def _arguments(settings: StandaloneSettings, output_dir: str | Path, seed: int) -> TrainingArguments:
    given = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    return training_arguments(
        TrainingArguments, Path(output_dir), {**settings.training_arguments, **given, "seed": seed}
    )


def _key(settings: StandaloneSettings, config: MagicConfig, data: PreparedData, seed: int) -> dict[str, Any]:
    return {
        "candidate_operators": config.candidate_operators,
        "data": data.fingerprint["sha256"],
        "seed": seed,
        "sizes": {name: getattr(config, name) for name in _SIZES},
        "recipe": {
            "mlm_probability": settings.mlm_probability,
            "num_validation_sequences": settings.num_validation_sequences,
            "block_size": settings.data.block_size,
            "training_arguments": settings.training_arguments,
        },
    }
