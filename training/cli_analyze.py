"""The commands `magic-nas analyze ...`: interference between children, and how well super-nets rank them."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import (
    Assignments,
    Latencies,
    OutputDir,
    Preset,
    Recipe,
    Seed,
    Text,
    Threads,
    TokenizerName,
    merge,
    own_keys,
    split_names,
    start,
)


app = typer.Typer(
    name="analyze",
    help="Measure what weight sharing does: interference on shared operators, ranking against children trained alone.",
    no_args_is_help=True,
)

Truth = Annotated[
    str | None,
    typer.Option(
        help="A folder of `analyze standalone`, a CSV or JSON file, or micro-benchmark, the package's own table."
    ),
]
NumChildren = Annotated[int | None, typer.Option(help="Uniform children; left out, all.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="May be given more than once.")]


@app.command()
def interference(
    output_dir: OutputDir,
    supernet: Annotated[
        Path | None, typer.Argument(help="A finished super-net run, one of its checkpoints, or a super-net's folder.")
    ] = None,
    config: Recipe = None,
    shared_layer: Annotated[int | None, typer.Option(help="The layer of o_g, counted from 0.")] = None,
    operator: Annotated[str | None, typer.Option(help="o_g; left out, one of the layer's in each repeat.")] = None,
    max_differing_layers: Annotated[int | None, typer.Option(help="Largest m of the curve; left out, all.")] = None,
    alignment: Annotated[
        str | None, typer.Option(help="Of the loss: none, or Eq. (2) with an anchor or an average.")
    ] = None,
    num_repeats: Annotated[int | None, typer.Option(help="Draws of operator, children and batch.")] = None,
    text: Text = None,
    seed: Seed = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Compare the gradients that children give a shared operator (Fig. 2): matrix by kind, curve over layers."""
    changes: dict[str, Any] = {
        "shared_layer": shared_layer,
        "operator": operator,
        "max_differing_layers": max_differing_layers,
        "alignment": alignment,
        "num_repeats": num_repeats,
        "seed": seed,
        "data": {"source": text},
    }
    start(num_threads)
    from .interference_run import InterferenceSettings, follow_weights, run_interference
    from .settings import load_recipe, settings_from

    changes = merge(changes, assignments, own_keys(InterferenceSettings), ("data",))
    recipe = load_recipe(config)
    source = supernet or recipe.get("supernet")
    if source is None:
        raise ValueError("name the super-net to analyse: magic-nas analyze interference RUN --output-dir ...")
    settings = settings_from(InterferenceSettings, follow_weights(source, recipe), changes)
    print(f"\n{run_interference(settings, output_dir)['summary']}\n\nfigures and tables: {output_dir}")


@app.command("compare-interference")
def compare(
    analyses: Annotated[list[str], typer.Argument(help="NAME=FOLDER of finished analyses; the first against others.")],
    output_dir: OutputDir,
) -> None:
    """Draw the curves of several super-nets in one figure, paired over the same children and batches (Fig. 2c)."""
    start()
    from .interference_run import compare_interference

    runs = {}
    for analysis in analyses:
        name, equals, folder = analysis.partition("=")
        if not equals:
            raise ValueError(f"{analysis!r} names no analysis; write NAME=FOLDER")
        if name in runs:
            raise ValueError(f"two analyses are named {name!r}; give each a name of its own")
        runs[name] = folder
    compare_interference(runs, output_dir)
    print(f"figure: {output_dir / 'comparison.png'}\ntable:  {output_dir / 'comparison.json'}")


@app.command()
def standalone(
    output_dir: OutputDir,
    config: Recipe = None,
    preset: Preset = None,
    text: Text = None,
    tokenizer: TokenizerName = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="A child by name instead of uniform ones: (MHA4,FFN)*2. May be given more than once."),
    ] = None,
    num_children: NumChildren = None,
    seed: Seeds = None,
    ray: Annotated[bool, typer.Option("--ray", help="As tasks of a Ray cluster (the extra ray).")] = False,
    address: Annotated[str | None, typer.Option(help="With --ray: a running cluster; left out, this machine.")] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="With --ray on this machine alone: tasks at a time; left out, one a CPU.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write the table of the space, CSV and JSON, once all are trained.")
    ] = None,
    latency_table: Latencies = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Train children one by one from scratch, uniform or named; any number of these may work on one folder."""
    changes: dict[str, Any] = {
        "preset": preset,
        "architectures": architecture or None,
        "num_children": num_children,
        "seeds": seed or None,
        "data": {"source": text, "tokenizer": tokenizer},
        "training_arguments": {},
    }
    start(num_threads)
    from .settings import load_recipe, settings_from
    from .standalone import StandaloneSettings, train_standalone

    changes = merge(changes, assignments, own_keys(StandaloneSettings))
    settings = settings_from(StandaloneSettings, load_recipe(config), changes)
    if ray:
        from .standalone_ray import train_standalone_on_ray

        trained = train_standalone_on_ray(settings, output_dir, address, num_workers)
    else:
        trained = train_standalone(settings, output_dir)
    if os.environ.get("RANK", "0") != "0":
        return
    if table is not None:
        from .hub import load_preset
        from .latency import LatencyTable
        from .micro_benchmark import write_micro_benchmark

        latencies = None if latency_table is None else LatencyTable.load(latency_table)
        write_micro_benchmark(output_dir, load_preset(settings.preset), table, latencies)
    best = min(trained, key=lambda child: (math.isnan(child.val_loss), child.val_loss))
    print(f"\n{len(trained)} trainings; the best: {','.join(best.architecture)}, loss {best.val_loss:.4f}")
    if not settings.architectures:
        print(f"next: magic-nas analyze ranking --truth {output_dir} --supernet RUN --output-dir ...")


@app.command()
def ranking(
    output_dir: OutputDir,
    config: Recipe = None,
    supernet: Annotated[
        list[str] | None, typer.Option(help="A super-net run or a super-net's folder; may be given more than once.")
    ] = None,
    truth: Truth = None,
    num_children: NumChildren = None,
    text: Text = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Hold the ranking by shared weights against children trained alone (5.2): Kendall's tau, regret, intervals."""
    changes: dict[str, Any] = {
        "supernets": split_names(supernet),
        "truth": truth,
        "num_children": num_children,
        "data": {"source": text},
        "training_arguments": {},
    }
    start(num_threads)
    from .ranking_run import RankingSettings, follow_supernets, run_ranking
    from .settings import load_recipe, settings_from

    changes = merge(changes, assignments, own_keys(RankingSettings))
    recipe = load_recipe(config)
    supernets = changes["supernets"] or recipe.get("supernets")
    if not supernets:
        raise ValueError("name super-nets to rank with: --supernet RUN, once or more")
    result = run_ranking(settings_from(RankingSettings, follow_supernets(supernets, recipe), changes), output_dir)
    print(f"\n{result['table']}")


@app.command()
def sweep(
    output_dir: OutputDir,
    config: Recipe = None,
    parameter: Annotated[
        str | None, typer.Option(help="A training argument: num_substitutions (Fig. 4a), anchor_top_percent (4b), ...")
    ] = None,
    values: Annotated[list[str] | None, typer.Option("--value", help="May be given more than once.")] = None,
    truth: Truth = None,
    text: Text = None,
    seed: Seeds = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Train super-nets over the values of one training argument and draw how well each ranks (Fig. 4a, 4b)."""
    import yaml

    changes: dict[str, Any] = {
        "parameter": parameter,
        "values": [yaml.safe_load(value) for value in values] if values else None,
        "truth": truth,
        "seeds": seed or None,
        "data": {"source": text},
        "training_arguments": {},
    }
    start(num_threads)
    from .settings import load_recipe
    from .sweep_run import SweepSettings, run_sweep, sweep_settings

    own = own_keys(SweepSettings) | {"preset", "init_from", "mlm_probability"}
    settings = sweep_settings(load_recipe(config), merge(changes, assignments, own))
    print(f"\n{run_sweep(settings, output_dir)['table']}")
