"""The run of a sweep: super-nets trained over the values of an argument, held against the truth (Fig. 4a, 4b)."""

import difflib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig

from .arguments import MagicTrainingArguments
from .checkpoints import write_json
from .costs import operator_flops, training_flops
from .data import PreparedData
from .evaluation import Batch
from .hub import load_preset
from .ranking import MethodTau, Scores, TruthNoise
from .ranking_figures import SweepPoint, draw_sweep
from .ranking_run import (
    MICRO_BENCHMARK,
    JudgingSettings,
    Supernet,
    check_numbers,
    check_one_process,
    check_truth,
    file_name,
    given_truth,
    judge,
    judging_batches,
    method_row,
    shared_scores,
    write_rows,
)
from .runs import (
    RESULT_NAME,
    RUN_NAME,
    check_run_folder,
    claim_run_folder,
    load_data,
    pretrain,
    read_result,
    training_arguments,
)
from .search_figures import render
from .search_setup import check_search, search_sampler
from .search_space import SearchSpace
from .settings import PretrainSettings, mapping_of, settings_from
from .truth import Truth


SUPERNETS_FOLDER = "supernets"
# Between two looks at the super-nets that other processes are training.
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SweepSettings(JudgingSettings):
    """Which super-nets are trained and held against which truth, as `sweep_settings` reads them from a recipe.

    Children are not trained here.

    Attributes:
        pretrain: what all super-nets have in common.
        parameter: the training argument that is swept, such as "num_substitutions" (Fig. 4a), "anchor_top_percent"
            (Fig. 4b), "alignment_weight" or "alignment_every_n_layers".
        values: of that argument.
        references: other methods by name, each with the training arguments that it changes, which the curve is drawn
            beside: {"SPOS": {"sampler": "uniform", "alignment": "none"}}.
        seeds: of the super-nets of each value and reference.
        equal_compute: `max_steps` of `pretrain` is that of the first value's super-nets, and those of the others take
            the steps that cost the same by `supernet_flops`, so that alignment is paid for with steps.
    """

    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    parameter: str = "num_substitutions"
    values: tuple[Any, ...] = ()
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    equal_compute: bool = False
    truth: str | None = MICRO_BENCHMARK


def sweep_settings(recipe: dict[str, Any], changes: dict[str, Any] | None = None) -> SweepSettings:
    """Returns settings of a sweep from a recipe, `changes` winning over it; every key is checked.

    A recipe of a sweep has the keys of one for `magic-nas pretrain`, which all super-nets share, and those of
    `SweepSettings`.

    Raises:
        ValueError: a key is unknown, or a value is refused.
    """
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    own = {item.name for item in fields(SweepSettings)} - {"pretrain"}
    shared = {item.name for item in fields(PretrainSettings)}
    for key in {**recipe, **changes}:
        if key not in own | shared:
            close = difflib.get_close_matches(str(key), own | shared, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(own | shared))}"
            raise ValueError(f"unknown key {key!r} in recipe; {remedy}")
    parts = [{key: value for key, value in part.items() if key in shared} for part in (recipe, changes)]
    pretrain_settings = settings_from(PretrainSettings, *parts)
    values = {key: value for key, value in {**recipe, **changes}.items() if key in own}
    for name in ("values", "seeds", "top_k"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    if isinstance(values.get("references"), dict):
        # YAML reads a name such as 1 as a number; results name it by its text.
        values["references"] = {str(name): change for name, change in values["references"].items()}
    settings = replace(settings_from(SweepSettings, values), pretrain=pretrain_settings)
    _sweep_plan(settings)
    return settings


def _sweep_plan(settings: SweepSettings) -> dict[str, dict[str, Any]]:
    """The training arguments of each value and reference, by name, all checked.

    Raises:
        ValueError: a number or an argument is refused, by the arguments or by the super-net's space.
    """
    for name, kind in (("values", tuple), ("seeds", tuple), ("references", dict)):
        if not isinstance(getattr(settings, name), kind):
            raise ValueError(f"{name} is {getattr(settings, name)!r}; give a {'list' if kind is tuple else 'mapping'}")
    if not settings.values or any(value in settings.values[:place] for place, value in enumerate(settings.values)):
        raise ValueError(f"values is {list(settings.values)}; give the values of {settings.parameter}, each once")
    if not settings.seeds or not all(type(seed) is int and seed >= 0 for seed in settings.seeds):
        raise ValueError(f"seeds is {list(settings.seeds)}; give whole numbers from 0, such as [0, 1, 2]")
    if len(set(settings.seeds)) < len(settings.seeds):
        raise ValueError(f"seeds is {list(settings.seeds)}; name each once")
    if not isinstance(settings.truth, str):
        raise ValueError(f"truth is {settings.truth!r}; give a folder, a file or {MICRO_BENCHMARK!r}")
    if type(settings.equal_compute) is not bool:
        raise ValueError(f"equal_compute is {settings.equal_compute!r}; it must be true or false")
    check_numbers(settings)
    plan = {_value_name(settings, value): {settings.parameter: value} for value in settings.values}
    plan |= {name: mapping_of(name, settings.references) for name in settings.references}
    if len({file_name(name) for name in plan}) < len(settings.values) + len(settings.references):
        raise ValueError(f"values and references have names that make the same folder: {', '.join(plan)}; rename one")
    config = load_preset(settings.pretrain.preset)
    for name, change in plan.items():
        if "seed" in change:
            raise ValueError(
                f"{name} sets the seed, but all methods have super-nets of the same seeds; name these in seeds"
            )
        arguments = _supernet_settings(settings, change, 0).training_arguments
        args = training_arguments(MagicTrainingArguments, Path("sweep"), arguments)
        if args.shrink:
            raise ValueError(f"{name} shrinks its super-nets, so that children are not ranked alike; leave shrink out")
        check_search(config, args, vocabulary=False)
        if settings.equal_compute and ("max_steps" in change or args.max_steps < 1):
            raise ValueError(
                f"equal_compute turns max_steps of the first value into steps for {name}, which cannot have steps of "
                f"its own; give max_steps once, in training_arguments"
            )
    return plan


def _value_name(settings: SweepSettings, value: Any) -> str:
    return f"{settings.parameter} = {value}"


def _supernet_settings(settings: SweepSettings, change: Mapping[str, Any], seed: int) -> PretrainSettings:
    shared = asdict(settings.pretrain)
    arguments = {**shared["training_arguments"], **change, "seed": seed}
    return settings_from(PretrainSettings, {**shared, "training_arguments": arguments})


def run_sweep(settings: SweepSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains super-nets over the values of a training argument and holds them against the truth (Fig. 4a, 4b).

    The folder then holds `supernets/` (a run for each value or reference and seed), the files of `run_ranking`,
    sweep.csv and sweep.png, the curve of tau, and compute.csv, what the super-nets of each value cost. A sweep that
    was stopped is continued, super-net by super-net and each from its last checkpoint, and child by child where it is
    judged; several processes may work on one folder; one that has ended returns its result.

    Raises:
        ValueError: as `run_ranking` does.
    """
    output_dir = Path(output_dir)
    plan = _sweep_plan(settings)
    config = load_preset(settings.pretrain.preset)
    space = SearchSpace.from_config(config.candidate_operators)
    truth = given_truth(settings, space)
    check_one_process()
    check_run_folder(output_dir, "sweep", settings)
    if (result := read_result(output_dir)) is not None:
        return result
    hf_logging.disable_progress_bar()
    data = load_data(settings.pretrain.data)
    check_truth(truth, _with_vocabulary(config, data), data)
    output_dir.mkdir(parents=True, exist_ok=True)
    # Its name is one that a folder without a run may hold.
    with FileLock(output_dir / f"{RUN_NAME}.lock"):
        check_run_folder(output_dir, "sweep", settings)
        with claim_run_folder(output_dir, "sweep", settings, should_save=True):
            (output_dir / SUPERNETS_FOLDER).mkdir(exist_ok=True)
    if settings.equal_compute:
        steps = _equal_steps(settings, plan, config, data)
        plan = {name: {**change, "max_steps": steps[name]} for name, change in plan.items()}
    batches = judging_batches(settings, settings.pretrain.mlm_probability, data)
    supernets, scores = _trained_and_scored(settings, plan, truth, batches, output_dir)
    with FileLock(output_dir / f"{RUN_NAME}.lock"):
        # Before its first super-net had a checkpoint, another sweep may have taken the folder.
        check_run_folder(output_dir, "sweep", settings)
        if (result := read_result(output_dir)) is not None:
            return result
        with claim_run_folder(output_dir, "sweep", settings, should_save=True):
            result = {**judge(settings, supernets, truth, scores, output_dir), "corpus": data.fingerprint}
            result |= {"parameter": settings.parameter, "values": list(settings.values)}
            result["compute"] = _compute(settings, plan, config, data, supernets)
            result["table"] += "\n\n" + _compute_table(settings, result["compute"])
            write_rows(output_dir / "compute.csv", result["compute"])
            _write_curve(settings, result, output_dir)
            write_json(output_dir / RESULT_NAME, result)
    return json.loads(json.dumps(result))


def _with_vocabulary(config: MagicConfig, data: PreparedData) -> MagicConfig:
    config.vocab_size = len(data.tokenizer)
    return config


def _trained_and_scored(
    settings: SweepSettings,
    plan: Mapping[str, Mapping[str, Any]],
    truth: Truth,
    batches: Sequence[Batch],
    output_dir: Path,
) -> tuple[list[Supernet], list[Scores]]:
    """Trains and scores every super-net that no other process is at, and waits for those of the others."""
    jobs = [(name, change, seed) for seed in settings.seeds for name, change in plan.items()]
    done: dict[tuple[str, int], tuple[Supernet, Scores]] = {}
    while len(done) < len(jobs):
        num_done = len(done)
        for name, change, seed in jobs:
            if (name, seed) in done:
                continue
            run = output_dir / SUPERNETS_FOLDER / f"{file_name(name)}-{seed}"
            try:
                with FileLock(f"{run}.lock", timeout=0):
                    result = pretrain(_supernet_settings(settings, change, seed), run)
                    supernet = Supernet(run, run.name, name, seed, result["steps"])
                    done[name, seed] = supernet, shared_scores(supernet, truth, batches, output_dir)
            except Timeout:
                continue
        if len(done) == num_done:
            time.sleep(_POLL_SECONDS)
    supernets, scores = zip(*(done[name, seed] for name, _, seed in jobs), strict=True)
    return list(supernets), list(scores)


def _write_curve(settings: SweepSettings, result: dict[str, Any], output_dir: Path) -> None:
    methods = {name: MethodTau(found["taus"], found["interval"]) for name, found in result["methods"].items()}
    points = [SweepPoint(value, methods[_value_name(settings, value)]) for value in settings.values]
    references = {name: methods[name] for name in settings.references}
    noise = TruthNoise(**result["noise"]) if result["noise"] else None
    rows = [{settings.parameter: point.value, **method_row("", point.tau)} for point in points]
    for row in rows:
        del row["method"]
    write_rows(output_dir / "sweep.csv", rows)
    figure = draw_sweep(settings.parameter, points, references, noise)
    (output_dir / "sweep.png").write_bytes(render(figure, "png"))


# ---- Compute ----


class SupernetPasses(NamedTuple):
    """Sequences that pass the embeddings (first) and each layer from the bottom up, expected over a whole training.

    Attributes:
        trained: forwards and backwards, children of training steps.
        targets: forwards, children whose hidden states others are aligned to.
        validated: forwards, children that are compared with the anchor or ranked for it.
    """

    trained: list[float]
    targets: list[float]
    validated: list[float]


def supernet_passes(
    config: MagicConfig,
    args: MagicTrainingArguments,
    num_steps: int,
    num_train_sequences: int | None = None,
    num_validation_sequences: int | None = None,
) -> SupernetPasses:
    """Returns what a super-net's training runs, with alignment as `MagicTrainer` does it; shrinking plays no part.

    - A step trains B sequences, B = batch size x accumulated batches, through all N layers.
    - From step A on, a step runs the targets as well, without embeddings' and head's gradients: each of T children on
      B x `alignment_batch_fraction` sequences, up to the last aligned layer. A is the warm start W or, where that is
      later, the step of the first anchor: `anchor_eval_steps` with W = 0, the first ranking with `top_percent`.
      T is C for `average`, else 1.
    - Where there is no dropout, layers that the anchor shares with the child from the bottom up are not run again. Of
      layers with c_1, c_2, ... operators layer n is run unless all of the first n are the same, with the chance
      1 - 1 / (c_1 ... c_n) for a uniform child, whatever the anchor; the embeddings are run where layer 1 is.
    - Every `anchor_eval_steps`, and at W where no anchor is there yet, the child of the step and the anchor (another
      child with the chance 1 - 1 / size) are validated. With `top_percent` a pool of uniform children is ranked every
      `anchor_rank_steps`, or at the end of each epoch; n of them have M (1 - (1 - 1 / M)^n) distinct bottoms of a
      depth where M are possible, or all M where the pool is the whole space, and each is run once.

    Validations that all methods have in common are left out: probe children, and the choice of the best at the end.

    Args:
        config: the super-net's.
        args: the run's; its `max_steps` plays no part.
        num_steps: optimizer steps.
        num_train_sequences: needed where the warm start or the anchor goes by epochs.
        num_validation_sequences: of the text, where there are fewer than the run wants.

    Raises:
        ValueError: there are no epochs but they are needed.
    """
    choices = [len(layer) for layer in config.candidate_operators]
    bottoms = [math.prod(choices[:depth]) for depth in range(len(choices) + 1)]
    step_sequences = args.train_batch_size * args.gradient_accumulation_steps
    trained = [float(num_steps * step_sequences)] * len(bottoms)
    targets, validated = [0.0] * len(bottoms), [0.0] * len(bottoms)
    if args.alignment == "none":
        return SupernetPasses(trained, targets, validated)
    epoch = None
    if num_train_sequences is not None:
        epoch = math.ceil(math.ceil(num_train_sequences / args.train_batch_size) / args.gradient_accumulation_steps)
    warmup = args.alignment_warmup_steps
    rank_every = args.anchor_rank_steps or epoch
    needs_epochs = warmup is None and args.alignment_warmup_epochs
    if epoch is None and (needs_epochs or (args.alignment == "top_percent" and rank_every is None)):
        raise ValueError("a streamed data set has no epochs; set alignment_warmup_steps, and anchor_rank_steps")
    warmup = round(args.alignment_warmup_epochs * (epoch or 0)) if warmup is None else warmup
    num_sequences = min(args.num_validation_sequences, num_validation_sequences or args.num_validation_sequences)
    start = warmup
    if args.alignment == "anchor":
        every = args.anchor_eval_steps
        start = warmup or every
        num_looks = num_steps // every + (0 < warmup < min(every, num_steps + 1))
        num_children = max(0.0, num_looks + (num_looks - 1) * (1 - 1 / bottoms[-1]))
        validated = [num_children * num_sequences] * len(bottoms)
    elif args.alignment == "top_percent":
        assert rank_every is not None
        start, pool = max(warmup, rank_every), args.anchor_pool_size
        is_whole = bottoms[-1] <= pool
        runs = [width if is_whole else -width * math.expm1(pool * math.log1p(-1 / width)) for width in bottoms[1:]]
        # Embeddings once for the attention mask and once for the children.
        validated = [num_steps // rank_every * num_sequences * number for number in (2, *runs)]
    rows = math.ceil(args.alignment_batch_fraction * args.train_batch_size) * args.gradient_accumulation_steps
    rows *= args.num_average_children if args.alignment == "average" else 1
    aligned = max(0, num_steps - start) * rows
    last = len(choices) // args.alignment_every_n_layers * args.alignment_every_n_layers
    shares = args.alignment != "average" and not (config.hidden_dropout_prob or config.attention_probs_dropout_prob)
    for depth in range(last + 1):
        targets[depth] = aligned * (1 - 1 / bottoms[max(depth, 1)] if shares else 1)
    return SupernetPasses(trained, targets, validated)


def supernet_flops(
    config: MagicConfig,
    args: MagicTrainingArguments,
    num_steps: int,
    seq_len: int,
    masked_fraction: float = 0.15,
    num_train_sequences: int | None = None,
    num_validation_sequences: int | None = None,
) -> float:
    """Returns the FLOPs ("electra") that training a super-net is expected to take, alignment and its anchor included.

    The sum over embeddings and layers of `SupernetPasses`, each at the mean cost of its operators: three forward
    passes where a sequence is trained, as in `costs.training_flops`, one where it is a target or validated. The head,
    on masked positions only, is added to what is trained and validated. A layer's mean is over its operators, as all
    samplers but the sandwich draw them alike; of that one over its rounds. The anchor's operators are taken to cost as
    much. The alignment loss itself and its part of the backward pass, a few operations an element, are left out.

    Args:
        config: the super-net's, with the vocabulary of the text.
        args: the run's.
        num_steps: optimizer steps.
        seq_len: tokens of a sequence.
        masked_fraction: part of the tokens that the head predicts.
        num_train_sequences: see `supernet_passes`.
        num_validation_sequences: see `supernet_passes`.
    """
    passes = supernet_passes(config, args, num_steps, num_train_sequences, num_validation_sequences)
    embeddings = training_flops(config, (), seq_len, seq_len, 0) / 3
    head = training_flops(config, (), seq_len, 1000 * seq_len, masked_fraction) / 3000 - embeddings
    costs = [embeddings, *_mean_operator_flops(config, args, seq_len)]
    flops = 0.0
    for weight, own in ((3, passes.trained), (1, passes.targets), (1, passes.validated)):
        flops += weight * math.fsum(number * cost for number, cost in zip(own, costs, strict=True))
    return flops + head * (3 * passes.trained[-1] + passes.validated[-1])


def _mean_operator_flops(config: MagicConfig, args: MagicTrainingArguments, seq_len: int) -> list[float]:
    """FLOPs of a sequence's forward pass through each layer, mean over the children that the sampler draws."""
    layers = [[operator_flops(name, config, seq_len) for name in layer] for layer in config.candidate_operators]
    means = [math.fsum(layer) / len(layer) for layer in layers]
    if args.sampler != "sandwich":
        return means
    sampler = search_sampler(SearchSpace.from_config(config.candidate_operators), config, args)
    largest, smallest = sampler.next(), sampler.next()
    extremes = [
        [operator_flops(name, config, seq_len) for name in pair] for pair in zip(largest, smallest, strict=True)
    ]
    return [(sum(pair) + 2 * mean) / 4 for pair, mean in zip(extremes, means, strict=True)]


def steps_of_equal_compute(flops: float, flops_of_steps: Callable[[int], float]) -> int:
    """Returns the number of steps, at least 1, whose cost is nearest to `flops`.

    Args:
        flops: of another super-net's training.
        flops_of_steps: the cost of a number of steps, which grows with it; see `supernet_flops`.
    """
    high = 1
    while flops_of_steps(high) < flops:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if flops_of_steps(middle) < flops else (low, middle)
    return low if low and flops - flops_of_steps(low) <= flops_of_steps(high) - flops else high


def _flops_of_steps(
    settings: SweepSettings, change: Mapping[str, Any], config: MagicConfig, data: PreparedData
) -> Callable[[int], float]:
    arguments = _supernet_settings(settings, change, settings.seeds[0]).training_arguments
    args = training_arguments(MagicTrainingArguments, Path("sweep"), arguments)
    own = settings.pretrain
    try:
        num_train_sequences = len(data.train)
    except TypeError:
        num_train_sequences = None
    sequences = (num_train_sequences, len(data.validation))
    return lambda steps: supernet_flops(config, args, steps, own.data.block_size, own.mlm_probability, *sequences)


def _equal_steps(
    settings: SweepSettings, plan: Mapping[str, Mapping[str, Any]], config: MagicConfig, data: PreparedData
) -> dict[str, int]:
    """The steps of each value and reference; those of the first value are given."""
    max_steps = settings.pretrain.training_arguments["max_steps"]
    costs = {name: _flops_of_steps(settings, change, config, data) for name, change in plan.items()}
    flops = next(iter(costs.values()))(max_steps)
    return {name: steps_of_equal_compute(flops, cost) for name, cost in costs.items()}


def _compute(
    settings: SweepSettings,
    plan: Mapping[str, Mapping[str, Any]],
    config: MagicConfig,
    data: PreparedData,
    supernets: Sequence[Supernet],
) -> list[dict[str, Any]]:
    """For each value and reference the steps that its super-nets took, and what they cost."""
    steps = {supernet.method: supernet.steps or 0 for supernet in supernets}
    return [
        {"method": name, "steps": steps[name], "flops": _flops_of_steps(settings, change, config, data)(steps[name])}
        for name, change in plan.items()
    ]


def _compute_table(settings: SweepSettings, compute: Sequence[Mapping[str, Any]]) -> str:
    equal = "made equal" if settings.equal_compute else "not made equal: equal_compute does"
    lines = [f"Compute of a super-net's training ({equal}):", "", "| method | steps | FLOPs | of the first |"]
    lines.append("| --- " * 4 + "|")
    for own in compute:
        share = own["flops"] / compute[0]["flops"]
        lines.append(f"| {own['method']} | {own['steps']:,} | {own['flops']:.4g} | {share:.4f} |")
    return "\n".join(lines)
