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

# Between two looks at the children that other processes are evaluating.
_POLL_SECONDS = 0.05


def validation_batches(
    dataset: Any, collator: Callable[[list[Any]], Batch], batch_size: int, num_sequences: int | None = None
) -> list[Batch]:
    """Returns the fixed validation slice: the first `num_sequences` examples, collated once, masks included.

    Args:
        dataset: examples in a fixed order, a map-style or an iterable data set.
        collator: makes a batch with `labels`; it is called here only, so that every child sees the same masks.
        batch_size: sequences in a batch; the last one may be smaller.
        num_sequences: `None` takes all.

    Raises:
        ValueError: the data set is empty.
    """
    examples: list[Any] = []
    for example in dataset:
        if num_sequences is not None and len(examples) >= num_sequences:
            break
        examples.append(example)
    if not examples:
        raise ValueError("the validation set is empty; give more text or a larger share of held-out documents")
    return [collator(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]


def judging_batches(data: PreparedData, mlm_probability: float, batch_size: int, num_sequences: int) -> list[Batch]:
    """Returns the masked validation batches that the models of a run are judged on.

    The masks do not depend on the run's seed, so that runs compare on the same tokens.
    """
    collator = MaskingCollator(data.tokenizer, mlm_probability=mlm_probability, seed=0)
    return validation_batches(data.validation, collator, batch_size, num_sequences)


def judging_record(
    accelerator: Accelerator, mlm_probability: float, batch_size: int, num_sequences: int | None, mask_seed: int = 0
) -> dict[str, Any]:
    """Returns what a masked LM's loss depends on beside weights and text, for `rescore`.

    Args:
        accelerator: that the batches are run with.
        mlm_probability: share of the tokens that are masked.
        batch_size: sequences in a batch; the masks depend on what a batch holds.
        num_sequences: of the held-out text, `None` for all.
        mask_seed: of the masks; `judging_batches` has 0.
    """
    return asdict(JudgedOn(mlm_probability, batch_size, num_sequences, mask_seed, accelerator.mixed_precision))


@contextmanager
def _validating(model: MagicPreTrainedModel, accelerator: Accelerator | None) -> Iterator[None]:
    """No gradients and no dropout; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        # In the precision of training, since the model's parts are called here and not the model that was prepared.
        with torch.no_grad(), accelerator.autocast() if accelerator else nullcontext():
            yield
    finally:
        model.train(was_training)


def _count_items(batches: Sequence[Batch], runner: ChildRunner) -> int:
    if not (number := sum(map(runner.num_items, batches))):
        raise ValueError("no token of the validation batches is to be predicted; give more text or mask more tokens")
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

    The model is run without dropout and left in the mode it was in; logits are computed at masked positions only.

    Args:
        model: a super-net, or a child of its own.
        batches: collated batches with `labels`, -100 where nothing is predicted; every rank passes all of them.
        architecture: the child; may be left out where the model holds only one.
        accelerator: spreads the batches over its processes; every process returns the same numbers.
        judge: what is measured in place of the masked-LM loss and its accuracy; it says what a batch holds beside
            what the embeddings read, and what the means are over.
        runner: of models that are no chains, in place of a `ChainRunner` with the judge.

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
    """Returns the distinct children among `architectures`, each evaluated once, the lowest validation loss first."""
    ranked = Evaluator(model, batches, accelerator, progress=progress, judge=judge, runner=runner)(architectures)
    return sorted(ranked, key=lambda child: (math.isnan(child.val_loss), child.val_loss, child.architecture))


# ---- Shared bottoms ----


def shared_layers(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns in how many layers, from the bottom up, two children run the same operators on the same states."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((layer for layer, (own, other) in pairs if own != other), min(len(first), len(second)))


def count_layer_evaluations(architectures: Iterable[Architecture]) -> int:
    """Returns the number of distinct prefixes of the children: the operators to run where shared bottoms run once."""
    return operator_evaluations(architectures).total()


def operator_evaluations(architectures: Iterable[Architecture]) -> Counter[str]:
    """Returns how often each operator has to be run for children whose shared bottoms run once."""
    ordered = sorted(set(architectures))
    return Counter(
        operator for last, child in pairwise([(), *ordered]) for operator in child[shared_layers(last, child) :]
    )


def _branch_depths(order: Sequence[Architecture]) -> list[tuple[int, ...]]:
    """For each child, the numbers of layers above which a later one of the order branches off, ascending."""
    depths: list[tuple[int, ...]] = [()] * len(order)
    for index in range(len(order) - 2, -1, -1):
        shared = shared_layers(order[index], order[index + 1])
        depths[index] = (*(depth for depth in depths[index + 1] if depth < shared), shared)
    return depths


class SharedBottoms:
    """Runs children in turn over all validation batches, each from the deepest states it shares with those before.

    States are kept at the depths where a later child branches off: at most one for each layer and batch, whatever the
    number of children.
    """

    def __init__(self, runner: ChildRunner, batches: Sequence[Batch], max_kept_bytes: int):
        """Prepares the batches; to be made and used without gradients, with the model in evaluation mode."""
        self._runner = runner
        self._prepared = [runner.prepare(batch) for batch in batches]
        self._max_depths = max_kept_bytes // runner.state_bytes(batches)
        self.forget()

    def forget(self) -> None:
        """Frees the states that are kept."""
        self._last: Architecture = ()
        self._kept: dict[int, list[Any]] = {}

    def run(self, child: Architecture, branch_depths: Sequence[int]) -> tuple[list[list[float]], int]:
        """Returns for each batch the summed loss and second score, and how many layers were run.

        Args:
            child: what to run.
            branch_depths: the depths to keep states at, ascending; where memory ends, the deepest are given up.
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
            # States that no later child needs are free from here on, as those of other depths take their place.
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
    """Contiguous pieces of the order, equal in length up to one child, the longer ones first."""
    size, longer = divmod(len(order), num_pieces)
    starts = [size * index + min(index, longer) for index in range(num_pieces + 1)]
    return [order[start:end] for start, end in pairwise(starts)]


def _weights_version(model: MagicPreTrainedModel) -> tuple[Any, ...]:
    """What changes when the weights are trained, loaded or moved."""
    # Tensors made in inference mode have no writes to count; they cannot be trained either.
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
    """Returns what the validation losses of children depend on: the key of their journal."""
    return {
        "weights": _fingerprint(sorted(model.state_dict().items())),
        "data": _fingerprint(
            (f"{index} {name}", tensor) for index, batch in enumerate(batches) for name, tensor in _tensors_of(batch)
        ),
        "candidate_operators": model.config.candidate_operators,
        "precision": accelerator.mixed_precision if accelerator else "no",
    }


def _tensors_of(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a batch by name, those of a mapping within it as well."""
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
    """Validates children with the weights of one super-net, each once, with what they share computed once.

    Children are run in the order of their prefixes, so that a bottom which several share is computed once. With an
    accelerator of several processes each takes a contiguous piece of that order; processes that know nothing of one
    another share the work through the journal. Every child is on record before the next begins.

    Attributes:
        num_evaluated: children that were run, on all ranks; not those that the journal knew or others ran.
        num_layer_evaluations: operators that were run for them, each over the whole validation slice.

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
        """Takes the weights that the model has now; make another evaluator when they have changed.

        Args:
            model: a super-net.
            batches: collated batches with `labels`, -100 where nothing is predicted; every rank passes all of them.
            accelerator: spreads the children over its processes; every process returns the same numbers.
            journal: what was evaluated is read from this file and what is evaluated is written to it.
            progress: shows a bar with the best loss so far.
            max_kept_bytes: of hidden states that later children start from; with less, some layers are run again.
            judge: as for `evaluate_child`. What it depends on beside weights and batches is no part of the journal's
                key.
            runner: as for `evaluate_child`.

        Raises:
            ValueError: there is nothing to predict, or the journal is damaged or of other weights or data.
        """
        runner = runner or ChainRunner(model, judge)
        self._num_items = _count_items(batches, runner)
        self._model, self._accelerator = model, accelerator
        self._rank = accelerator.process_index if accelerator else 0
        self._world_size = accelerator.num_processes if accelerator else 1
        self._has_journal = journal is not None
        # The main process alone reads and writes it.
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
        """Returns the distinct children among `architectures`, in the order given; those not known yet are run.

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
                        # All that is left is with other processes. One that is killed leaves its child to this one.
                        time.sleep(_POLL_SECONDS)
        finally:
            self._bottoms.forget()
        return [self._known[child] for child in wanted]

    def _left(self, wanted: Sequence[Architecture], bar: tqdm) -> list[Architecture]:
        """Learns what the journal knows and returns the children that it does not, in the order to run them in."""
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
        # A loss that is no number is below nothing.
        if record.val_loss < self._best:
            self._best = record.val_loss
        bar.set_postfix(best_loss=f"{self._best:.4f}", refresh=False)
        bar.update()

    def _run(self, order: Sequence[Architecture], bar: tqdm) -> bool:
        """Runs the children that no other process is running; returns whether it got anywhere."""
        pieces = _pieces(order, self._world_size)
        branch_depths = _branch_depths(pieces[self._rank])
        num_evaluated = self.num_evaluated
        for index in range(len(pieces[0])):
            children = [piece[index] if index < len(piece) else None for piece in pieces]
            with ExitStack() as claims:
                granted, has_met_another = self._claim(children, claims)
                if has_met_another and self._may_turn:
                    # Another process works at this end of the order; from the other one, both share long prefixes.
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
        """Returns the children without those that another process is running, and whether there are any.

        Those that another process has put on record by now are left out as well.
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
            # Only now: a child may have been put on record just before its claim came free.
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
        """The main process's value, on every rank."""
        values = [value]
        if self._world_size > 1:
            broadcast_object_list(values)
        return values[0]

    def _from_all(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        return gather_object([value]) if self._world_size > 1 else [value]
