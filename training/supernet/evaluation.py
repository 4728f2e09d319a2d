"""Validation of children with the weights of one super-net: one child, or many that share their lower layers."""

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from itertools import pairwise
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..bars import progress_bar
from ..data.text import MaskingCollator, PreparedData
from ..hub.rescore import JudgedOn
from ..internals import num_writes
from ..space.search_space import Architecture
from .journal import Journal, RankedChild
from .runners import Batch, ChainRunner, ChildRunner, Judge


T = TypeVar("T")

# Time between two checks for the children that other processes are evaluating.
_POLL_SECONDS = 0.05


def validation_batches(
    dataset: Any, collator: Callable[[list[Any]], Batch], batch_size: int, num_sequences: int | None = None
) -> list[Batch]:
    """Returns the fixed validation slice: the first `num_sequences` examples, collated once, including masks.

    Args:
        dataset: a map-style or iterable data set with examples in a fixed order.
        collator: makes a batch with `labels`; it is called only here, so every child sees the same masks.
        batch_size: sequences per batch; the last batch may be smaller.
        num_sequences: number of examples to take; `None` takes all.

    Raises:
        ValueError: the data set is empty.
    """
    examples: list[Any] = []
    for example in dataset:
        if num_sequences is not None and len(examples) >= num_sequences:
            break
        examples.append(example)
    if not examples:
        raise ValueError("the validation set is empty; provide more text or a larger share of held-out documents")
    return [collator(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]


def judging_batches(data: PreparedData, mlm_probability: float, batch_size: int, num_sequences: int) -> list[Batch]:
    """Returns the masked validation batches on which the models of a run are evaluated.

    The masks do not depend on the run's seed, so runs are compared on the same tokens.
    """
    collator = MaskingCollator(data.tokenizer, mlm_probability=mlm_probability, seed=0)
    return validation_batches(data.validation, collator, batch_size, num_sequences)


def judging_record(
    accelerator: Accelerator, mlm_probability: float, batch_size: int, num_sequences: int | None, mask_seed: int = 0
) -> dict[str, Any]:
    """Returns what a masked LM's loss depends on besides weights and text, for `rescore`.

    Args:
        accelerator: the accelerator with which the batches are run.
        mlm_probability: share of the tokens that are masked.
        batch_size: sequences per batch; the masks depend on the contents of a batch.
        num_sequences: number of held-out sequences, `None` for all.
        mask_seed: seed of the masks; 0 in `judging_batches`.
    """
    return asdict(JudgedOn(mlm_probability, batch_size, num_sequences, mask_seed, accelerator.mixed_precision))


@contextmanager
def _validating(model: MagicPreTrainedModel, accelerator: Accelerator | None) -> Iterator[None]:
    """Disables gradients and dropout; restores the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        # Autocast gives the precision of training: the model's parts are called directly, not the prepared model.
        with torch.no_grad(), accelerator.autocast() if accelerator else nullcontext():
            yield
    finally:
        model.train(was_training)


def _count_items(batches: Sequence[Batch], runner: ChildRunner) -> int:
    if not (number := sum(map(runner.num_items, batches))):
        raise ValueError("the validation batches have no token to predict; provide more text or mask more tokens")
    return number


def evaluate_child(
    model: MagicPreTrainedModel,
    batches: Sequence[Batch],
    architecture: Sequence[str] | None = None,
    accelerator: Accelerator | None = None,
    judge: Judge | None = None,
    runner: ChildRunner | None = None,
) -> tuple[float, float]:
    """Returns validation loss and accuracy of one child, each a mean over the masked tokens of all batches.

    The model is run without dropout and its mode is restored; logits are computed at masked positions only.

    Args:
        model: a super-net, or an extracted child.
        batches: collated batches with `labels`, -100 at positions that are not predicted; every rank passes all of
            them.
        architecture: the child; may be omitted if the model has only one.
        accelerator: spreads the batches over its processes; every process returns the same numbers.
        judge: scores children instead of masked-LM loss and accuracy; it determines what a batch contains besides the
            inputs of the embeddings, and what the means are over.
        runner: runner for models that are not chains, instead of a `ChainRunner` with the judge.

    Raises:
        ValueError: there is nothing to predict.
    """
    runner = runner or ChainRunner(model, judge)
    number = _count_items(batches, runner)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums = torch.zeros(2, dtype=torch.float64)
    with _validating(model, accelerator):
        for batch in batches[rank::world_size]:
            sums += runner.sums_of_batch(batch, architecture).cpu().double()
    if accelerator is not None and world_size > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
    loss, score = sums.tolist()
    return loss / number, score / number


def rank_children(
    model: MagicPreTrainedModel,
    batches: Sequence[Batch],
    architectures: Iterable[Architecture],
    accelerator: Accelerator | None = None,
    progress: bool = False,
    judge: Judge | None = None,
    runner: ChildRunner | None = None,
) -> list[RankedChild]:
    """Returns the distinct children among `architectures`, each evaluated once, by ascending validation loss."""
    ranked = Evaluator(model, batches, accelerator, progress=progress, judge=judge, runner=runner)(architectures)
    return sorted(ranked, key=lambda child: (math.isnan(child.val_loss), child.val_loss, child.architecture))


# ---- Shared bottoms ----


def shared_layers(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the number of layers, from the bottom up, in which two children run the same operators."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((layer for layer, (own, other) in pairs if own != other), min(len(first), len(second)))


def count_layer_evaluations(architectures: Iterable[Architecture]) -> int:
    """Returns the number of distinct prefixes of the children: the operators to run if shared bottoms run once."""
    return operator_evaluations(architectures).total()


def operator_evaluations(architectures: Iterable[Architecture]) -> Counter[str]:
    """Returns how often each operator has to be run if the children's shared bottoms run once."""
    ordered = sorted(set(architectures))
    return Counter(
        operator for last, child in pairwise([(), *ordered]) for operator in child[shared_layers(last, child) :]
    )


def _branch_depths(order: Sequence[Architecture]) -> list[tuple[int, ...]]:
    """Returns, for each child, the depths at which later children in the order branch off, ascending."""
    depths: list[tuple[int, ...]] = [()] * len(order)
    for index in range(len(order) - 2, -1, -1):
        shared = shared_layers(order[index], order[index + 1])
        depths[index] = (*(depth for depth in depths[index + 1] if depth < shared), shared)
    return depths


class SharedBottoms:
    """Runs children in turn over all validation batches, each from the deepest states shared with earlier children.

    States are kept at the depths where a later child branches off: at most one per layer and batch, whatever the
    number of children.
    """

    def __init__(self, runner: ChildRunner, batches: Sequence[Batch], max_kept_bytes: int):
        """Prepares the batches. Create and use it without gradients and with the model in evaluation mode."""
        self._runner = runner
        self._prepared = [runner.prepare(batch) for batch in batches]
        self._max_depths = max_kept_bytes // runner.state_bytes(batches)
        self.forget()

    def forget(self) -> None:
        """Frees the kept states."""
        self._last: Architecture = ()
        self._kept: dict[int, list[Any]] = {}

    def run(self, child: Architecture, branch_depths: Sequence[int]) -> tuple[list[list[float]], int]:
        """Returns the summed loss and second score of each batch, and the number of layers that were run.

        Args:
            child: the child to run.
            branch_depths: the depths at which to keep states, ascending; the deepest are dropped if memory runs out.
        """
        wanted = set(branch_depths[: self._max_depths])
        shared = shared_layers(self._last, child)
        start = max((depth for depth in self._kept if depth <= shared), default=0)
        bottoms = list(reversed(self._kept.get(start, [])))
        kept = {depth: states for depth, states in self._kept.items() if depth <= start and depth in wanted}
        self.forget()
        new: dict[int, list[Any]] = {depth: [] for depth in wanted if depth >= start and depth not in kept}
        sums = []
        for prepared in self._prepared:
            # From here on, states that no later child needs are freed, while those of other depths take their place.
            states = bottoms.pop() if bottoms else self._runner.embed(prepared)
            for depth, operator in enumerate(child[start:], start):
                if depth in new:
                    new[depth].append(states)
                states = self._runner.run_layer(prepared, states, depth, operator)
            sums.append(self._runner.sums(prepared, states, child))
        self._last, self._kept = child, kept | new
        return torch.stack(sums).tolist(), len(child) - start


# ---- Many children ----


def _pieces(order: Sequence[Architecture], num_pieces: int) -> list[Sequence[Architecture]]:
    """Returns contiguous pieces of the order whose lengths differ by at most one child, the longer ones first."""
    size, longer = divmod(len(order), num_pieces)
    starts = [size * index + min(index, longer) for index in range(num_pieces + 1)]
    return [order[start:end] for start, end in pairwise(starts)]


def _weights_version(model: MagicPreTrainedModel) -> tuple[Any, ...]:
    """Returns a value that changes when the weights are trained, loaded or moved."""
    # Tensors made in inference mode have no write counter, but they cannot be trained either.
    return model.device, sum(map(num_writes, model.parameters()))


def _fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def journal_key(
    model: MagicPreTrainedModel, batches: Sequence[Batch], accelerator: Accelerator | None = None
) -> dict[str, Any]:
    """Returns the key of a journal: everything that the validation losses of children depend on."""
    return {
        "weights": _fingerprint(sorted(model.state_dict().items())),
        "data": _fingerprint(
            (f"{index} {name}", tensor) for index, batch in enumerate(batches) for name, tensor in _tensors_of(batch)
        ),
        "candidate_operators": model.config.candidate_operators,
        "precision": accelerator.mixed_precision if accelerator else "no",
    }


def _tensors_of(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a batch by name, including those of nested mappings."""
    for name, value in sorted(batch.items()):
        if isinstance(value, Mapping):
            yield from _tensors_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _open_journal(journal: Journal | str | os.PathLike, key: dict[str, Any]) -> Journal:
    if not isinstance(journal, Journal):
        return Journal(journal, key)
    journal.check_key(key)
    return journal


class Evaluator:
    """Validates children with the weights of one super-net, each child and each shared bottom only once.

    Children are run in the order of their prefixes, so a bottom that several children share is computed once. With an
    accelerator of several processes, each process takes a contiguous piece of that order; independent processes share
    the work through the journal. Every child is recorded before the next one begins.

    Attributes:
        num_evaluated: number of children that were run, on all ranks, without those that were read from the journal or
            run by other processes.
        num_layer_evaluations: number of operators run for them, each over the whole validation slice.

    Example:
    ```python
    >>> evaluate = Evaluator(supernet, batches, journal="run/journal.jsonl")
    >>> best = min(evaluate(space.sample(rng) for _ in range(100)), key=lambda child: child.val_loss)
    ```
    """

    def __init__(
        self,
        model: MagicPreTrainedModel,
        batches: Sequence[Batch],
        accelerator: Accelerator | None = None,
        journal: Journal | str | os.PathLike | None = None,
        progress: bool = False,
        max_kept_bytes: int = 2 * 2**30,
        judge: Judge | None = None,
        runner: ChildRunner | None = None,
    ):
        """Uses the current weights of the model; make another evaluator when they have changed.

        Args:
            model: a super-net.
            batches: collated batches with `labels`, -100 at positions that are not predicted; every rank passes all
                of them.
            accelerator: spreads the children over its processes; every process returns the same numbers.
            journal: file from which past evaluations are read and to which new ones are written.
            progress: whether to show a progress bar with the best loss so far.
            max_kept_bytes: limit on the hidden states kept for later children; with less, some layers are run again.
            judge: as for `evaluate_child`. Anything it depends on besides weights and batches is not part of the
                journal's key.
            runner: as for `evaluate_child`.

        Raises:
            ValueError: there is nothing to predict, or the journal is damaged or belongs to other weights or data.
        """
        runner = runner or ChainRunner(model, judge)
        self._num_items = _count_items(batches, runner)
        self._model, self._accelerator = model, accelerator
        self._rank = accelerator.process_index if accelerator else 0
        self._world_size = accelerator.num_processes if accelerator else 1
        self._has_journal = journal is not None
        # Only the main process reads and writes it.
        self._journal = None
        if journal is not None and not self._rank:
            self._journal = _open_journal(journal, journal_key(model, batches, accelerator))
        with _validating(model, accelerator):
            self._bottoms = SharedBottoms(runner, batches, max_kept_bytes)
        self._weights = _weights_version(model)
        self._known: dict[Architecture, RankedChild] = {}
        self._best = math.inf
        self._walks_backwards, self._may_turn = False, True
        self._shows_progress = progress and not self._rank
        self.num_evaluated = 0
        self.num_layer_evaluations = 0

    def __call__(self, architectures: Iterable[Architecture]) -> list[RankedChild]:
        """Returns the distinct children among `architectures`, in the given order; those not yet known are run.

        Raises:
            ValueError: an architecture does not fit the model, or the weights have changed.
        """
        wanted = list(dict.fromkeys(tuple(child) for child in architectures))
        for child in wanted:
            self._model.resolve_architecture(child)
        if _weights_version(self._model) != self._weights:
            raise ValueError(
                "the model's weights have changed or moved since the evaluator was made; make another one"
            )
        known = sum(child in self._known for child in wanted)
        bar = progress_bar(
            total=len(wanted), initial=known, desc="children", leave=False, disable=not self._shows_progress
        )
        try:
            with bar, _validating(self._model, self._accelerator):
                while order := self._left(wanted, bar):
                    if not self._run(order, bar):
                        # Other processes are running all that is left. If one is killed, this one takes its child.
                        time.sleep(_POLL_SECONDS)
        finally:
            self._bottoms.forget()
        return [self._known[child] for child in wanted]

    def _left(self, wanted: Sequence[Architecture], bar: tqdm) -> list[Architecture]:
        """Reads the journal and returns the children that are still unknown, in the order to run them in."""
        if self._has_journal:
            unknown = [child for child in wanted if child not in self._known]
            for record in self._from_main(self._on_record(unknown)):
                self._learn(record, bar)
        return sorted(set(wanted) - self._known.keys(), reverse=self._walks_backwards)

    def _on_record(self, children: Iterable[Architecture]) -> list[RankedChild]:
        if self._journal is None:
            return []
        self._journal.refresh()
        records = (self._journal.get(child) for child in children)
        return [record for record in records if record is not None]

    def _learn(self, record: RankedChild, bar: tqdm) -> None:
        self._known[record.architecture] = record
        # NaN is not below anything.
        if record.val_loss < self._best:
            self._best = record.val_loss
        bar.set_postfix(best_loss=f"{self._best:.4f}", refresh=False)
        bar.update()

    def _run(self, order: Sequence[Architecture], bar: tqdm) -> bool:
        """Runs the children that no other process is running; returns whether there was progress."""
        pieces = _pieces(order, self._world_size)
        branch_depths = _branch_depths(pieces[self._rank])
        num_evaluated = self.num_evaluated
        for index in range(len(pieces[0])):
            children = [piece[index] if index < len(piece) else None for piece in pieces]
            with ExitStack() as claims:
                granted, has_met_another = self._claim(children, claims)
                if has_met_another and self._may_turn:
                    # Another process works at this end of the order. From the other end, both share long prefixes.
                    self._walks_backwards, self._may_turn = not self._walks_backwards, False
                    return True
                own = granted[self._rank]
                for done in self._from_all(None if own is None else self._evaluate(own, branch_depths[index])):
                    if done is not None:
                        self._record(*done, bar)
        return self.num_evaluated > num_evaluated

    def _claim(
        self, children: Sequence[Architecture | None], claims: ExitStack
    ) -> tuple[Sequence[Architecture | None], bool]:
        """Returns the children without those that other processes are running, and whether there are any of those.

        Children that another process has recorded in the meantime are excluded as well.
        """
        if not self._has_journal:
            return children, False
        granted: list[Architecture | None] = []
        has_met_another = False
        if self._journal is not None:
            for child in children:
                is_granted = child is not None and claims.enter_context(self._journal.claim(child))
                has_met_another |= child is not None and not is_granted
                granted.append(child if is_granted else None)
            # Only now, since a child may have been recorded just before its claim was released.
            self._journal.refresh()
            granted = [None if child is None or self._journal.get(child) else child for child in granted]
        return self._from_main((granted, has_met_another))

    def _evaluate(self, child: Architecture, branch_depths: Sequence[int]) -> tuple[RankedChild, int]:
        sums, num_layers = self._bottoms.run(child, branch_depths)
        losses, scores = zip(*sums, strict=True)
        return RankedChild(child, sum(losses) / self._num_items, sum(scores) / self._num_items, losses), num_layers

    def _record(self, child: RankedChild, num_layers: int, bar: tqdm) -> None:
        if self._journal is not None:
            self._journal.append(child)
        self._learn(child, bar)
        self._may_turn = True
        self.num_evaluated += 1
        self.num_layer_evaluations += num_layers

    # ---- Several ranks ----

    def _from_main(self, value: T) -> T:
        """Returns the main process's value on every rank."""
        values = [value]
        if self._world_size > 1:
            broadcast_object_list(values)
        return values[0]

    def _from_all(self, value: T) -> list[T]:
        """Returns the values of all ranks on every rank."""
        return gather_object([value]) if self._world_size > 1 else [value]
