"""What a search is asked to do."""

from dataclasses import dataclass

from ..data.settings import DataSettings
from ..options import Settings, option
from ..runs.settings import mlm_probability_option, validation_option
from ..space.settings import BudgetSettings


SEARCHERS = ("evolution", "random", "pareto")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class SearchSettings(Settings):
    """What a search does; the keys of a recipe for `magic-nas search`."""

    command = "search"

    supernet: str = option("", help="A finished super-net run, or the folder of a super-net.")
    searcher: str = option(
        "evolution",
        flag="--searcher",
        choices=SEARCHERS,
        help="How children are proposed: evolution, random, or pareto (loss against the costs that the budget limits, "
        "else parameters).",
    )
    num_evaluations: int = option(
        500,
        flag="--num-evaluations",
        at_least=1,
        unit="children",
        help="Children that the searcher evaluates; as many random ones are evaluated beside them.",
    )
    population_size: int = option(50, at_least=1, unit="children", help="Children of a generation.")
    num_validation_sequences: int = validation_option()
    batch_size: int = option(16, at_least=1, unit="sequences", help="Size of a validation batch.")
    mlm_probability: float = mlm_probability_option()
    precision: str = option("no", choices=PRECISIONS, help="Precision of the evaluation; no stands for float32.")
    seed: int = option(0, flag="--seed", help="Seed of the searcher and of random search.")
    full_space: bool = option(
        False, help="Search all operators of a super-net, those that shrinking has deleted included."
    )
    journal: str | None = option(
        None,
        flag="--journal",
        is_path=True,
        help="File of the evaluations, which searches of one super-net may share. Default: journal.jsonl in the "
        "folder.",
    )
    budget: BudgetSettings = option(default_factory=BudgetSettings, help="What the child may cost.")
    data: DataSettings = option(default_factory=DataSettings, help="The text. Default: that of the super-net's run.")
