"""The commands `magic-nas analyze ...`: effects of weight sharing, and results next to those of the paper."""

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from ..analysis.settings import MIN_CHILDREN, InterferenceSettings, RankingSettings, StandaloneSettings, SweepSettings
from ..cells.settings import CellSweepSettings
from ..options import read_value
from .options import Given, OutputDir, starts, takes


app = typer.Typer(
    name="analyze",
    help="Measure the effects of weight sharing: interference on shared operators, and ranking compared with children "
    "trained alone. Show results next to the paper's.",
    no_args_is_help=True,
)


@app.command()
@takes(InterferenceSettings)
def interference(
    output_dir: OutputDir,
    given: Given,
    supernet: Annotated[
        Path | None,
        typer.Argument(help="A finished super-net run, one of its saved states, or the folder of a super-net."),
    ] = None,
) -> None:
    """Compare the gradients of children on a shared operator (Fig. 2): a matrix by kind and a curve over layers."""
    from ..analysis.interference_run import follow_weights, run_interference

    recipe = given.recipe()
    source = supernet or read_value("supernet", recipe.get("supernet"), str | None)
    if source is None:
        raise ValueError("no super-net to analyze is given; use magic-nas analyze interference RUN --output-dir ...")
    settings = given.settings(follow_weights(source, recipe))
    print(f"\n{run_interference(settings, output_dir)['summary']}\n\nfigures and tables: {output_dir}")


@app.command("compare-interference")
@starts()
def compare(
    analyses: Annotated[
        list[str], typer.Argument(help="NAME=FOLDER of finished analyses; the first is compared with the others.")
    ],
    output_dir: OutputDir,
) -> None:
    """Draw the curves of several super-nets in one figure, paired over the same children and batches (Fig. 2c)."""
    from ..analysis.interference_run import compare_interference

    runs = {}
    for analysis in analyses:
        name, equals, folder = analysis.partition("=")
        if not equals:
            raise ValueError(f"{analysis!r} is not of the form NAME=FOLDER; write the name and folder of an analysis")
        if name in runs:
            raise ValueError(f"two analyses are named {name!r}; give each a different name")
        runs[name] = folder
    compare_interference(runs, output_dir)
    print(f"figure: {output_dir / 'comparison.png'}\ntable:  {output_dir / 'comparison.json'}")


@app.command()
@takes(StandaloneSettings)
def standalone(
    output_dir: OutputDir,
    given: Given,
    ray: Annotated[
        bool, typer.Option("--ray", help="Train as tasks on a Ray cluster; needs the extra `ray`.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="With --ray: address of a running cluster. Default: this machine.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="With --ray and no --address: number of parallel tasks. Default: one per CPU.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write a table of the space, as CSV and JSON, once all children are trained.")
    ] = None,
    latency_table: Annotated[
        str | None, typer.Option(help="With --table: a file written by `magic-nas benchmark`.")
    ] = None,
) -> None:
    """Train given or uniformly drawn children from scratch, one by one; several such commands may share a folder."""
    if not ray and (address is not None or num_workers is not None):
        raise ValueError("--address and --num-workers configure a Ray cluster; add --ray")
    if address is not None and num_workers is not None:
        raise ValueError("--num-workers starts workers on this machine, but --address names a cluster; remove one")
    if table is None and latency_table is not None:
        raise ValueError("--latency-table fills a column of a table; add --table FILE to write that table")
    from ..analysis.standalone import train_standalone

    settings = given.settings()
    if ray:
        from ..analysis.standalone_ray import train_standalone_on_ray

        trained = train_standalone_on_ray(settings, output_dir, address, num_workers)
    else:
        trained = train_standalone(settings, output_dir)
    if os.environ.get("RANK", "0") != "0":
        return
    if table is not None:
        from ..analysis.micro_benchmark import write_micro_benchmark
        from ..hub.presets import load_preset
        from ..space.latency import LatencyTable

        latencies = None if latency_table is None else LatencyTable.load(latency_table)
        write_micro_benchmark(output_dir, load_preset(settings.preset), table, latencies)
    best = min(trained, key=lambda child: (math.isnan(child.val_loss), child.val_loss))
    print(f"\n{len(trained)} trainings; best: {','.join(best.architecture)}, loss {best.val_loss:.4f}")
    if not settings.architectures and len({child.architecture for child in trained}) >= MIN_CHILDREN:
        from .following import after_standalone

        print(f"next: {after_standalone(output_dir)}")
        print("      RUN is a super-net of this preset, trained on this text without --shrink")


@app.command()
@takes(RankingSettings)
def ranking(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Compare the ranking by shared weights with children trained alone (5.2): Kendall's tau, regret, intervals."""
    from ..analysis.ranking_run import follow_supernets, run_ranking

    recipe = given.recipe()
    named = given.values.pop(("supernets",), None) or recipe.get("supernets") or ()
    supernets = read_value("supernets", named, tuple[str, ...])
    if not supernets:
        raise ValueError("no super-net to rank with is given; add --supernet RUN, once or more")
    settings = given.settings(follow_supernets(supernets, recipe))
    print(f"\n{run_ranking(settings, output_dir)['table']}")


@app.command()
@takes(SweepSettings)
def sweep(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Train super-nets over values of one training argument and draw how well each ranks children (Fig. 4a, 4b)."""
    from ..analysis.sweep_run import run_sweep

    print(f"\n{run_sweep(given.settings(), output_dir)['table']}")


@app.command()
@takes(CellSweepSettings)
def cells(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Compare super-net training methods on the cells of NAS-Bench-201, with published accuracies (supplement D)."""
    from ..cells.cell_sweep import run_cells

    print(f"\n{run_cells(given.settings(), output_dir)['table']}\n\nfigure and tables: {output_dir}")


@app.command("compression-table")
def compression(
    runs: Annotated[list[Path] | None, typer.Argument(help="Finished `magic-nas finetune` runs.")] = None,
    form: Annotated[str, typer.Option(help="Format of the table: markdown or csv.")] = "markdown",
) -> None:
    """Show fine-tuned models next to the published rows of the paper's Table 4."""
    from ..finetuning.compression_table import compression_table, sweep_row

    print(compression_table([sweep_row(run) for run in runs or []], form))
