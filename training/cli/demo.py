"""The main job from end to end: super-net, shrinking, re-training beside two controls, and a model folder."""

import logging
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from modeling_magic import MagicConfig

from ..bars import progress_bar
from ..files import write_json, write_text
from ..hub.card import results_table
from ..hub.export import export_model, summarise, training_manifest
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


logger = logging.getLogger(__name__)

FOUND, BERT, RANDOM = "found by MAGIC", "BERT pattern", "random child"
QUESTIONS = ("this function returns the {} of the array.", "if true, the {} is not changed.")


def demo(output_dir: str | Path, short: bool = False, seeds: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Runs the demo into `output_dir` and returns its report; a demo that was stopped goes on where it was.

    The child that the search finds, the BERT pattern nearest to it in parameters and a random child are trained from
    scratch with the same training FLOPs, several seeds each.

    Args:
        output_dir: the folder of the run; `model/` in it is the found child, ready to load.
        short: the shortest setting, which shows that all works and nothing else.
        seeds: of the re-trainings.
    """
    output_dir = Path(output_dir)
    suffix = "-short" if short else ""
    settings = settings_from(PretrainSettings, load_recipe(f"demo-pretrain{suffix}"))
    template = settings_from(RetrainSettings, load_recipe(f"demo-retrain{suffix}"))
    seeds = seeds or ((0,) if short else (0, 1))
    logger.info(f"1 of 3: a super-net on {settings.data.source or 'the docstrings of the installed packages'}")
    search = pretrain(settings, output_dir / "search")
    config = load_supernet(output_dir / "search").config
    children = controls(config, tuple(search["architecture"]))
    logger.info("2 of 3: three children from scratch, with equal training FLOPs")
    trained = _train_all(output_dir, config, children, template, seeds)
    logger.info("3 of 3: the report and the model folder")
    rows = [summarise(name, results) for name, results in trained.items()]
    draw_search(search, trained, output_dir / "report.png")
    model = _export_found(output_dir, search, trained[FOUND], rows)
    table = results_table(rows)
    write_text(output_dir / "report.md", table + "\n")
    report = {"rows": rows, "model": str(model), "figure": str(output_dir / "report.png"), "table": table}
    write_json(output_dir / "report.json", report)
    return report


def controls(config: MagicConfig, found: Architecture, seed: int = 0) -> dict[str, Architecture]:
    """Returns the found child and what it is compared with: the BERT pattern nearest in parameters, a random child."""
    space = SearchSpace.from_config(config.candidate_operators)
    names = [name for layer in space.candidates for name in layer]
    attention = next(name for name in names if name.startswith("MHA"))
    feed_forward = next(name for name in names if name.startswith("FFN"))
    num_parameters = count_parameters(config, found, head="mlm")
    bert = nearest_bert_pattern(config, num_parameters, attention, feed_forward)
    rng = random.Random(seed)
    random_child = next(child for child in iter(lambda: space.sample(rng), None) if child not in (found, bert))
    return {FOUND: found, BERT: bert, RANDOM: random_child}


def equal_compute_steps(config: MagicConfig, children: dict[str, Architecture], steps: int) -> dict[str, int]:
    """Returns for each child the steps that cost as many training FLOPs as `steps` steps of the first child."""
    seq_len = config.max_position_embeddings
    costs = {name: training_flops(config, child, seq_len, seq_len) for name, child in children.items()}
    budget = steps * next(iter(costs.values()))
    return {name: max(round(budget / cost), 1) for name, cost in costs.items()}


def _train_all(
    output_dir: Path,
    config: MagicConfig,
    children: dict[str, Architecture],
    template: RetrainSettings,
    seeds: tuple[int, ...],
) -> dict[str, list[dict[str, Any]]]:
    steps = equal_compute_steps(config, children, template.training_arguments["max_steps"])
    jobs = {}
    for seed in seeds:
        for name, child in children.items():
            arguments = {**template.training_arguments, "max_steps": steps[name], "seed": seed, "disable_tqdm": True}
            settings = replace(template, architecture=format_architecture(child), training_arguments=arguments)
            jobs[name, seed] = (settings, output_dir / f"{name.replace(' ', '-')}-{seed}")
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # One process for each core with one thread each: on a machine that is busy, more threads only wait for each other.
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
            # They go on from their last checkpoints; the pool would wait for all of them, those not begun included.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return {name: [results[name, seed] for seed in seeds] for name in children}


def _start_worker() -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def _export_found(
    output_dir: Path, search: dict[str, Any], results: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> Path:
    best = min(results, key=lambda result: result["val_loss"])
    folder = output_dir / f"{FOUND.replace(' ', '-')}-{best['seed']}" / MODEL_FOLDER
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    manifest = {**training_manifest(best, search), "results": rows}
    return export_model(model, tokenizer, output_dir / MODEL_FOLDER, manifest)


def fill_mask_answers(model: str | Path) -> list[str]:
    """Returns what the model folder answers to a few sentences, each with its three likeliest words."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    answer = pipeline("fill-mask", model=str(model), tokenizer=tokenizer)
    mask = tokenizer.mask_token
    answers = []
    for question in QUESTIONS:
        guesses = answer(question.format(mask), top_k=3)
        answers.append(f"{question.format('____')}  {', '.join(guess['token_str'] for guess in guesses)}")
    return answers
