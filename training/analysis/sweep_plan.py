"""What all comparisons of ways to train super-nets check: a folder for each, the same seeds, no shrinking."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from ..options import Settings
from ..runs.recipes import settings_from
from ..supernet.arguments import MagicTrainingArguments
from ..supernet.setup import check_effects
from .ranking_run import file_name


SUPERNETS_FOLDER = "supernets"

Plan = Mapping[str, Mapping[str, Any]]
SupernetSettings = TypeVar("SupernetSettings", bound=Settings)


def check_plan(plan: Plan, training_arguments: Mapping[str, Any]) -> None:
    """Checks what can be told from names alone.

    Args:
        plan: the training arguments that each way changes, by name.
        training_arguments: those that all share.

    Raises:
        ValueError: two ways have the same folder, or a seed is given.
    """
    folders: dict[str, str] = {}
    for name, change in plan.items():
        if (other := folders.setdefault(file_name(name), name)) != name:
            raise ValueError(f"{other!r} and {name!r} would have the same folder; rename one")
        if "seed" in change:
            raise ValueError(f"{name} sets the seed, but all super-nets have the same seeds; give them in seeds")
    if "seed" in training_arguments:
        raise ValueError("training_arguments sets the seed, but seeds gives those of the super-nets; set it there")


def check_way(name: str, change: Mapping[str, Any], args: MagicTrainingArguments, equal_compute: bool) -> None:
    """Checks one way to train a super-net.

    Args:
        name: its name in messages.
        change: the training arguments that it changes.
        args: all of its training arguments.
        equal_compute: whether its number of steps follows from that of the first way.

    Raises:
        ValueError: it shrinks, changes its steps although they follow from others, or sets an argument without effect.
    """
    check_effects(change, args)
    if args.shrink:
        raise ValueError(f"{name} shrinks its super-nets, so children are not ranked alike; remove shrink")
    if equal_compute and {"max_steps", "num_train_epochs"} & change.keys():
        raise ValueError(f"equal_compute sets the steps of {name}; give max_steps once, in training_arguments")


def supernet_settings(shared: SupernetSettings, change: Mapping[str, Any], seed: int) -> SupernetSettings:
    """Returns the settings of one super-net: the shared ones with other training arguments and a seed."""
    given: dict[str, Any] = asdict(shared)  # type: ignore[call-overload]
    given["training_arguments"] = {**given["training_arguments"], **change, "seed": seed}
    return settings_from(type(shared), given)
