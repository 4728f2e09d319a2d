"""Super-net runs: training, shrinking, and finding a child (5.1)."""

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed

from modeling_magic import MagicConfig, MagicForMaskedLM
from modeling_magic.warm_start import check_initialization, initialize_from

from ..data.fitting import fit_tokenizer
from ..data.text import MaskingCollator, PreparedData, load_data
from ..files import written_at_once
from ..hub.card import card_length
from ..hub.model_folders import model_in
from ..hub.presets import load_preset
from ..resuming import last_complete_checkpoint
from ..runs.folders import Run, bars_off, finished_result, open_run
from ..runs.settings import SUPERNET_EPOCHS
from ..runs.training import pretraining_arguments, settle_length, tell_training
from ..space.costs import count_flops, count_parameters
from ..space.search_space import format_architecture
from ..tables import markdown_table
from .arguments import MagicTrainingArguments
from .evaluation import judging_record
from .journal import RankedChild
from .loading import SUPERNET_FOLDER
from .settings import PretrainSettings
from .setup import check_search, fit_to_text
from .trainer import MagicTrainer


logger = logging.getLogger(__name__)


@bars_off()
def pretrain(settings: PretrainSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains a super-net (5.1) and returns the result: the found child, its score and the history of the search.

    The folder then contains `supernet/` (a model folder with all operators), result.json and the checkpoints. A
    stopped run is resumed; a finished one returns its result.

    Raises:
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    # Checks that need no text come first, and nothing is written before the text has been read.
    config = load_preset(settings.preset)
    args = pretraining_arguments(MagicTrainingArguments, output_dir, settings.training_arguments, config.hidden_size)
    # Costs are not checked yet: the preset's vocabulary may be larger than the tokenizer's.
    check_search(config, args, vocabulary=False)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    initial = None
    # A resumed run has all weights in its checkpoint, and its initial weights may no longer exist.
    if settings.init_from is not None and last_complete_checkpoint(output_dir) is None:
        initial = model_in(settings.init_from)
        check_initialization(config, initial, vocabulary=False)
    with args.main_process_first():
        data = load_data(settings.data, config.max_sequence_length)
    config = fit_to_text(config, data)
    check_search(config, args)
    settle_length(args, settings.training_arguments, data, SUPERNET_EPOCHS)
    tell_training(args, data)
    set_seed(args.seed)
    model = MagicForMaskedLM(config)
    if initial is not None:
        logger.info("%s", initialize_from(model, initial))
    with open_run(output_dir, settings, args.should_save, data.hashes) as run:
        return run.result or _train_supernet(run, model, data, args, settings)


def _train_supernet(
    run: Run, model: MagicForMaskedLM, data: PreparedData, args: MagicTrainingArguments, settings: PretrainSettings
) -> dict[str, Any]:
    trainer = MagicTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(run.folder, tells=True))
    found = trainer.best_child()
    result = {
        **_search_record(trainer, found),
        "init_from": settings.init_from,
        **supernet_facts(trainer, data, time.perf_counter() - start, settings.mlm_probability),
    }
    return save_supernet(run, model, data, result)


def supernet_facts(
    trainer: MagicTrainer, data: PreparedData, seconds: float, mlm_probability: float
) -> dict[str, Any]:
    """Returns what every super-net run records in addition to the child that it found."""
    args = trainer.args
    judged = (mlm_probability, args.per_device_eval_batch_size, args.num_validation_sequences)
    return {
        "seconds": seconds,
        "shrink_history": trainer.shrink_history,
        "anchor_history": trainer.anchor_history,
        "visits": trainer.visits,
        "health": trainer.health.to_json(),
        "budget": str(trainer.budget),
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        # Masked by the collator used in training.
        "judged_on": judging_record(trainer.accelerator, *judged, mask_seed=args.seed),
    }


def save_supernet(run: Run, model: MagicForMaskedLM, data: PreparedData, result: dict[str, Any]) -> dict[str, Any]:
    """Writes super-net, tokenizer and result to the run's folder, and returns the result as it reads back."""

    def export(_: dict[str, Any]) -> None:
        with written_at_once(run.folder / SUPERNET_FOLDER, replaces=True) as temporary:
            model.save_pretrained(temporary)
            fit_tokenizer(data.tokenizer, model.config).save_pretrained(temporary)

    return run.finish(result, export)


def _search_record(trainer: MagicTrainer, found: RankedChild) -> dict[str, Any]:
    args = trainer.args
    return {
        **asdict(found),
        "candidate_operators": trainer.full_space.to_json(),
        "space": trainer.space.to_json(),
        "sampler": args.sampler if args.sampler != "gradual" else f"gradual, k = {args.num_substitutions}",
        "alignment": args.alignment,
        "alignment_weight": args.alignment_weight if args.alignment != "none" else None,
        "steps": trainer.state.global_step,
        "seed": args.seed,
    }


def search_table(config: MagicConfig, search: dict[str, Any]) -> str:
    """Returns the result of a super-net run as a Markdown table."""
    child = tuple(search["architecture"])
    deleted = sum(len(entry["deleted"]) for entry in search["shrink_history"])
    return markdown_table(
        ("what", "value"),
        [
            ("found child", format_architecture(child)),
            ("parameters", f"{count_parameters(config, child, head='mlm') / 1e6:.2f}M"),
            ("FLOPs", f"{count_flops(config, child, card_length(config)):.2e}"),
            ("validation loss, shared weights", f"{search['val_loss']:.3f}"),
            ("validation accuracy, shared weights", f"{100 * search['val_accuracy']:.1f}%"),
            ("children left", f"{math.prod(map(len, search['space'])):,}"),
            ("operators deleted", f"{deleted} in {len(search['shrink_history'])} rounds"),
            ("anchors", len(search["anchor_history"])),
        ],
    )
