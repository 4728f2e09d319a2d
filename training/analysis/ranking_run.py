"""The run of a ranking: super-nets, children trained alone, and the folder that compares the two (5.2)."""

import hashlib
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from modeling_magic import MagicConfig

from ..data.text import PreparedData, load_data
from ..drawing import write_figure
from ..files import write_csv
from ..hub.presets import load_preset
from ..runs.folders import bars_off, check_one_process, finished_result, open_run, read_result, read_settings
from ..space.search_space import SearchSpace, format_architecture
from ..supernet.arguments import MagicTrainingArguments
from ..supernet.evaluation import Batch, Evaluator, judging_batches
from ..supernet.loading import check_vocabulary, follow_supernet, load_supernet, supernet_folder
from ..tables import markdown_table
from .micro_benchmark import load_micro_benchmark
from .ranking import (
    MethodTau,
    RankingQuality,
    Scores,
    TruthNoise,
    check_scores,
    compare_rankings,
    evaluate_ranking,
    method_tau,
    truth_noise,
)
from .ranking_figures import draw_methods, draw_ranking
from .settings import MICRO_BENCHMARK, MIN_CHILDREN, JudgingSettings, RankingSettings, StandaloneSettings
from .standalone import check_standalone, train_standalone
from .truth import Truth, load_truth, read_standalone, truth_of


logger = logging.getLogger(__name__)

STANDALONE_FOLDER = "standalone"
# The number of children in the paper's Table 1.
_NUM_CHILDREN = 60
_SIZES_OF_CHILDREN = ("hidden_size", "intermediate_size", "embedding_size", "vocab_size")
_DEFAULTS = {item.name: item.default for item in fields(MagicTrainingArguments)}


@dataclass(frozen=True)
class Supernet:
    """A super-net whose ranking is compared with the truth.

    Attributes:
        folder: the folder of its run or model.
        name: a name that no other super-net has.
        method: the name that it shares with super-nets that differ from it in the seed only.
        seed: the seed of its training, `None` if unknown.
        steps: the number of optimizer steps, `None` if unknown.
    """

    folder: Path
    name: str
    method: str
    seed: int | None
    steps: int | None


def follow_supernets(supernets: Sequence[str | Path], recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns a ranking recipe that takes text, tokenizer and masking probability from the first super-net's run.

    Keys of the given recipe take precedence.

    Args:
        supernets: finished super-net runs, or folders of super-nets.
        recipe: a recipe for rankings, which may be empty.

    Raises:
        ValueError: there is no super-net.
    """
    if not supernets:
        raise ValueError("there is no super-net to compare; name at least one finished run of `magic-nas pretrain`")
    followed = follow_supernet(supernets[0], recipe)
    del followed["supernet"]
    if read_result(Path(supernets[0])) is not None:
        followed = {"mlm_probability": read_settings(supernets[0])["mlm_probability"], **followed}
    return {**followed, "supernets": [str(Path(folder).resolve()) for folder in supernets]}


# ---- Given super-nets ----


@bars_off()
def run_ranking(settings: RankingSettings, output_dir: str | Path) -> dict[str, Any]:
    """Ranks children by the shared weights of super-nets, compares the rankings with the truth and returns the result.

    The folder then holds children.csv (truth and scores), supernets.csv, methods.csv, comparisons.csv, figures and
    result.json. A stopped run resumes child by child; a finished one returns its result.

    Raises:
        ValueError: the settings contradict one another, super-nets and truth differ in space or text, there are fewer
            than five children, losses are not finite or all the same, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    # Before training arguments are made: that would wait for the other ranks.
    check_one_process()
    supernets = _supernets_of(settings)
    configs = [load_preset(supernet_folder(supernet.folder)) for supernet in supernets]
    space = _common_space(supernets, configs)
    standalone = _standalone_settings(settings)
    truth = None if settings.truth is None else given_truth(settings, space)
    if truth is None:
        check_standalone(standalone)
        if settings.metric not in ("val_loss", "val_accuracy"):
            raise ValueError(f"metric is {settings.metric!r}; children trained here have val_loss and val_accuracy")
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    data = load_data(settings.data, min(config.max_sequence_length for config in configs))
    _check_supernets(supernets, configs, data)
    with open_run(output_dir, settings) as run:
        if run.result is not None:
            return run.result
        if truth is None:
            folder = output_dir / STANDALONE_FOLDER
            # The folder may hold more children or seeds, left by a stopped run; these are not used.
            children = train_standalone(standalone, folder)
            truth = truth_of(children, settings.metric, read_standalone(folder)[0])
        note = check_truth(truth, configs[0], data, settings.accept_other_text)
        if note:
            logger.warning(note)
        batches = judging_batches(
            data, settings.mlm_probability, settings.batch_size, settings.num_validation_sequences
        )
        scores = [shared_scores(supernet, truth, batches, output_dir) for supernet in supernets]
        judged = with_note(judge(settings, supernets, truth, scores, output_dir), note)
        return run.finish({**judged, "corpus": data.fingerprint})


def with_note(result: dict[str, Any], note: str) -> dict[str, Any]:
    """Returns a result with a note, also in its table, on what cannot be compared with the truth."""
    return {**result, "truth_note": note, "table": f"{result['table']}\n\n{note}"} if note else result


def _standalone_settings(settings: RankingSettings) -> StandaloneSettings:
    return StandaloneSettings(
        preset=str(supernet_folder(settings.supernets[0])),
        num_children=_NUM_CHILDREN if settings.num_children is None else settings.num_children,
        sample_seed=settings.sample_seed,
        seeds=settings.seeds,
        mlm_probability=settings.mlm_probability,
        num_validation_sequences=settings.num_validation_sequences,
        data=settings.data,
        training_arguments=settings.training_arguments,
    )


def _supernets_of(settings: RankingSettings) -> list[Supernet]:
    given = settings.supernets
    if not given:
        raise ValueError("supernets is empty; give a list of finished super-net runs or folders of super-nets")
    if len({str(Path(folder).resolve()) for folder in given}) < len(given):
        raise ValueError("a super-net is named twice in supernets; name each once")
    folders = [Path(folder) for folder in given]
    results = [read_result(folder) for folder in folders]
    recipes = [
        {} if result is None or "visits" not in result else read_settings(folder)
        for folder, result in zip(folders, results, strict=True)
    ]
    methods = _methods(folders, recipes)
    return [
        Supernet(
            folder,
            _distinct_name(folder, folders),
            method,
            result["seed"] if result and recipe else None,
            result["steps"] if result and recipe else None,
        )
        for folder, result, recipe, method in zip(folders, results, recipes, methods, strict=True)
    ]


def _distinct_name(folder: Path, folders: Sequence[Path]) -> str:
    alike = [other for other in folders if other.name == folder.name]
    return folder.name if len(alike) == 1 and folder.name else str(folder)


def method_name(arguments: Mapping[str, Any]) -> str:
    """Returns the paper's name for a way of training super-nets, with its variations, from the training arguments."""
    sampler, alignment, k = (
        arguments.get(name, _DEFAULTS[name]) for name in ("sampler", "alignment", "num_substitutions")
    )
    base = {"uniform": "SPOS", "fair": "FairNAS", "gradual": "MAGIC-T"}.get(sampler, sampler)
    if alignment == "anchor":
        base = {"uniform": "MAGIC-A", "gradual": "MAGIC-AT"}.get(sampler, f"{base} + anchor")
    elif alignment != "none":
        base = f"{base} + {alignment}"
    return f"{base}, k = {k}" if sampler == "gradual" else base


def _methods(folders: Sequence[Path], recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the method of each super-net. If methods of one name differ in other arguments, these are added."""
    facts = [_facts(recipe) for recipe in recipes]
    names = [
        method_name(recipe["training_arguments"]) if recipe else _distinct_name(folder, folders)
        for folder, recipe in zip(folders, recipes, strict=True)
    ]
    labels = []
    for name, own in zip(names, facts, strict=True):
        alike = [other for other_name, other in zip(names, facts, strict=True) if other_name == name]
        keys = sorted(set().union(*alike))
        differing = [key for key in keys if len({other.get(key) for other in alike}) > 1]
        labels.append(", ".join([name, *(f"{key} = {own.get(key, 'unknown')}" for key in differing)]))
    return labels


def _facts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Returns a recipe without its seed as text, flattened by one level, with the defaults of training arguments."""
    flat: dict[str, Any] = dict(_DEFAULTS) if recipe else {}
    for name, value in recipe.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: str(value) for name, value in flat.items() if name != "seed"}


def _common_space(supernets: Sequence[Supernet], configs: Sequence[MagicConfig]) -> SearchSpace:
    for supernet, config in zip(supernets, configs, strict=True):
        if not config.is_supernet:
            raise ValueError(f"{supernet.folder} holds one child and cannot rank others; name a super-net")
        if config.candidate_operators != configs[0].candidate_operators:
            raise ValueError(
                f"{supernet.folder} has another search space than {supernets[0].folder}; compare super-nets of one "
                f"space"
            )
        result = read_result(supernet.folder)
        if result is not None and result.get("space", config.candidate_operators) != config.candidate_operators:
            raise ValueError(
                f"shrinking has deleted operators of {supernet.folder} during training, so its children were not "
                f"trained equally and cannot be ranked; train it without --shrink"
            )
    return SearchSpace.from_config(configs[0].candidate_operators)


def _check_supernets(supernets: Sequence[Supernet], configs: Sequence[MagicConfig], data: PreparedData) -> None:
    for supernet, config in zip(supernets, configs, strict=True):
        check_vocabulary(str(supernet.folder), data)
        for name in _SIZES_OF_CHILDREN:
            own, first = getattr(config, name), getattr(configs[0], name)
            if own != first:
                raise ValueError(
                    f"{name} of {supernet.folder} is {own} but that of {supernets[0].folder} is {first}; they must be "
                    f"equal"
                )
        result = read_result(supernet.folder)
        if result is not None and result.get("corpus", data.fingerprint)["sha256"] != data.fingerprint["sha256"]:
            raise ValueError(
                f"{supernet.folder} was trained on another text than {data.fingerprint['source']}; compare super-nets "
                f"that were trained on one text, and give that text as data"
            )


# ---- Truth ----


def given_truth(settings: JudgingSettings, space: SearchSpace) -> Truth:
    """Returns the truth that the settings name, for the children that they ask for.

    Raises:
        ValueError: it is not a truth, or has another space.
    """
    if settings.truth == MICRO_BENCHMARK:
        truth = load_micro_benchmark().truth(settings.metric)
    else:
        truth = load_truth(str(settings.truth), settings.metric, settings.lower_is_better)
    for child in truth.values:
        if child not in space:
            raise ValueError(
                f"the truth {settings.truth} has another space than the super-net: it contains "
                f"{format_architecture(child)}"
            )
    number = settings.num_children
    if number is not None and number > len(truth.values):
        raise ValueError(
            f"num_children is {number}, but {settings.truth} has {len(truth.values)} children; it must be at most that"
        )
    if number is not None:
        truth = truth.subset(random.Random(settings.sample_seed).sample(sorted(truth.values), number))
    check_scores(truth=truth.means)
    return truth


def check_truth(truth: Truth, config: MagicConfig, data: PreparedData, accepts_other_text: bool = False) -> str:
    """Checks that the children of a truth match the super-net; returns a note on what cannot be compared.

    For a user's own file only the space is known, which is checked when the file is read.

    Args:
        truth: the truth that super-nets are compared with.
        config: the configuration of the super-nets.
        data: the text that they are trained and scored on.
        accepts_other_text: whether another text or tokenizer is reported in the note instead of refused. The note is
            empty if both are the same.

    Raises:
        ValueError: the space or a size differs, or the text or the tokenizer differs and this is not accepted.
    """
    if not truth.key:
        return ""
    if truth.key["candidate_operators"] != config.candidate_operators:
        raise ValueError(
            "the truth has another search space than the super-net; train children of the super-net's space alone"
        )
    for name in _SIZES_OF_CHILDREN:
        found, wanted = truth.key["sizes"].get(name), getattr(config, name)
        if found != wanted:
            raise ValueError(f"{name} is {found} in the truth but {wanted} in the super-net; use one preset for both")
    has_other_text = truth.key["data"] != data.fingerprint["sha256"]
    if not has_other_text and truth.key.get("tokenizer") == data.fingerprint["tokenizer"]:
        return ""
    if accepts_other_text:
        return (
            f"The children of the truth were trained with another {'text' if has_other_text else 'tokenizer'} than "
            f"the super-nets. Differences in their order that are due to this count as errors of the ranking, and "
            f"losses of the two cannot be compared."
        )
    if has_other_text:
        raise ValueError(
            f"the children of the truth were trained on another text than {data.fingerprint['source']}; name the text "
            f"that they were trained on, train them on this one, or accept the other text with --accept-other-text"
        )
    raise ValueError(
        "the children of the truth were trained with another tokenizer than the super-net, so their losses are over "
        "different tokens; name their tokenizer as data.tokenizer, train them with the super-net's, or accept the "
        "other tokenizer with --accept-other-text"
    )


# ---- Scores ----


def shared_scores(supernet: Supernet, truth: Truth, batches: Sequence[Batch], output_dir: Path) -> Scores:
    """Returns the negative shared-weight validation loss of each child (5.2), from the folder's journal if present."""
    device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_supernet(supernet.folder).to(device)
    evaluate = Evaluator(model, batches, journal=output_dir / f"scores-{_slug(supernet)}.jsonl", progress=True)
    return {child.architecture: -child.val_loss for child in evaluate(sorted(truth.values))}


def _slug(supernet: Supernet) -> str:
    """Returns a file name for a super-net, different for each folder."""
    digest = hashlib.sha256(str(supernet.folder.resolve()).encode()).hexdigest()[:8]
    return f"{file_name(supernet.name)}-{digest}"


def file_name(text: str) -> str:
    """Returns a text as a file name, with unsuitable characters replaced."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", text.replace(" = ", "=")).strip("-.")[:60] or "supernet"


# ---- Judging ----


def judge(
    settings: JudgingSettings,
    supernets: Sequence[Supernet],
    truth: Truth,
    scores: Sequence[Scores],
    output_dir: Path,
) -> dict[str, Any]:
    """Writes tables and figures that compare super-nets with a truth, and returns their contents.

    Raises:
        ValueError: scores are not finite or all the same.
    """
    means, resamples = truth.means, settings.num_resamples
    named = {f"the score of {supernet.name}": one for supernet, one in zip(supernets, scores, strict=True)}
    check_scores(truth=means, **named)
    noise = truth_noise(truth.values) if truth.num_repeated >= MIN_CHILDREN else None
    qualities = [evaluate_ranking(means, one, settings.top_k, resamples) for one in scores]
    groups: dict[str, list[Scores]] = {}
    for supernet, one in zip(supernets, scores, strict=True):
        groups.setdefault(supernet.method, []).append(one)
    methods = {name: method_tau(means, group, resamples) for name, group in groups.items()}
    comparisons = {
        pair: compare_rankings(means, groups[pair[0]], groups[pair[1]], resamples) for pair in combinations(groups, 2)
    }
    _write_children(truth, supernets, scores, output_dir)
    rows = [_supernet_row(*pair) for pair in zip(supernets, qualities, strict=True)]
    write_rows(output_dir / "supernets.csv", rows)
    write_rows(output_dir / "methods.csv", [method_row(name, method) for name, method in methods.items()])
    compared = [
        {"first": first, "second": second, **flat_intervals(asdict(comparison))}
        for (first, second), comparison in comparisons.items()
    ]
    write_rows(output_dir / "comparisons.csv", compared)
    labels = ("negative validation loss, shared weights", f"{'negative ' if truth.is_loss else ''}{truth.metric}")
    for supernet, one, quality in zip(supernets, scores, qualities, strict=True):
        title = supernet.method if supernet.seed is None else f"{supernet.method}, seed {supernet.seed}"
        figure = draw_ranking(means, one, quality, title, labels)
        write_figure(output_dir / f"ranking-{_slug(supernet)}.png", figure)
    write_figure(output_dir / "methods.png", draw_methods(methods, noise))
    table = _table(truth, noise, methods, comparisons, dict(zip((s.name for s in supernets), qualities, strict=True)))
    return {
        "metric": truth.metric,
        "num_children": len(means),
        "num_repeated": truth.num_repeated,
        "noise": noise and asdict(noise),
        "supernets": rows,
        "methods": {
            name: {"mean": method.mean, "interval": method.interval, "taus": method.taus}
            for name, method in methods.items()
        },
        "comparisons": compared,
        "table": table,
    }


def _write_children(truth: Truth, supernets: Sequence[Supernet], scores: Sequence[Scores], output_dir: Path) -> None:
    columns = ["architecture", truth.metric, "num_seeds", *(f"score {supernet.name}" for supernet in supernets)]
    means = truth.means
    rows = [
        [
            format_architecture(child),
            truth.show(means[child]),
            len(truth.values[child]),
            *(one[child] for one in scores),
        ]
        for child in sorted(means, key=lambda child: (-means[child], child))
    ]
    write_csv(output_dir / "children.csv", columns, rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys as CSV. Without rows, only a header is written."""
    columns = list(rows[0]) if rows else ["first", "second"]
    write_csv(path, columns, [[row[column] for column in columns] for row in rows])


def _supernet_row(supernet: Supernet, quality: RankingQuality) -> dict[str, Any]:
    own = {"supernet": supernet.name, "method": supernet.method, "seed": supernet.seed, "steps": supernet.steps}
    values = flat_intervals({name: value for name, value in asdict(quality).items() if name != "top"})
    for top in quality.top:
        values |= {f"{name}_{top.k}": getattr(top, name) for name in ("overlap", "regret", "random_regret")}
    return own | values


def method_row(name: str, method: MethodTau) -> dict[str, Any]:
    """Returns the row of a method in a table."""
    own = {"method": name, "num_supernets": len(method.taus), "mean_tau": method.mean, "spread": method.spread}
    return own | flat_intervals({"interval": method.interval})


def flat_intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row in which each interval is split into two columns."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}_low": value[0], f"{name}_high": value[1]} if isinstance(value, tuple) else {name: value}
    return flat


def _table(
    truth: Truth,
    noise: TruthNoise | None,
    methods: Mapping[str, MethodTau],
    comparisons: Mapping[tuple[str, str], Any],
    qualities: Mapping[str, RankingQuality],
) -> str:
    rows = [
        [
            name,
            len(method.taus),
            f"{method.mean:.3f} ({method.interval[0]:.3f} to {method.interval[1]:.3f})",
            "" if method.spread is None else f"{method.spread:.3f}",
        ]
        for name, method in methods.items()
    ]
    columns = ["method", "super-nets", "Kendall's tau, mean (95% interval)", "sd over super-nets"]
    lines = [markdown_table(columns, rows)]
    lines += ["", *(f"{name}: {quality}" for name, quality in qualities.items())]
    if comparisons:
        lines += ["", "Difference in tau on the same children:"]
        lines += [f"{first} minus {second}: {comparison}" for (first, second), comparison in comparisons.items()]
    lines.append("")
    if noise is not None:
        lines.append(f"Truth, {truth.metric}: {noise}.")
    else:
        lines.append(
            f"Truth, {truth.metric}: {truth.num_repeated} children were trained more than once, too few to estimate "
            f"the seed noise and the ceiling that it puts on tau."
        )
    return "\n".join(lines)
