"""The run of an interference analysis: from a super-net's folder to matrices, curves and their figures (Fig. 2)."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from modeling_magic import MagicForMaskedLM
from modeling_magic.configuration_magic import parse_operator

from ..bars import progress_bar
from ..data.text import MaskingCollator, PreparedData, load_data
from ..drawing import write_figure
from ..files import make_output_folder, read_json, write_csv, write_json
from ..runs.checkpoints import NAS_STATE_NAME, read_nas_state
from ..runs.folders import (
    RUN_NAME,
    bars_off,
    check_one_process,
    finished_result,
    open_run,
    read_result,
    read_settings,
)
from ..runs.recipes import mapping_of
from ..space.search_space import Architecture, SearchSpace, parse_architecture
from ..space.timing import device_from
from ..supernet.evaluation import Batch, journal_key, validation_batches
from ..supernet.loading import check_vocabulary, follow_supernet, load_supernet
from ..tables import markdown_table
from .interference import (
    AlignmentTarget,
    ChildFamily,
    Estimate,
    GradientMeter,
    by_kind,
    check_alignment,
    check_supernet,
    cosine_matrix,
    layers_that_differ,
    mean_off_diagonal,
    same_and_other_kind,
)
from .interference_figures import draw_curves, draw_matrices
from .settings import InterferenceSettings


REPEATS_NAME = "repeats.json"


def follow_weights(supernet: str | Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe for an analysis of a super-net that takes text, tokenizer, masking and Eq. (2) from its run.

    Keys of the given recipe take precedence. Whether the loss is Eq. (2) is not taken from the run.

    Args:
        supernet: a finished super-net run, a checkpoint in its folder, or the folder of a super-net.
        recipe: a recipe for the analysis, which may be empty.
    """
    folder = Path(supernet).resolve()
    is_checkpoint = (folder / NAS_STATE_NAME).is_file()
    run = folder.parent if is_checkpoint else folder
    known = (run / RUN_NAME).is_file() if is_checkpoint else read_result(run) is not None
    settings = read_settings(run) if known else {}
    of_run = {**settings.get("training_arguments", {}), **settings}
    names = ("mlm_probability", "alignment_weight", "alignment_every_n_layers", "num_average_children")
    recipe = {name: of_run[name] for name in names if name in of_run} | recipe
    if not is_checkpoint:
        return follow_supernet(folder, recipe)
    data = {**settings.get("data", {}), "tokenizer": str(folder), **mapping_of("data", recipe)}
    return {**recipe, "supernet": str(folder), "data": data}


@bars_off()
def run_interference(settings: InterferenceSettings, output_dir: str | Path) -> dict[str, Any]:
    """Measures the interference of a super-net's children on a shared operator (section 3, Fig. 2).

    Each repeat draws o_g, the operators that all children share, and a batch. With that batch it compares children
    that differ in one layer, then children that differ in two, and so on. The folder then holds result.json,
    repeats.json (every matrix), cosines.csv, matrix.csv, kinds.csv, curve.csv and the figures matrix.png and
    curve.png. A stopped analysis resumes at the next repeat; a finished one returns its result.

    Args:
        settings: the super-net, o_g, the children and the batches.
        output_dir: the run's folder.

    Returns:
        The result, with a `summary` as text.

    Raises:
        ValueError: the settings contradict one another or the super-net, a loss is not finite, or the folder holds
            another run.
    """
    output_dir = Path(output_dir)
    device = device_from(settings.device)
    check_one_process()
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    model = load_supernet(settings.supernet)
    check_supernet(model)
    space = analysed_space(settings, model)
    layers = _layers(settings, space)
    # Refuses an unknown operator or an alignment that does not fit before any text is read.
    ChildFamily(space, settings.shared_layer, layers, random.Random(0), settings.operator)
    if (alignment := _alignment(settings, space, random.Random(0))) is not None:
        check_alignment(model, alignment)
    data = load_data(settings.data, model.config.max_sequence_length)
    check_vocabulary(settings.supernet, data)
    with open_run(output_dir, settings) as run:
        if run.result is not None:
            return run.result
        model = model.to(device)  # type: ignore[arg-type]
        analysis = _Analysis(settings, model, space, layers, data)
        repeats = analysis.run(output_dir / REPEATS_NAME)
        found = {**summarise_repeats(repeats), **analysis.facts()}
        found["summary"] = _summary(settings, found)

        def export(result: dict[str, Any]) -> None:
            write_tables(result, repeats, output_dir)
            for name, figure in draw_result(settings, result).items():
                write_figure(output_dir / f"{name}.png", figure)

        return run.finish(found, export)


# ---- Checks ----


def analysed_space(settings: InterferenceSettings, model: MagicForMaskedLM) -> SearchSpace:
    """Returns the children to draw from: those that shrinking has left in the run or at the checkpoint, or all."""
    whole = SearchSpace.from_config(model.config.candidate_operators)
    record = _record_of(settings.supernet)
    if record is None or settings.full_space:
        return whole
    space = SearchSpace.from_json(record["space"])
    if space.size == 1:
        raise ValueError(
            f"shrinking has left one child in {settings.supernet}, so no weights are shared; use an earlier "
            f"checkpoint, or draw from all operators that it had before shrinking: full_space=true"
        )
    return space


def _record_of(supernet: str) -> dict[str, Any] | None:
    """Returns a run's result or a checkpoint's search state, `None` for a super-net from elsewhere."""
    if (Path(supernet) / NAS_STATE_NAME).is_file():
        return read_nas_state(supernet)
    return read_result(Path(supernet))


def _layers(settings: InterferenceSettings, space: SearchSpace) -> list[int]:
    """Returns the layers in which children may differ, as many as the largest m of the curve."""
    layers = layers_that_differ(space, settings.shared_layer, settings.first_differing_layer)
    most = settings.max_differing_layers
    if most is None:
        return layers
    if most > len(layers):
        raise ValueError(
            f"max_differing_layers is {most}; apart from layer {settings.shared_layer}, {len(layers)} layers have a "
            f"choice of operators"
        )
    return layers[:most]


def _alignment(settings: InterferenceSettings, space: SearchSpace, rng: random.Random) -> AlignmentTarget | None:
    if settings.alignment == "none":
        return None
    if settings.alignment == "average":
        children = tuple(space.sample(rng) for _ in range(settings.num_average_children))
    else:
        children = (_anchor(settings),)
    return AlignmentTarget(children, settings.alignment_weight, settings.alignment_every_n_layers)


def _anchor(settings: InterferenceSettings) -> Architecture:
    if settings.anchor is not None:
        return parse_architecture(settings.anchor)
    record = _record_of(settings.supernet) or {}
    # A checkpoint holds the anchor, a result its history.
    known = record.get("anchor") or next(reversed(record.get("anchor_history", [])), None)
    if known is None:
        raise ValueError(
            f"{settings.supernet} records no anchor; name one with anchor=OPERATOR,OPERATOR,..., or set alignment to "
            f"average"
        )
    return tuple(known["architecture"])


# ---- Repeats ----


class _Analysis:
    """The repeats of an analysis. Each depends on the seed and its number, and is on disk before the next begins."""

    def __init__(
        self,
        settings: InterferenceSettings,
        model: MagicForMaskedLM,
        space: SearchSpace,
        layers: Sequence[int],
        data: PreparedData,
    ):
        self._settings, self._model, self._space, self._layers = settings, model, space, layers
        self._data = data
        self._collator = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=settings.seed)
        self._weights = journal_key(model, [])["weights"]

    def facts(self) -> dict[str, Any]:
        """Returns the settings and inputs that the results depend on."""
        return {
            "settings": asdict(self._settings),
            "candidate_operators": self._model.config.candidate_operators,
            "differing_layers": list(self._layers),
            "interval": "Student's t over the repeats, 95%",
            "weights": self._weights,
            "corpus": self._data.fingerprint,
        }

    def run(self, path: Path) -> list[dict[str, Any]]:
        """Returns all repeats. Those recorded in `path` are not measured again."""
        facts = self.facts()
        key = {name: facts[name] for name in ("settings", "weights")}
        # The same name may refer to another text by now.
        key |= {name: self._data.fingerprint[name] for name in ("sha256", "tokenizer")}
        key = json.loads(json.dumps(key))
        repeats: list[dict[str, Any]] = []
        if path.is_file():
            known = read_json(path)
            if known["key"] != key:
                raise ValueError(
                    f"{path} was measured with other settings, another super-net's weights or another text; use "
                    f"another --output-dir"
                )
            repeats = known["repeats"]
        bar = progress_bar(total=self._settings.num_repeats, initial=len(repeats), desc="repeats", leave=False)
        with bar:
            while len(repeats) < self._settings.num_repeats:
                repeats.append(self._repeat(len(repeats)))
                write_json(path, {"key": key, "repeats": repeats})
                bar.set_postfix(cosine=f"{_means(repeats, 0).mean:.3f}", refresh=False)
                bar.update()
        return repeats

    def _repeat(self, number: int) -> dict[str, Any]:
        settings = self._settings
        rng = random.Random(f"interference-{settings.seed}-{number}")
        family = ChildFamily(self._space, settings.shared_layer, self._layers, rng, settings.operator)
        batches = self._batches(random.Random(f"batch-{settings.seed}-{number}"))
        alignment = _alignment(settings, self._space, random.Random(f"average-{settings.seed}-{number}"))
        meter = GradientMeter(self._model, batches, alignment)
        matrices = []
        for num_differing_layers in range(1, len(self._layers) + 1):
            children = family.children(num_differing_layers)
            measured = meter.gradients(children, settings.shared_layer)
            matrices.append(
                {
                    "num_differing_layers": num_differing_layers,
                    "children": [list(child) for child in children],
                    "losses": list(measured.losses),
                    "cosines": cosine_matrix(measured.gradients).tolist(),
                }
            )
        return {
            "repeat": number,
            "operator": children[0][settings.shared_layer],
            "aligned_to": [list(child) for child in alignment.children] if alignment else [],
            "batch": journal_key(self._model, batches)["data"],
            "matrices": matrices,
        }

    def _batches(self, rng: random.Random) -> list[Batch]:
        settings = self._settings
        source = self._data.train if settings.sequences == "train" else self._data.validation
        try:
            num_sequences = len(source)
        except TypeError:
            raise ValueError(
                "sequences of a streamed training set cannot be drawn at random; set sequences to validation"
            ) from None
        if settings.num_sequences > num_sequences:
            raise ValueError(
                f"num_sequences is {settings.num_sequences} but there are {num_sequences} {settings.sequences} "
                f"sequences; reduce num_sequences, or use more text"
            )
        chosen = [source[index] for index in rng.sample(range(num_sequences), settings.num_sequences)]
        return validation_batches(chosen, self._collator, settings.micro_batch_size)


# ---- Means over repeats ----


def summarise_repeats(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means with intervals over the repeats: the matrix, its kinds and the curve of Fig. 2.

    Returns:
        A JSON object with `matrix` (operators in the layer that differs, and mean, low and high of each pair),
        `kinds`, `same_kind`, `other_kind` and their paired difference (`None` if the layer has no such pairs), `curve`
        (by m), `shared_operators` and, with several m, the paired difference `first_minus_last`.
    """
    ones = [repeat["matrices"][0] for repeat in repeats]
    layer = next(index for index, own in enumerate(zip(*ones[0]["children"], strict=True)) if len(set(own)) > 1)
    operators = [child[layer] for child in ones[0]["children"]]
    cosines = np.array([one["cosines"] for one in ones])
    cells = [
        [Estimate.of(cosines[:, row, column].tolist()) for column in range(len(operators))]
        for row in range(len(operators))
    ]
    pairs = [same_and_other_kind(operators, matrix) for matrix in cosines]
    kinds = [by_kind(operators, matrix) for matrix in cosines]
    result: dict[str, Any] = {
        "shared_operators": [repeat["operator"] for repeat in repeats],
        "matrix": {
            "layer": layer,
            "operators": operators,
            **{name: [[getattr(cell, name) for cell in row] for row in cells] for name in ("mean", "low", "high")},
        },
        "kinds": [
            {"first": first, "second": second, **asdict(Estimate.of([own[first, second] for own in kinds]))}
            for first, second in kinds[0]
        ],
        "same_kind": None,
        "other_kind": None,
        "same_minus_other": None,
        "curve": [
            {
                "num_differing_layers": matrix["num_differing_layers"],
                "num_children": len(matrix["children"]),
                **asdict(_means(repeats, index)),
            }
            for index, matrix in enumerate(repeats[0]["matrices"])
        ],
        "first_minus_last": None,
    }
    known = [pair for pair in pairs if pair is not None]
    if known:
        same, other = zip(*known, strict=True)
        result["same_kind"], result["other_kind"] = asdict(Estimate.of(same)), asdict(Estimate.of(other))
        result["same_minus_other"] = asdict(Estimate.of([first - second for first, second in known]))
    if len(result["curve"]) > 1:
        ends = [(_mean_cosine(repeat, 0), _mean_cosine(repeat, -1)) for repeat in repeats]
        result["first_minus_last"] = asdict(Estimate.of([first - last for first, last in ends]))
    return result


def _mean_cosine(repeat: Mapping[str, Any], index: int) -> float:
    return mean_off_diagonal(np.array(repeat["matrices"][index]["cosines"]))


def _means(repeats: Sequence[Mapping[str, Any]], index: int) -> Estimate:
    return Estimate.of([_mean_cosine(repeat, index) for repeat in repeats])


def _summary(settings: InterferenceSettings, result: Mapping[str, Any]) -> str:
    """Returns the result in a few sentences and a table of the curve."""
    num_repeats, curve = len(result["shared_operators"]), result["curve"]
    lines = [
        f"Gradient cosine on {_shared_text(settings)}, {_loss_text(settings)}; mean of {num_repeats} repeats"
        + (", 95% t-interval." if num_repeats > 1 else ", no interval."),
        f"Children that differ in layer {result['matrix']['layer']} only: {Estimate(**_bounds(curve[0]))}.",
    ]
    if result["same_kind"] is not None:
        same, other, less = (Estimate(**result[name]) for name in ("same_kind", "other_kind", "same_minus_other"))
        lines.append(f"Operators of the same kind there: {same}; of different kinds: {other}; difference: {less}.")
    if result["first_minus_last"] is not None:
        fall = Estimate(**result["first_minus_last"])
        lines.append(f"The cosine falls by {fall} from 1 to {curve[-1]['num_differing_layers']} differing layers.")
    rows = [
        [
            point["num_differing_layers"],
            point["num_children"],
            f"{point['mean']:.3f}",
            "" if point["low"] is None else f"{point['low']:.3f} to {point['high']:.3f}",
        ]
        for point in curve
    ]
    lines += ["", markdown_table(["m", "children", "mean cosine", "interval"], rows)]
    return "\n".join(lines)


def _bounds(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("mean", "low", "high")}


def _shared_text(settings: InterferenceSettings) -> str:
    return f"{settings.operator or 'a random operator'} of layer {settings.shared_layer}"


def _loss_text(settings: InterferenceSettings) -> str:
    if settings.alignment == "none":
        return "prediction loss"
    target = "an anchor" if settings.alignment == "anchor" else f"the mean of {settings.num_average_children} children"
    return f"loss of Eq. (2), aligned to {target}, lambda {settings.alignment_weight:g}"


# ---- Files ----


def draw_result(settings: InterferenceSettings, result: Mapping[str, Any]) -> dict[str, Figure]:
    """Returns the figures of an analysis by name: `matrix` (Fig. 2 a, b) and, with several m, `curve` (Fig. 2 c)."""
    matrix, num_repeats = result["matrix"], len(result["shared_operators"])
    operators = matrix["operators"]
    cells = [
        [
            Estimate(*(matrix[name][row][column] for name in ("mean", "low", "high")))
            for column in range(len(operators))
        ]
        for row in range(len(operators))
    ]
    kinds = list(dict.fromkeys(parse_operator(name).kind for name in operators))
    means = {frozenset((own["first"], own["second"])): Estimate(**_bounds(own)) for own in result["kinds"]}
    kind_cells = [[means.get(frozenset((first, second))) for second in kinds] for first in kinds]
    of_set = "training" if settings.sequences == "train" else settings.sequences
    note = (
        f"super-net {Path(settings.supernet).name}, {settings.num_sequences} {of_set} sequences, "
        f"{_loss_text(settings)}; mean of {num_repeats} repeats"
    )
    is_sure = num_repeats > 1
    shared = _shared_text(settings)
    title = f"Gradient cosine on {shared}: children that differ in layer {matrix['layer']}"
    figures = {
        "matrix": draw_matrices(
            operators, cells, kinds, kind_cells, title, note + " ± half of the 95% t-interval" * is_sure
        )
    }
    if len(result["curve"]) > 1:
        curve = {Path(settings.supernet).name: _points(result)}
        figures["curve"] = draw_curves(
            curve, f"Gradient cosine on {shared}", note + ", band: 95% t-interval" * is_sure
        )
    return figures


def _points(result: Mapping[str, Any]) -> list[tuple[int, Estimate]]:
    return [(point["num_differing_layers"], Estimate(**_bounds(point))) for point in result["curve"]]


def write_tables(result: Mapping[str, Any], repeats: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes cosines.csv (every pair of children of every repeat), matrix.csv, kinds.csv and curve.csv."""
    matrix = result["matrix"]
    operators = matrix["operators"]
    header = ("first_operator", "second_operator", "mean", "low", "high")
    cells = [
        (operators[row], operators[column], *(matrix[name][row][column] for name in ("mean", "low", "high")))
        for row in range(len(operators))
        for column in range(len(operators))
    ]
    write_csv(folder / "matrix.csv", header, cells)
    for name in ("kinds", "curve"):
        write_csv(folder / f"{name}.csv", list(result[name][0]), [list(own.values()) for own in result[name]])
    columns = ("repeat", "shared_operator", "num_differing_layers", "first_child", "second_child", "cosine")
    write_csv(folder / "cosines.csv", columns, _pairs(repeats))


def _pairs(repeats: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
    for repeat in repeats:
        for matrix in repeat["matrices"]:
            children = [",".join(child) for child in matrix["children"]]
            for first in range(len(children)):
                for second in range(first + 1, len(children)):
                    head = (repeat["repeat"], repeat["operator"], matrix["num_differing_layers"])
                    yield (*head, children[first], children[second], matrix["cosines"][first][second])


# ---- Several super-nets ----


def compare_interference(runs: Mapping[str, str | Path], output_dir: str | Path) -> dict[str, Any]:
    """Compares finished analyses of several super-nets on the same children and batches, the first against the others.

    Writes comparison.json and comparison.png, with one curve of Fig. 2 (c) for each super-net.

    Args:
        runs: the folder of each analysis by name. All must have the same seed, layers, repeats and text.
        output_dir: a folder for the two files. It may hold other files.

    Returns:
        A JSON object with the `curve` of each analysis by name and, for all but the first, `more_than_first`: for each
        m the paired difference between its mean cosine and the first one's, with the interval.

    Raises:
        ValueError: there are fewer than two analyses, one is not finished, or they differ in operator, loss, children
            or batches.
    """
    if len(runs) < 2:
        raise ValueError(f"got {len(runs)} analyses to compare; give at least two")
    results, repeats = read_comparable(runs)
    first = next(iter(runs))
    record: dict[str, Any] = {}
    for name, result in results.items():
        record[name] = {"supernet": result["settings"]["supernet"], "curve": result["curve"]}
        if name != first:
            record[name]["more_than_first"] = [
                {"num_differing_layers": point["num_differing_layers"], **asdict(difference)}
                for index, point in enumerate(result["curve"])
                for difference in [_paired(repeats[name], repeats[first], index)]
            ]
    settings = results[first]["settings"]
    title = f"Gradient cosine on {settings['operator'] or 'a random operator'} of layer {settings['shared_layer']}"
    note = f"the same children and batches for all; mean of {len(repeats[first])} repeats, band: 95% t-interval"
    figure = draw_curves({name: _points(result) for name, result in results.items()}, title, note)
    folder = Path(output_dir)
    make_output_folder(folder)
    record = json.loads(json.dumps(record))
    write_json(folder / "comparison.json", record)
    write_figure(folder / "comparison.png", figure)
    return record


def read_comparable(
    runs: Mapping[str, str | Path],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Returns the results and the repeats of finished analyses, by name.

    Raises:
        ValueError: one is not finished, or differs from the first in operator, loss, children or batches.
    """
    results, repeats = {}, {}
    for name, folder in runs.items():
        result = read_result(Path(folder))
        if result is None or not (Path(folder) / REPEATS_NAME).is_file():
            raise ValueError(f"{folder} holds no finished analysis; run `magic-nas analyze interference` first")
        results[name] = result
        repeats[name] = read_json(Path(folder) / REPEATS_NAME)["repeats"]
    first = next(iter(runs))
    for name, own in results.items():
        own_settings, first_settings = own["settings"], results[first]["settings"]
        compared = ["shared_layer", "alignment"]
        if first_settings["alignment"] != "none":
            compared += ["alignment_weight", "alignment_every_n_layers"]
        if first_settings["alignment"] == "average":
            compared += ["num_average_children"]
        for key in compared:
            if own_settings[key] != first_settings[key]:
                raise ValueError(
                    f"{key} of {name} is {own_settings[key]} but that of {first} is {first_settings[key]}; analyse "
                    f"both with the same"
                )
        if _drawn(repeats[name]) != _drawn(repeats[first]):
            raise ValueError(
                f"{name} and {first} differ in children or batches; analyse both with the same seed, layers, repeats "
                f"and text"
            )
    return results, repeats


def _drawn(repeats: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [(own["batch"], [matrix["children"] for matrix in own["matrices"]]) for own in repeats]


def _paired(own: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]], index: int) -> Estimate:
    pairs = zip(own, first, strict=True)
    return Estimate.of([_mean_cosine(repeat, index) - _mean_cosine(other, index) for repeat, other in pairs])
