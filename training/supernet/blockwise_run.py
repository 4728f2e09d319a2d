"""Block-wise super-net runs (NAS-BERT): training to imitate a teacher, and ranking children by block losses."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from modeling_magic import MagicConfig, MagicForMaskedLM
from modeling_magic.warm_start import check_initialization, initialize_from

from ..data.fitting import most_positions
from ..data.text import MaskingCollator, PreparedData, load_data
from ..distillation.teacher import follow_teacher, load_fitting_teacher, weights_hash
from ..hub.model_folders import model_in
from ..hub.presets import load_preset
from ..resuming import last_complete_checkpoint
from ..runs.folders import Run, bars_off, finished_result, open_run
from ..runs.settings import SUPERNET_EPOCHS
from ..runs.training import pretraining_arguments, settle_length, tell_training
from ..space.costs import count_parameters
from ..space.search_space import format_architecture
from ..tables import markdown_table
from .arguments import MagicTrainingArguments
from .blocks import BlockwiseChild, BlockwiseRanking
from .blockwise import BlockwiseTrainer, check_blockwise, load_teacher_encoder
from .evaluation import evaluate_child
from .pretrain import save_supernet, supernet_facts
from .settings import BlockwiseSettings
from .setup import check_search, fit_to_text


logger = logging.getLogger(__name__)


OBJECTIVE = "block-wise imitation of a teacher's hidden states (NAS-BERT)"


@bars_off()
def run_blockwise(settings: BlockwiseSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains a super-net block by block (NAS-BERT) and returns the result with the exact best child within the budget.

    The folder then contains `supernet/` (a model folder with all operators, whose embeddings and head keep their
    initial weights: those of `init_from`, or random ones), result.json, which `retrain.follow_search` reads, and the
    checkpoints. A stopped run is resumed; a finished one returns its result and needs no teacher.

    In the result, children are ranked by `block_loss`, the sum of `block_losses`. `val_loss` and `val_accuracy` are,
    as in every run, masked-LM figures of the found child with the super-net's weights. If the head was never trained,
    they are no better than chance.

    Raises:
        ValueError: the settings contradict one another, the teacher does not fit, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    config = load_preset(settings.preset)
    args = _arguments(settings, output_dir, config.hidden_size)
    _check(settings, config, args)
    source, settings = follow_teacher(settings)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    initial = None if settings.init_from is None else model_in(settings.init_from)
    if initial is not None:
        check_initialization(config, initial, vocabulary=False)
    teacher = load_fitting_teacher(load_teacher_encoder, source, settings)
    check_blockwise(config, args, settings.num_blocks, teacher.config)
    with args.main_process_first():
        data = load_data(settings.data, most_positions(config, teacher.config))
    config = fit_to_text(config, data)
    check_search(config, args)
    settle_length(args, settings.training_arguments, data, SUPERNET_EPOCHS)
    tell_training(args, data)
    set_seed(args.seed)
    model = MagicForMaskedLM(config)
    # Also when the run resumes, since checkpoints hold only the layers.
    if initial is not None:
        logger.info("%s", initialize_from(model, initial))
    inputs = {**data.hashes, "the teacher": weights_hash(teacher)}
    if initial is not None:
        inputs["the initial weights"] = weights_hash(model)
    with open_run(output_dir, settings, args.should_save, inputs) as run:
        return run.result or _train(run, model, teacher, data, args, settings)


def _arguments(settings: BlockwiseSettings, output_dir: Path, hidden_size: int) -> MagicTrainingArguments:
    # The paper's alignment belongs to its own super-net; a recipe that asks for it here is rejected.
    given = {"alignment": "none", **settings.training_arguments}
    return pretraining_arguments(MagicTrainingArguments, output_dir, given, hidden_size)


def _check(settings: BlockwiseSettings, config: MagicConfig, args: MagicTrainingArguments) -> None:
    """Raises a ValueError for every problem that can be found before anything is loaded."""
    if not settings.teacher:
        raise ValueError("no teacher is given; set --blockwise to an encoder, as a folder or a name on the Hub")
    # Costs are not checked yet: the preset's vocabulary may be larger than the tokenizer's.
    check_search(config, args, vocabulary=False)
    check_blockwise(config, args, settings.num_blocks)


def _train(
    run: Run,
    model: MagicForMaskedLM,
    teacher: PreTrainedModel,
    data: PreparedData,
    args: MagicTrainingArguments,
    settings: BlockwiseSettings,
) -> dict[str, Any]:
    trainer = BlockwiseTrainer(
        model,
        args,
        teacher=teacher,
        num_blocks=settings.num_blocks,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(run.folder, tells=True))
    ranking = trainer.ranking()
    best = ranking.best_children(trainer.budget, settings.num_ranked)
    result = {
        **_search_record(trainer, best[0]),
        **_blockwise_record(trainer, ranking, best, settings),
        "init_from": settings.init_from,
        **supernet_facts(trainer, data, time.perf_counter() - start, settings.mlm_probability),
    }
    return save_supernet(run, model, data, result)


def _search_record(trainer: BlockwiseTrainer, found: BlockwiseChild) -> dict[str, Any]:
    """Returns the part of the record that every search of a super-net has."""
    args, supernet = trainer.args, trainer.supernet
    # The trainer moves only what it trains, the layers.
    supernet.magic.embeddings.to(args.device)
    supernet.lm_head.to(args.device)
    sampler = args.sampler if args.sampler != "gradual" else f"gradual, k = {args.num_substitutions}"
    loss, accuracy = evaluate_child(supernet, trainer.validation_batches, found.architecture, trainer.accelerator)
    return {
        "architecture": found.architecture,
        "val_loss": loss,
        "val_accuracy": accuracy,
        "candidate_operators": trainer.full_space.to_json(),
        "space": trainer.space.to_json(),
        "sampler": f"{sampler}, in each block",
        "alignment": args.alignment,
        "alignment_weight": None,
        "steps": trainer.state.global_step,
        "seed": args.seed,
    }


def _blockwise_record(
    trainer: BlockwiseTrainer, ranking: BlockwiseRanking, best: list[BlockwiseChild], settings: BlockwiseSettings
) -> dict[str, Any]:
    """Returns the part of the record that only block-wise super-nets have."""
    found = best[0]
    widths = (trainer.teacher.config.hidden_size, trainer.supernet.config.hidden_size)
    return {
        "objective": OBJECTIVE,
        "block_loss": found.block_loss,
        "block_losses": found.block_losses,
        "num_blocks": settings.num_blocks,
        "borders": ranking.borders,
        "num_paths": [len(losses) for losses in ranking.losses],
        "ranking": [{"architecture": child.architecture, "block_loss": child.block_loss} for child in best],
        "teacher": {
            "name": settings.teacher,
            "weights": weights_hash(trainer.teacher),
            "borders": trainer.teacher_borders,
            "hidden_size": widths[0],
            "is_mapped": widths[0] != widths[1],
        },
    }


def blockwise_table(config: MagicConfig, result: dict[str, Any]) -> str:
    """Returns the result of a block-wise run as Markdown: the found child, and the best children with block losses.

    Args:
        config: configuration of the super-net.
        result: the result, as returned by `run_blockwise`.
    """
    child = tuple(result["architecture"])
    facts = [
        ("found child", format_architecture(child)),
        ("parameters", f"{count_parameters(config, child, head='mlm') / 1e6:.2f}M"),
        ("budget", result["budget"]),
        ("block loss (ranking score)", f"{result['block_loss']:.4f}"),
        ("loss per block", ", ".join(f"{loss:.4f}" for loss in result["block_losses"])),
        ("sub-paths evaluated", ", ".join(f"{number:,}" for number in result["num_paths"])),
        ("children ranked", f"{math.prod(result['num_paths']):,}"),
        (
            "masked-LM loss with these weights",
            f"{result['val_loss']:.3f} (block-wise training leaves out embeddings and head)",
        ),
    ]
    ranked = [
        (rank, format_architecture(child["architecture"]), f"{child['block_loss']:.4f}")
        for rank, child in enumerate(result["ranking"], start=1)
    ]
    tables = (markdown_table(("what", "value"), facts), markdown_table(("rank", "child", "block loss"), ranked))
    return "\n\n".join(tables)
