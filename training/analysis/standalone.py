"""Children trained one by one from scratch: the truth that the ranking of a super-net is compared with (5.2)."""

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from modeling_magic import MagicConfig, MagicForMaskedLM

from ..bars import progress_bar
from ..data.text import MaskingCollator, PreparedData, load_data
from ..files import make_output_folder, write_json
from ..hub.presets import load_preset
from ..runs.folders import bars_off, versions
from ..runs.training import pretraining_arguments, settle_length, tell_training
from ..space.search_space import Architecture, SearchSpace, format_architecture, parse_architecture
from ..supernet.evaluation import Batch, Evaluator, evaluate_child, judging_batches
from ..supernet.journal import Journal
from ..supernet.setup import fit_to_text
from .settings import StandaloneSettings
from .truth import STANDALONE_NAME, StandaloneChild, has_standalone, holds_named, journal_path


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "embedding_size",
    "vocab_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "hidden_act",
    "lm_head_activation",
    "layer_norm_eps",
    "padding_aware_positions",
    "tie_word_embeddings",
)

# Time between two checks of the children that other processes are training.
_POLL_SECONDS = 1.0
# Variables in which torchrun and accelerate launch describe the other processes. With them, Trainer would train one
# model on all processes.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def check_standalone(settings: StandaloneSettings) -> None:
    """Checks the settings, as far as that needs no text.

    Raises:
        ValueError: the preset or a training argument is rejected.
    """
    standalone_children(settings)
    _arguments(settings, "", 0)


def standalone_children(settings: StandaloneSettings) -> tuple[MagicConfig, list[Architecture]]:
    """Returns the sizes and the children that `train_standalone` trains, in its order.

    Raises:
        ValueError: the preset is unknown, or a named child is not in the space, or is named twice.
    """
    config = load_preset(settings.preset)
    space = SearchSpace.from_config(config.candidate_operators)
    if settings.architectures:
        return config, _named_children(settings.architectures, space)
    rng = random.Random(settings.sample_seed)
    if settings.num_children == 0 or settings.num_children >= space.size:
        children = list(space.children())
        # Shuffled, so that a table stopped half-way is a uniform sample.
        rng.shuffle(children)
        return config, children
    return config, space.sample_distinct(settings.num_children, rng)


def _named_children(architectures: Sequence[str], space: SearchSpace) -> list[Architecture]:
    named: dict[Architecture, None] = {}
    for text in architectures:
        child = parse_architecture(text)
        space.check(child)
        if child in named:
            raise ValueError(f"architectures names {format_architecture(child)} twice; name each once")
        named[child] = None
    return list(named)


@bars_off()
def train_standalone(
    settings: StandaloneSettings, output_dir: str | Path, progress: bool = True
) -> list[StandaloneChild]:
    """Trains children one by one and returns them. Each is on disk before the next begins.

    A stopped call resumes where it was, and any number of processes may work on one folder: each child is trained by
    one of them, and again only if that process dies. The same holds for the ranks of `accelerate launch`, on one
    machine or on several with a common folder: each trains its own children on its own device.

    Args:
        settings: which children to train, and how.
        output_dir: a folder for a journal per seed, and the settings and versions of the first call.
        progress: whether to show a bar of the children on record, with the best loss so far.

    Raises:
        ValueError: the settings contradict one another, or the folder holds children of another space, text or recipe.
    """
    with _apart_from_other_ranks():
        # Making training arguments would wait for the other ranks as well.
        check_standalone(settings)
        worker = StandaloneWorker(settings, output_dir)
        trained: list[StandaloneChild] = []
        for seed in settings.seeds:
            bar = progress_bar(total=len(worker.children), desc=f"children trained, seed {seed}", disable=not progress)
            with bar:
                _train_all(worker, seed, bar)
            trained += worker.trained(seed)
    return trained


def _train_all(worker: "StandaloneWorker", seed: int, bar: tqdm) -> None:
    """Trains the children that no other process trains, and waits for the rest. If one is killed, takes its child."""
    waiting, best = list(worker.children), float("inf")
    while waiting:
        left = []
        for child in waiting:
            if not worker.train(child, seed):
                left.append(child)
                continue
            record = worker.record(child, seed)
            # NaN is not below any number.
            if record is not None and record.val_loss < best:
                best = record.val_loss
            bar.set_postfix(best_loss=f"{best:.4f}", refresh=False)
            bar.update()
        if len(left) == len(waiting):
            time.sleep(_POLL_SECONDS)
        waiting = left


@contextmanager
def _apart_from_other_ranks() -> Iterator[None]:
    """Hides the other processes, and all accelerators but this process's own, from Trainer and torch."""
    hidden = {name: value for name, value in os.environ.items() if name in _LAUNCHER}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if int(hidden.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in hidden:
        visible = (given or "").split(",")
        rank = int(hidden["LOCAL_RANK"])
        # CUDA reads this when the first tensor goes to a device, which has not happened yet.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank % len(visible)] if visible != [""] else str(rank)
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
        if given is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = given


class StandaloneWorker:
    """Trains the children of a folder one at a time. Any number of workers, each in its own process, may share it.

    Attributes:
        children: all children to train, in the order of `standalone_children`.
    """

    @bars_off()
    def __init__(self, settings: StandaloneSettings, output_dir: str | Path):
        """Reads the text and opens the folder's journals.

        Raises:
            ValueError: the folder holds children of another space, text or recipe, or it holds uniform children while
                the settings name theirs, or vice versa.
        """
        self._settings, self._output_dir = settings, Path(output_dir)
        config, self.children = standalone_children(settings)
        self._data = load_data(settings.data, config.max_sequence_length)
        self._config = fit_to_text(config, self._data)
        args = _arguments(settings, output_dir, 0, self._data)
        tell_training(args, self._data)
        self._batches = judging_batches(
            self._data, settings.mlm_probability, args.per_device_eval_batch_size, settings.num_validation_sequences
        )
        make_output_folder(self._output_dir)
        with FileLock(self._output_dir / f"{STANDALONE_NAME}.lock"):
            # Before journals are made, so that a refused call leaves none of another recipe in the folder of a truth.
            self._check_kind()
            if not has_standalone(self._output_dir):
                self._describe()
        self._journals = {
            seed: Journal(
                journal_path(output_dir, seed), _key(settings, self._config, self._data, seed), StandaloneChild
            )
            for seed in settings.seeds
        }
        # For journals that were copied here without the description, now that they are known to match these settings.
        self._describe()

    def _describe(self) -> None:
        path = self._output_dir / STANDALONE_NAME
        if not path.is_file():
            facts = {"settings": asdict(self._settings), "corpus": self._data.fingerprint, "versions": versions()}
            write_json(path, facts)

    def _check_kind(self) -> None:
        """Refuses to mix named with uniform children: a ranking reads the whole folder, and they would bias it."""
        if not has_standalone(self._output_dir):
            return
        held = "named" if holds_named(self._output_dir) else "uniform"
        wanted = "named" if self._settings.architectures else "uniform"
        if held != wanted:
            raise ValueError(
                f"{self._output_dir} holds {held} children; train {wanted} ones in a separate folder, with another "
                f"--output-dir"
            )

    def train(self, architecture: Architecture, seed: int) -> bool:
        """Trains a child unless it is on record. Returns whether it now is: false if another process trains it."""
        journal = self._journals[seed]
        with journal.claim(architecture) as granted:
            if not granted:
                return False
            # Refreshed under the claim: the child may have been recorded just before its claim was released.
            journal.refresh()
            if journal.get(architecture) is None:
                journal.append(_train(architecture, seed, self._settings, self._config, self._data, self._batches))
        return True

    def record(self, architecture: Architecture, seed: int) -> StandaloneChild | None:
        """Returns the record of a child, `None` if the journal, as last read, has none."""
        return self._journals[seed].get(architecture)

    def trained(self, seed: int) -> list[StandaloneChild]:
        """Returns the children on record with `seed`, including those trained by other processes."""
        self._journals[seed].refresh()
        return [record for child in self.children if (record := self.record(child, seed)) is not None]


def _train(
    architecture: Architecture,
    seed: int,
    settings: StandaloneSettings,
    config: MagicConfig,
    data: PreparedData,
    batches: Sequence[Batch],
) -> StandaloneChild:
    set_seed(seed)
    child_config = config.child_config(architecture)
    child_config.sparse_prediction = True
    model = MagicForMaskedLM(child_config)
    curve = _Curve(batches)
    trainer = Trainer(
        model=model,
        # Nothing is saved, so the folder is irrelevant.
        args=_arguments(settings, "", seed, data),
        train_dataset=data.train,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=seed),
        callbacks=[curve],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.pop_callback(ProgressCallback)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start - curve.seconds
    judged = Evaluator(model, batches)([model.config.chain])[0]
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


def _arguments(
    settings: StandaloneSettings, output_dir: str | Path, seed: int, data: PreparedData | None = None
) -> TrainingArguments:
    """Returns the training arguments of a child. With `data`, the length of the training is settled too."""
    if (report_to := settings.training_arguments.get("report_to")) not in (None, "none", ["none"]):
        raise ValueError(
            f"training_arguments: report_to is {report_to!r}, but children trained alone log nothing; remove it"
        )
    given = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    given = {**settings.training_arguments, **given, "seed": seed}
    hidden_size = load_preset(settings.preset).hidden_size
    args = pretraining_arguments(TrainingArguments, Path(output_dir), given, hidden_size)
    if data is not None:
        settle_length(args, settings.training_arguments, data)
    return args


def _key(settings: StandaloneSettings, config: MagicConfig, data: PreparedData, seed: int) -> dict[str, Any]:
    return {
        "candidate_operators": config.candidate_operators,
        "data": data.fingerprint["sha256"],
        "tokenizer": data.fingerprint["tokenizer"],
        "seed": seed,
        "sizes": {name: getattr(config, name) for name in _SIZES},
        "recipe": {
            "mlm_probability": settings.mlm_probability,
            "num_validation_sequences": settings.num_validation_sequences,
            "block_size": data.block_size,
            "training_arguments": settings.training_arguments,
        },
    }
