"""Calibration: each new operator alone learns what the checkpoint's layer does, block by block.

Operator o of layer n gets the teacher's H_(n-1) and learns its H_n. No gradient leaves an operator, so that one pass
of the teacher serves all operators of all layers, and their errors, which are comparable across layers, add up to a
cheap judgement of children (Puzzle, arXiv 2411.19146).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from modeling_magic.configuration_magic import SKIP
from modeling_magic.modeling_magic import MagicPreTrainedModel

from .teacher_objectives import Batch
from .teaching import Autocast


# An operator of a super-net: its layer and its name.
Place = tuple[int, str]


def calibrate(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    places: Sequence[Place],
    batches: Iterable[Batch],
    num_steps: int,
    learning_rate: float,
    autocast: Autocast,
    progress: bool = False,
) -> None:
    """Trains operators on the teacher's states, each on its own, for `num_steps` steps with a linear decay.

    Args:
        supernet: changed in place, at `places` alone.
        teacher: the checkpoint as a chain, in evaluation mode.
        places: the operators.
        batches: of text, as many as steps or more.
        num_steps: 0 does nothing.
        learning_rate: at the start; it falls to 0.
        autocast: precision of both passes.
        progress: shows a bar.
    """
    if not num_steps:
        return
    operators = {place: _operator(supernet, place) for place in places}
    parameters = [weight for operator in operators.values() for weight in operator.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    steps = iter(batches)
    for _ in tqdm(range(num_steps), desc="calibration", unit="step", leave=False, disable=not progress):
        batch = next(steps)
        with autocast():
            losses = _local_errors(teacher, operators, batch)
            total = torch.stack(list(losses.values())).sum()
        # Outside of autocast, as ever.
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def local_errors(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    batches: Sequence[Batch],
    autocast: Autocast,
) -> list[dict[str, float]]:
    """Returns for each layer the error of each operator that it offers, SKIP's and the checkpoint's own included.

    The error is the mean squared distance of the operator's output to the teacher's H_n, over the mean squared
    distance of H_n to its mean: about 0 for the checkpoint's own operator, about 1 for a constant.

    Args:
        supernet: after `calibrate`.
        teacher: the checkpoint as a chain.
        batches: of held-out text.
        autocast: precision of both passes.
    """
    candidates = supernet.config.candidate_operators
    operators = {
        (layer, name): _operator(supernet, (layer, name)) for layer, names in enumerate(candidates) for name in names
    }
    sums = dict.fromkeys(operators, 0.0)
    for batch in batches:
        with autocast():
            for place, error in _local_errors(teacher, operators, batch).items():
                sums[place] += float(error)
    return [{name: sums[layer, name] / len(batches) for name in names} for layer, names in enumerate(candidates)]


def _operator(supernet: Any, place: Place) -> Any:
    layer, name = place
    return supernet.base_model.encoder.layer[layer].operators[name]


def _local_errors(teacher: Any, operators: dict[Place, Any], batch: Batch) -> dict[Place, Tensor]:
    """Returns the relative squared error of each operator on the states of one batch."""
    encoder, device = teacher.base_model, teacher.device
    given = batch.get("attention_mask")
    with torch.no_grad():
        inputs = {name: batch[name].to(device) for name in ("input_ids", "token_type_ids") if name in batch}
        given = None if given is None else given.to(device)
        states = encoder(**inputs, attention_mask=given, output_hidden_states=True).hidden_states
        masks = encoder.attention_masks(states[0], given)
    tokens = torch.ones_like(batch["input_ids"], dtype=torch.bool) if given is None else given.bool()
    errors = {}
    for (layer, name), operator in operators.items():
        output = states[layer] if name == SKIP else operator(states[layer], *masks)[0]
        target = states[layer + 1].float()[tokens]
        spread = (target - target.mean(dim=0)).square().mean()
        errors[layer, name] = (output.float()[tokens] - target).square().mean() / spread
    return errors


def additive_error(errors: Sequence[dict[str, float]]) -> Callable[[Sequence[str]], float]:
    """Returns the sum of its operators' errors as a function of a child."""
    return lambda architecture: sum(layer[name] for layer, name in zip(errors, architecture, strict=True))
