"""Search runs: a trained super-net, a budget, and the folder with the winner and the evidence for it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from modeling_magic import MagicConfig, MagicForMaskedLM

from ..data.text import load_data
from ..hub.export import export_model
from ..hub.presets import load_preset
from ..pretrained import pretrained_model
from ..runs.folders import (
    MODEL_FOLDER,
    RUN_NAME,
    bars_off,
    finished_result,
    open_run,
    read_result,
    read_settings,
    versions,
)
from ..runs.recipes import settings_from
from ..space.budgets import AdditiveCost, Budget, BudgetedSpace
from ..space.costs import count_parameters
from ..space.latency import LatencyTable
from ..space.limits import BudgetSettings, budget_of, costs_of
from ..space.search_space import Architecture, SearchSpace, compact_architecture
from ..supernet.evaluation import Evaluator, judging_batches, judging_record
from ..supernet.journal import Journal, RankedChild
from ..supernet.loading import check_vocabulary, load_supernet, supernet_folder
from ..tables import counted, counted_children, markdown_table
from .compare import SearchResult, search_children
from .pareto import format_cost, report_children
from .report import Report, WinnerLatency, pareto_table, write_report
from .searchers import EvolutionSearcher, ParetoSearcher, RandomSearcher, Searcher, rank_key
from .settings import SearchSettings


JOURNAL_NAME = "journal.jsonl"
_OF_THE_SUPERNET = ("sampler", "alignment", "alignment_weight", "steps", "seed")


@bars_off()
def search_supernet(settings: SearchSettings, output_dir: str | Path) -> dict[str, Any]:
    """Searches the children of a super-net under a budget and returns the result, with the winner and the controls.

    The folder then contains `model/` (the winner with the super-net's weights), report.html with its tables and
    figures, journal.jsonl and result.json. A stopped search is resumed; a finished one returns its result.

    Args:
        settings: the super-net, the budget and how to search.
        output_dir: folder of the run.

    Raises:
        InfeasibleBudgetError: no child is within the budget; nothing has been evaluated.
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    accelerator = Accelerator(mixed_precision=settings.precision)
    model = load_supernet(settings.supernet)
    space = searched_space(settings, model.config)
    costs, budget = costs_of(model.config, settings.budget), budget_of(model.config, settings.budget)
    BudgetedSpace(space, budget).check()
    with accelerator.main_process_first():
        data = load_data(settings.data, model.config.max_sequence_length)
    check_vocabulary(settings.supernet, data)
    judged = (settings.mlm_probability, settings.batch_size, settings.num_validation_sequences)
    batches = judging_batches(data, *judged)
    model = model.to(accelerator.device)
    with open_run(output_dir, settings, accelerator.is_main_process) as run:
        if run.result is not None:
            return run.result
        start = time.perf_counter()
        evaluator = Evaluator(model, batches, accelerator, journal=settings.journal or output_dir / JOURNAL_NAME)
        found = search_children(
            evaluator,
            space,
            budget,
            make_searcher(settings, space, budget, costs),
            settings.num_evaluations,
            seed=settings.seed,
            bert_pattern_cost=costs[0],
            progress=accelerator.is_main_process,
        )
        facts = {
            "seconds": time.perf_counter() - start,
            "num_evaluated": evaluator.num_evaluated,
            "corpus": data.fingerprint,
            "judged_on": judging_record(accelerator, *judged),
        }
        record: dict[str, Any] = {}
        if run.writes:
            model_folder = _export_winner(settings, model, data.tokenizer, found, facts, output_dir)
            check_exported(model_folder, settings.budget)
            latency, latency_text = _winner_latency(settings.budget, model_folder, found.winner.architecture)
            report = _report(settings, found, costs, latency, facts)
            write_report(report, output_dir)
            record = {
                **_search_record(settings, model.config, found),
                **facts,
                "search": found.to_json(),
                "latency": latency and asdict(latency),
                "latency_text": latency_text,
                "table": pareto_table(report),
            }
        run.finish(record)
    # Only the rank that wrote the result knows how the winner was measured.
    finished = read_result(output_dir)
    assert finished is not None
    return finished


def searched_space(settings: SearchSettings, config: MagicConfig) -> SearchSpace:
    """Returns the space to search: the one that shrinking has left in the super-net's run, or the whole space.

    Raises:
        ValueError: shrinking has left a single child, or the model is a single child instead of a super-net.
    """
    if not config.is_supernet:
        raise ValueError(
            f"{settings.supernet} contains a single child; give a super-net that `magic-nas pretrain` has trained"
        )
    record = read_result(Path(settings.supernet))
    if record is None or settings.full_space:
        return SearchSpace.from_config(config.candidate_operators)
    space = SearchSpace.from_json(record["space"])
    if space.size == 1:
        raise ValueError(
            f"shrinking has left one child in {settings.supernet}, so there is nothing to search; train without "
            f"--shrink, or search all of its original operators with --set full_space=true"
        )
    return space


def make_searcher(
    settings: SearchSettings, space: SearchSpace, budget: Budget, costs: Sequence[AdditiveCost]
) -> Searcher:
    """Returns the searcher named in the settings; "pareto" uses the limited costs, or parameters, as objectives."""
    within = BudgetedSpace(space, budget)
    if settings.searcher == "random":
        return RandomSearcher(within, settings.seed, settings.population_size)
    if settings.searcher == "evolution":
        return EvolutionSearcher(within, settings.seed, settings.population_size)
    limited = [limit.cost for limit in budget.limits] or [costs[0]]
    return ParetoSearcher(within, settings.seed, limited, settings.population_size)


def check_exported(folder: Path, limits: BudgetSettings) -> None:
    """Recomputes the costs of an exported model; raises a ValueError if they are not within the limits."""
    model, _ = pretrained_model(AutoModelForMaskedLM, folder)
    architecture = model.config.chain
    counted = count_parameters(model.config, architecture, head="mlm")
    if model.num_parameters() != counted:
        raise ValueError(
            f"the model in {folder} has {model.num_parameters():,} parameters, but the search counted {counted:,} for "
            f"its architecture; do not use its files"
        )
    if not (budget := budget_of(model.config, limits)).allows(architecture):
        raise ValueError(f"the model in {folder} is not within {budget}; do not use its files")


def _search_record(settings: SearchSettings, config: MagicConfig, found: SearchResult) -> dict[str, Any]:
    """Returns the record for an export's manifest: the training of the super-net, if known, and the search."""
    trained = read_result(Path(settings.supernet)) or {}
    winner = found.winner
    return {
        **{key: trained[key] for key in _OF_THE_SUPERNET if key in trained},
        "architecture": list(winner.architecture),
        "val_loss": winner.val_loss,
        "val_accuracy": winner.val_accuracy,
        "candidate_operators": config.candidate_operators,
        "searcher": settings.searcher,
        "search_seed": settings.seed,
        "num_evaluations": len(found.searched),
        "num_random": len(found.random),
        "found_by": found.found_by,
        "budget": str(found.budget),
        "better_than_random": found.better_than_random.text,
        "better_than_bert": found.better_than_bert.text if found.better_than_bert else None,
    }


def _export_winner(
    settings: SearchSettings,
    model: MagicForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    found: SearchResult,
    facts: dict[str, Any],
    output_dir: Path,
) -> Path:
    child = model.extract_child(found.winner.architecture).cpu()
    judged = {name: facts[name] for name in ("corpus", "judged_on")}
    record = {**_search_record(settings, model.config, found), "versions": versions(), **judged}
    return export_model(child, tokenizer, output_dir / MODEL_FOLDER, {"search": record})


def _winner_latency(
    settings: BudgetSettings, folder: Path, architecture: Architecture
) -> tuple[WinnerLatency | None, str]:
    """Returns the latency of the whole winner, measured and as predicted by the table, for the page and as text.

    Returns `None` and an empty text if there is no table.
    """
    if settings.latency_table is None:
        return None, ""
    table = LatencyTable.load(settings.latency_table)
    predicted, conditions = table.predict_ms(architecture), f"{table.settings}; {table.device_name}"
    latency = WinnerLatency(predicted, None, None, conditions, table.warnings, table.held_out_text)
    if not table.is_of_this_device():
        # A search may run on a machine other than the one that the encoder is meant for.
        elsewhere = f"predicted {predicted:.3f} ms; not measured, because this device is not {table.device_name}"
        return latency, f"{table.summary()}\nLatency: {elsewhere}"
    model, _ = pretrained_model(AutoModelForMaskedLM, folder)
    # The exported model has no layers for SKIP.
    measured = table.measure_child(model, model.config.chain)
    timing = measured.latency
    latency = replace(
        latency,
        measured_ms=timing.median_ms,
        interval_ms=(timing.low_ms, timing.high_ms),
        warnings=tuple(dict.fromkeys((*table.warnings, *measured.warnings))),
    )
    return latency, f"{table.summary()}\nLatency: {table.beside(measured)}"


def _report(
    settings: SearchSettings,
    found: SearchResult,
    costs: Sequence[AdditiveCost],
    latency: WinnerLatency | None,
    facts: dict[str, Any],
) -> Report:
    comparisons = {"random search": found.better_than_random.text}
    if found.better_than_bert is not None:
        comparisons["BERT pattern"] = found.better_than_bert.text
    shown = {
        "super-net": Path(settings.supernet).name,
        "searcher": f"{settings.searcher}, seed {settings.seed}",
        "text": f"{Path(facts['corpus']['source']).name}, {settings.num_validation_sequences} held-out sequences",
        "children evaluated in this run": f"{facts['num_evaluated']:,} in {facts['seconds']:,.0f} s",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    return Report(
        report_children(
            found.searched, found.random, found.bert_pattern, {cost.name: cost for cost in costs}, found.budget.allows
        ),
        found.winner.architecture,
        str(found.budget) if found.budget.limits else "",
        [(limit.cost.name, limit.minimum, limit.maximum) for limit in found.budget.limits],
        comparisons,
        latency,
        shown,
        verdict=found.verdict,
    )


def search_summary(result: dict[str, Any]) -> str:
    """Returns the Pareto table of a finished search and the comparison of its winner, as text."""
    parts = [result["table"], result["search"]["summary"], result["latency_text"]]
    return "\n\n".join(part for part in parts if part)


def best_table(search_run: str | Path, limits: BudgetSettings, top: int = 5) -> str:
    """Returns the best children within a budget among those that a search has evaluated, as a Markdown table.

    Args:
        search_run: folder of a search, finished or not; only its journal is read.
        limits: the budget, which may differ from that of the search.
        top: number of children to return.

    Raises:
        ValueError: the folder does not contain a search, or none of its children is within the budget.
    """
    if not (Path(search_run) / RUN_NAME).is_file() or "supernet" not in (found := read_settings(search_run)):
        raise ValueError(f"{search_run} does not contain a search; give the --output-dir of `magic-nas search`")
    settings = settings_from(SearchSettings, found)
    config = load_preset(supernet_folder(settings.supernet))
    budget, costs = budget_of(config, limits), costs_of(config, limits)
    evaluated = Journal(settings.journal or Path(search_run) / JOURNAL_NAME)
    num_within = 0

    def allowed() -> Iterator[RankedChild]:
        nonlocal num_within
        for child in evaluated:
            if budget.allows(child.architecture):
                num_within += 1
                yield child

    within = nsmallest(top, allowed(), key=rank_key)
    if not within:
        BudgetedSpace(searched_space(settings, config), budget).check()
        raise ValueError(
            f"none of the {counted_children(len(evaluated))} that were evaluated is within {budget}, but such "
            f"children exist; search with this budget and the same --journal"
        )
    names = [cost.name for cost in costs]
    rows = [
        [
            compact_architecture(child.architecture),
            f"{child.val_loss:.4f}",
            *(format_cost(cost.name, cost(child.architecture)) for cost in costs),
        ]
        for child in within
    ]
    lines = [markdown_table(["architecture", "validation loss", *names], rows)]
    lines += [
        "",
        f"{num_within:,} of {counted(len(evaluated), 'evaluated child', 'evaluated children')} are within {budget}.",
    ]
    if limits.latency_table is not None:
        lines.append(LatencyTable.load(limits.latency_table).summary())
    return "\n".join(lines)
