"""The run of a sweep: super-nets trained over the values of an argument, held against the truth (Fig. 4a, 4b)."""

import difflib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig

from .arguments import MagicTrainingArguments
from .checkpoints import write_json
from .data import PreparedData
from .hub import load_preset
from .ranking import MethodTau, TruthNoise
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
from .search_setup import check_search
from .search_space import SearchSpace
from .settings import PretrainSettings, mapping_of, settings_from


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
    """

    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    parameter: str = "num_substitutions"
    values: tuple[Any, ...] = ()
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
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
    settings = SweepSettings(pretrain=pretrain_settings, **values)
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
    if not settings.values or len(set(settings.values)) < len(settings.values):
        raise ValueError(f"values is {list(settings.values)}; give the values of {settings.parameter}, each once")
    if not settings.seeds or not all(type(seed) is int and seed >= 0 for seed in settings.seeds):
        raise ValueError(f"seeds is {list(settings.seeds)}; give whole numbers from 0, such as [0, 1, 2]")
    if len(set(settings.seeds)) < len(settings.seeds):
        raise ValueError(f"seeds is {list(settings.seeds)}; name each once")
    if not isinstance(settings.truth, str):
        raise ValueError(f"truth is {settings.truth!r}; give a folder, a file or {MICRO_BENCHMARK!r}")
    check_numbers(settings)
    plan = {_value_name(settings, value): {settings.parameter: value} for value in settings.values}
    plan |= {str(name): mapping_of(name, settings.references) for name in settings.references}
    if len({file_name(name) for name in plan}) < len(settings.values) + len(settings.references):
        raise ValueError(f"values and references have names that make the same folder: {', '.join(plan)}; rename one")
    config = load_preset(settings.pretrain.preset)
    for name, change in plan.items():
        arguments = _supernet_settings(settings, change, 0).training_arguments
        args = training_arguments(MagicTrainingArguments, Path("sweep"), arguments)
        if args.shrink:
            raise ValueError(f"{name} shrinks its super-nets, so that children are not ranked alike; leave shrink out")
        check_search(config, args, vocabulary=False)
    return plan


def _value_name(settings: SweepSettings, value: Any) -> str:
    return f"{settings.parameter} = {value}"


def _supernet_settings(settings: SweepSettings, change: Mapping[str, Any], seed: int) -> PretrainSettings:
    shared = asdict(settings.pretrain)
    arguments = {**shared["training_arguments"], **change, "seed": seed}
    return settings_from(PretrainSettings, {**shared, "training_arguments": arguments})


def run_sweep(settings: SweepSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains super-nets over the values of a training argument and holds them against the truth (Fig. 4a, 4b).

    The folder then holds `supernets/` (a run for each value or reference and seed), the files of `run_ranking` and
    sweep.csv and sweep.png, the curve of tau. A sweep that was stopped is continued, super-net by super-net and each
    from its last checkpoint; several processes may work on one folder; one that has ended returns its result.

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
    with FileLock(output_dir / f"{RUN_NAME}.lock"), claim_run_folder(output_dir, "sweep", settings, should_save=True):
        (output_dir / SUPERNETS_FOLDER).mkdir(exist_ok=True)
    supernets = _train_supernets(settings, plan, output_dir / SUPERNETS_FOLDER)
    with FileLock(output_dir / f"{RUN_NAME}.lock"):
        if (result := read_result(output_dir)) is not None:
            return result
        with claim_run_folder(output_dir, "sweep", settings, should_save=True):
            batches = judging_batches(settings, settings.pretrain.mlm_probability, data)
            scores = [shared_scores(supernet, truth, batches, output_dir) for supernet in supernets]
            result = {**judge(settings, supernets, truth, scores, output_dir), "corpus": data.fingerprint}
            result |= {"parameter": settings.parameter, "values": list(settings.values)}
            _write_curve(settings, result, output_dir)
            write_json(output_dir / RESULT_NAME, result)
    return json.loads(json.dumps(result))


def _with_vocabulary(config: MagicConfig, data: PreparedData) -> MagicConfig:
    config.vocab_size = len(data.tokenizer)
    return config


def _train_supernets(settings: SweepSettings, plan: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Supernet]:
    """Trains every super-net that no other process trains, and waits for those of the others."""
    jobs = [(name, change, seed) for seed in settings.seeds for name, change in plan.items()]
    done: dict[tuple[str, int], Supernet] = {}
    while len(done) < len(jobs):
        num_done = len(done)
        for name, change, seed in jobs:
            if (name, seed) in done:
                continue
            run = folder / f"{file_name(name)}-{seed}"
            try:
                with FileLock(f"{run}.lock", timeout=0):
                    result = pretrain(_supernet_settings(settings, change, seed), run)
            except Timeout:
                continue
            done[name, seed] = Supernet(run, run.name, name, seed, result["steps"])
        if len(done) == num_done:
            time.sleep(_POLL_SECONDS)
    return [done[name, seed] for name, _, seed in jobs]


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
