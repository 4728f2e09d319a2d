"""The paper's pipeline from end to end: super-net, shrinking, re-training with controls, and a model folder."""

import logging
import multiprocessing
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import datasets
import torch
from transformers import AutoModelForMaskedLM, pipeline

from modeling_magic import MagicConfig

from ..bars import progress_bar
from ..files import write_json, write_text
from ..hub.card import results_table
from ..hub.export import export_model, summarise, training_manifest
from ..pretrained import pretrained_model, pretrained_tokenizer
from ..retraining.retrain import retrain
from ..retraining.settings import RetrainSettings
from ..runs.folders import MODEL_FOLDER
from ..runs.recipes import load_recipe, settings_from
from ..space.costs import count_parameters, nearest_bert_pattern, training_flops
from ..space.search_space import Architecture, SearchSpace, format_architecture
from ..supernet.figures import draw_search
from ..supernet.loading import load_supernet
from ..supernet.pretrain import pretrain
from ..supernet.settings import PretrainSettings
from ..tables import counted
from .demo import check_demo_folder


logger = logging.getLogger(__name__)

FOUND, BERT, RANDOM = "found by MAGIC", "BERT pattern", "random child {}"
NUM_RANDOM = 5
QUESTIONS = ("this function returns the {} of the array.", "if true, the {} is not changed.")


def demo_from_scratch(output_dir: str | Path, short: bool = False) -> dict[str, Any]:
    """Runs the demo in `output_dir` and returns its report; a stopped demo resumes where it was.

    The found child, the BERT pattern nearest to it in parameters, and random children are trained from scratch with
    the same training FLOPs: the first two with two seeds each, the random children, of which there are several, with
    one.

    Args:
        output_dir: folder of the run; its `model/` is the found child, ready to load.
        short: whether to use the shortest setting, which only shows that everything works.

    Raises:
        ValueError: the folder holds something else.
    """
    output_dir = Path(output_dir)
    if not (output_dir / "search").is_dir():
        check_demo_folder(output_dir, "search")
    suffix, num_random = ("-short", 1) if short else ("", NUM_RANDOM)
    settings = settings_from(PretrainSettings, load_recipe(f"demo-pretrain{suffix}"))
    template = settings_from(RetrainSettings, load_recipe(f"demo-retrain{suffix}"))
    logger.info(f"1 of 3: a super-net on {settings.data.source or 'the docstrings of the installed packages'}")
    search = pretrain(settings, output_dir / "search")
    config = load_supernet(output_dir / "search").config
    children = controls(config, tuple(search["architecture"]), num_random)
    seeds = {name: (0, 1) if name in (FOUND, BERT) and not short else (0,) for name in children}
    logger.info(f"2 of 3: {len(children)} children from scratch, with equal training FLOPs")
    trained = _train_all(output_dir, config, children, template, seeds)
    logger.info("3 of 3: the report and the model folder")
    rows = [summarise(name, results) for name, results in trained.items()]
    draw_search(search, trained, output_dir / "report.png")
    model = _export_found(output_dir, search, trained[FOUND], rows)
    table, standing = results_table(rows), standing_of(rows)
    write_text(output_dir / "report.md", f"{table}\n\n{standing}\n")
    figure = output_dir / "report.png"
    report = {"rows": rows, "model": str(model), "figure": str(figure), "table": table, "standing": standing}
    write_json(output_dir / "report.json", report)
    return report


def standing_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence that ranks the found child among random ones by validation loss."""
    losses = {row["name"]: mean(row["val_loss"]) for row in rows}
    found = losses.pop(FOUND)
    losses.pop(BERT)
    worse = sum(loss > found for loss in losses.values())
    spread = f", standard deviation {stdev(losses.values()):.3f}" if len(losses) > 1 else ""
    drawn = counted(len(losses), "random child", "random children")
    return (
        f"The found child has a validation loss of {found:.3f}; the mean over {drawn} of the same space is "
        f"{mean(losses.values()):.3f}{spread}. It is better than {worse} of them."
    )


def controls(config: MagicConfig, found: Architecture, num_random: int, seed: int = 0) -> dict[str, Architecture]:
    """Returns the found child and its controls: the BERT pattern of the nearest size, and random children."""
    space = SearchSpace.from_config(config.candidate_operators)
    names = [name for layer in space.candidates for name in layer]
    attention = next(name for name in names if name.startswith("MHA"))
    feed_forward = next(name for name in names if name.startswith("FFN"))
    num_parameters = count_parameters(config, found, head="mlm")
    bert = nearest_bert_pattern(config, num_parameters, attention, feed_forward)
    rng, drawn = random.Random(seed), dict[Architecture, None]()
    while len(drawn) < num_random:
        if (child := space.sample(rng)) not in (found, bert):
            drawn[child] = None
    return {FOUND: found, BERT: bert} | {RANDOM.format(number): child for number, child in enumerate(drawn, 1)}


def equal_compute_steps(config: MagicConfig, children: dict[str, Architecture], steps: int) -> dict[str, int]:
    """Returns, for each child, the steps that cost as many training FLOPs as `steps` steps of the first child."""
    seq_len = config.max_position_embeddings
    costs = {name: training_flops(config, child, seq_len, seq_len) for name, child in children.items()}
    budget = steps * next(iter(costs.values()))
    return {name: max(round(budget / cost), 1) for name, cost in costs.items()}


def _train_all(
    output_dir: Path,
    config: MagicConfig,
    children: dict[str, Architecture],
    template: RetrainSettings,
    seeds: Mapping[str, tuple[int, ...]],
) -> dict[str, list[dict[str, Any]]]:
    steps = equal_compute_steps(config, children, template.training_arguments["max_steps"])
    jobs = {}
    for name, child in children.items():
        for seed in seeds[name]:
            arguments = {**template.training_arguments, "max_steps": steps[name], "seed": seed, "disable_tqdm": True}
            settings = replace(template, architecture=format_architecture(child), training_arguments=arguments)
            jobs[name, seed] = (settings, output_dir / f"{name.replace(' ', '-')}-{seed}")
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # One process per core with one thread each: on a busy machine, more threads would only wait for each other.
    workers = min(len(jobs), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(retrain, *job): key for key, job in jobs.items()}
        bar = progress_bar(as_completed(futures), total=len(futures), desc="children trained")
        try:
            for future in bar:
                results[futures[future]] = future.result()
                best = min(results, key=lambda key: results[key]["val_loss"])
                bar.set_postfix_str(f"best so far: {best[0]}, loss {results[best]['val_loss']:.3f}")
        except BaseException:
            # They resume from their last checkpoints; the pool would wait for all of them, even those not started.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return {name: [results[name, seed] for seed in seeds[name]] for name in children}


def _start_worker() -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def _export_found(
    output_dir: Path, search: dict[str, Any], results: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> Path:
    best = min(results, key=lambda result: result["val_loss"])
    folder = output_dir / f"{FOUND.replace(' ', '-')}-{best['seed']}" / MODEL_FOLDER
    model, _ = pretrained_model(AutoModelForMaskedLM, folder)
    tokenizer = pretrained_tokenizer(folder)
    manifest = {**training_manifest(best, search), "results": rows}
    return export_model(model, tokenizer, output_dir / MODEL_FOLDER, manifest)


def fill_mask_answers(model: str | Path) -> list[str]:
    """Returns the model's answers to a few sentences, each with the three most likely words."""
    tokenizer: Any = pretrained_tokenizer(model)
    answer = pipeline("fill-mask", model=str(model), tokenizer=tokenizer)
    mask = tokenizer.mask_token
    answers = []
    for question in QUESTIONS:
        guesses = answer(question.format(mask), top_k=3)
        answers.append(f"{question.format('____')}  {', '.join(guess['token_str'] for guess in guesses)}")
    return answers
