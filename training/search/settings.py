"""Settings of a search."""

from dataclasses import dataclass

from ..data.settings import DataSettings
from ..options import Settings, option
from ..runs.settings import mlm_probability_option, validation_option
from ..space.settings import BudgetSettings


SEARCHERS = ("evolution", "random", "pareto")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class SearchSettings(Settings):
    """Settings of a search; the keys of a recipe for `magic-nas search`."""

    command = "search"

    supernet: str = option("", help="A finished super-net run, or the folder of a super-net.")
    searcher: str = option(
        "evolution",
        flag="--searcher",
        choices=SEARCHERS,
        help="How children are proposed: evolution, random, or pareto (loss against the costs that the budget limits, "
        "or against parameters if it limits none).",
    )
    num_evaluations: int = option(
        500,
        flag="--num-evaluations",
        at_least=1,
        unit="children",
        help="Children that the searcher evaluates; the same number of random children is evaluated as a control.",
    )
    population_size: int = option(
        50,
        at_least=1,
        unit="children",
        help="Children of the first generation, and survivors of each later one. Random search: children per batch.",
    )
    num_validation_sequences: int = validation_option()
    batch_size: int = option(16, at_least=1, unit="sequences", help="Size of a validation batch.")
    mlm_probability: float = mlm_probability_option()
    precision: str = option("no", choices=PRECISIONS, help="Precision of the evaluation; no means float32.")
    seed: int = option(0, flag="--seed", help="Seed of the searcher and of random search.")
    full_space: bool = option(
        False, help="Search all operators of the super-net, including those that shrinking has deleted."
    )
    journal: str | None = option(
        None,
        flag="--journal",
        is_path=True,
        help="File in which evaluations are recorded; searches of one super-net may share it. Default: journal.jsonl "
        "in the run's folder.",
    )
    budget: BudgetSettings = option(default_factory=BudgetSettings, help="Limits on the cost of the child.")
    data: DataSettings = option(
        default_factory=DataSettings, help="The validation text. Default: the text of the super-net's run."
    )
