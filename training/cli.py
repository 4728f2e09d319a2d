"""The command `magic-nas`. Heavy imports stand inside the commands, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_analyze import app as analyze_app
from .cli_options import (
    Assignments,
    BatchSize,
    Child,
    Latencies,
    LearningRate,
    MaxActivations,
    MaxFlops,
    MaxLatency,
    MaxParams,
    MaxSteps,
    MinFlops,
    MinParams,
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
    text_of,
    training_flags,
)


app = typer.Typer(
    name="magic-nas",
    help="Search, train and ship BERT-class text encoders (MAGIC, arXiv 2108.12821).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(analyze_app)


@app.command()
def demo(
    output_dir: OutputDir = Path("demo_run"),
    short: Annotated[bool, typer.Option("--short", help="The shortest setting: shows that all works.")] = False,
) -> None:
    """Run the main job from real text to a model folder in a few minutes on a CPU."""
    start(num_threads=1)
    from .demo import demo as run_demo
    from .demo import fill_mask_answers

    report = run_demo(output_dir, short)
    print(f"\n{report['table']}\n")
    for answer in fill_mask_answers(report["model"]):
        print(answer)
    print(f"\nfigure: {report['figure']}\nmodel:  {report['model']}")
    print(f"load:   import modeling_magic; AutoModelForMaskedLM.from_pretrained({report['model']!r})")


@app.command()
def describe(
    space: Annotated[str, typer.Argument(help="A preset, a JSON file or a model folder.")],
    architecture: Child = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens for which FLOPs are counted.")] = 128,
    max_params: MaxParams = None,
    min_params: MinParams = None,
    max_flops: MaxFlops = None,
    min_flops: MinFlops = None,
    max_latency_ms: MaxLatency = None,
    max_activation_mb: MaxActivations = None,
    latency_table: Latencies = None,
) -> None:
    """Show a search space: its size, operators, the cost of its children, and how many are within a budget."""
    from .describe import describe_space
    from .hub import load_preset
    from .settings import budget_of, budget_settings, costs_of

    config = load_preset(space)
    limits = budget_settings(
        {
            "max_params": max_params,
            "min_params": min_params,
            "max_flops": max_flops,
            "min_flops": min_flops,
            "max_latency_ms": max_latency_ms,
            "max_activation_mb": max_activation_mb,
            "latency_table": latency_table,
            "sequence_length": min(sequence_length, config.max_sequence_length),
        }
    )
    further = [cost for cost in costs_of(config, limits) if cost.name not in ("num_parameters", "flops")]
    print(describe_space(config, sequence_length, architecture, budget_of(config, limits), further))
    if latency_table is not None:
        from .latency import LatencyTable

        print(f"\nlatency table: {LatencyTable.load(latency_table).summary()}")


@app.command()
def benchmark(
    space: Annotated[str, typer.Argument(help="A preset, a JSON file or a model folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")] = Path("latency.json"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    num_threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens of each sequence; none of them is padding.")] = 128,
    architecture: Child = None,
) -> None:
    """Measure the latency of each operator of a space on this device, and how well their sums predict children."""
    start(num_threads)
    from .hub import load_preset
    from .latency import LatencySettings, measure_latency
    from .search_space import SearchSpace, parse_architecture

    config = load_preset(space)
    child = None if architecture is None else parse_architecture(architecture)
    if child is not None:
        SearchSpace.from_config(config.candidate_operators).check(child)
    settings = LatencySettings(
        device=device,
        num_threads=num_threads,
        batch_size=batch_size,
        seq_len=min(sequence_length, config.max_sequence_length),
    )
    # Before the measurement, which is not to be lost to a folder that cannot be made.
    output.parent.mkdir(parents=True, exist_ok=True)
    table = measure_latency(config, settings)
    print(f"\n{table.to_markdown()}")
    if child is not None:
        print(f"\n{architecture}: {table.beside(table.measure_child(config, child))}")
    table.save(output)
    print(f"\ntable: {output}")
    print(f"next:  magic-nas search ... --latency-table {output} --max-latency-ms ...")


@app.command()
def pretrain(
    output_dir: OutputDir,
    config: Recipe = None,
    preset: Preset = None,
    text: Text = None,
    tokenizer: TokenizerName = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    sampler: Annotated[str | None, typer.Option(help="gradual (MAGIC-T), uniform (SPOS), fair or sandwich.")] = None,
    alignment: Annotated[str | None, typer.Option(help="anchor (MAGIC-A), top_percent, average or none.")] = None,
    shrink: Annotated[bool | None, typer.Option(help="Delete operators until one child is left.")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="A BERT, RoBERTa, ELECTRA or MAGIC checkpoint: start from its weights where operators fit."),
    ] = None,
    blockwise: Annotated[
        str | None,
        typer.Option(help="NAS-BERT's baseline: train block by block to imitate this teacher; a folder or a name."),
    ] = None,
    num_blocks: Annotated[int | None, typer.Option(help="Blocks of --blockwise; left out, 4.")] = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Train a weight-sharing super-net and name the child that it finds."""
    changes: dict[str, Any] = {
        "preset": preset,
        "init_from": init_from,
        "data": {"source": text, "tokenizer": tokenizer},
        "training_arguments": {
            **training_flags(max_steps, batch_size, learning_rate, seed),
            "sampler": sampler,
            "alignment": alignment,
            "shrink": shrink,
        },
    }
    start(num_threads)
    from accelerate import PartialState

    from .blockwise_run import BlockwiseSettings, blockwise_table, run_blockwise
    from .figures import draw_health, draw_search
    from .hub import search_table
    from .runs import load_supernet
    from .runs import pretrain as run_pretrain
    from .settings import PretrainSettings, load_recipe, settings_from

    recipe = load_recipe(config)
    kind: Any = PretrainSettings
    if blockwise is not None or recipe.keys() & own_keys(BlockwiseSettings, PretrainSettings):
        kind = BlockwiseSettings
        changes |= {"teacher": blockwise, "num_blocks": num_blocks}
    elif num_blocks is not None:
        raise ValueError("--num-blocks is for a super-net in blocks; name its teacher with --blockwise TEACHER")
    changes = merge(changes, assignments, own_keys(kind))
    train = run_blockwise if kind is BlockwiseSettings else run_pretrain
    result = train(settings_from(kind, recipe, changes), output_dir)
    if not PartialState().is_main_process:
        return
    figure = draw_search(result, {}, output_dir / "report.png")
    health = draw_health(result, output_dir / "health.png")
    table = blockwise_table if kind is BlockwiseSettings else search_table
    print(f"\n{table(load_supernet(output_dir).config, result)}\n")
    print(f"figure:    {figure}\nhealth:    {health}\nsuper-net: {output_dir / 'supernet'}")
    print(f"next:      magic-nas retrain --search {output_dir} --output-dir ...")


@app.command()
def search(
    output_dir: OutputDir,
    supernet: Annotated[
        Path | None, typer.Argument(help="A finished super-net run, or the folder of a super-net.")
    ] = None,
    config: Recipe = None,
    max_params: MaxParams = None,
    min_params: MinParams = None,
    max_flops: MaxFlops = None,
    min_flops: MinFlops = None,
    max_latency_ms: MaxLatency = None,
    max_activation_mb: MaxActivations = None,
    latency_table: Latencies = None,
    searcher: Annotated[
        str | None, typer.Option(help="evolution, random, or pareto (loss against the limited costs).")
    ] = None,
    num_evaluations: Annotated[
        int | None, typer.Option(help="Children that the searcher evaluates; as many random ones stand beside them.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="File of the evaluations; searches of one super-net may share it.")
    ] = None,
    text: Text = None,
    seed: Seed = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Find the best child of a super-net within a budget, and show it beside random search and the BERT pattern."""
    budget = {
        "max_params": max_params,
        "min_params": min_params,
        "max_flops": max_flops,
        "min_flops": min_flops,
        "max_latency_ms": max_latency_ms,
        "max_activation_mb": max_activation_mb,
        "latency_table": None if latency_table is None else str(Path(latency_table).resolve()),
    }
    changes = {
        "searcher": searcher,
        "num_evaluations": num_evaluations,
        "journal": None if journal is None else str(journal.resolve()),
        "seed": seed,
        "budget": budget,
        "data": {"source": text},
    }
    own = ["population_size", "num_validation_sequences", "batch_size", "mlm_probability", "precision", "full_space"]
    changes = merge(changes, assignments, own, ("data", "budget"))
    start(num_threads)
    from accelerate import PartialState

    from .search_run import follow_supernet, search_summary, search_supernet
    from .settings import SearchSettings, load_recipe, settings_from

    recipe = load_recipe(config)
    source = supernet or recipe.get("supernet")
    if source is None:
        raise ValueError("name the super-net to search in: magic-nas search RUN --output-dir ...")
    recipe = follow_supernet(source, recipe)
    result = search_supernet(settings_from(SearchSettings, recipe, changes), output_dir)
    if not PartialState().is_main_process:
        return
    print(f"\n{search_summary(result)}\n")
    print(f"report: {output_dir / 'report.html'}\nmodel:  {output_dir / 'model'}")
    print(f"next:   magic-nas retrain --search {output_dir} --output-dir ...")


@app.command()
def best(
    search_run: Annotated[Path, typer.Argument(help="The folder of a search, finished or not.")],
    max_params: MaxParams = None,
    min_params: MinParams = None,
    max_flops: MaxFlops = None,
    min_flops: MinFlops = None,
    max_latency_ms: MaxLatency = None,
    max_activation_mb: MaxActivations = None,
    latency_table: Latencies = None,
    top: Annotated[int, typer.Option(help="How many children to show.")] = 5,
) -> None:
    """Show the best children within another budget among those that a search has evaluated; none is evaluated now."""
    start()
    from .search_run import best_table
    from .settings import budget_settings

    limits = budget_settings(
        {
            "max_params": max_params,
            "min_params": min_params,
            "max_flops": max_flops,
            "min_flops": min_flops,
            "max_latency_ms": max_latency_ms,
            "max_activation_mb": max_activation_mb,
            "latency_table": latency_table,
        }
    )
    print(best_table(search_run, limits, top))


@app.command()
def retrain(
    output_dir: OutputDir,
    config: Recipe = None,
    objective: Annotated[
        str, typer.Option(help="mlm (masked LM) or rtd (ELECTRA: a generator beside it, the discriminator is kept).")
    ] = "mlm",
    architecture: Child = None,
    search: Annotated[
        Path | None, typer.Option(help="A finished super-net run or search: train the child that it found.")
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the weights of the --search super-net.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Distil: a masked LM with the same tokenizer, a run, a folder or a name.")
    ] = None,
    preset: Preset = None,
    text: Text = None,
    tokenizer: TokenizerName = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Train one child, from scratch or from a super-net's weights, and export it."""
    changes = {
        "preset": preset,
        "architecture": architecture,
        "data": {"source": text, "tokenizer": tokenizer},
        "training_arguments": training_flags(max_steps, batch_size, learning_rate, seed),
    }
    if objective not in ("mlm", "rtd"):
        raise ValueError(f"--objective is {objective!r}; choose mlm or rtd")
    if inherit and search is None:
        raise ValueError("--inherit takes its weights from a super-net; say which with --search RUN")
    start(num_threads)
    from accelerate import PartialState

    from .distill_run import DistillSettings, retrain_distilled
    from .hub import results_table
    from .rtd_run import RtdSettings, retrain_rtd
    from .runs import follow_search, summarise
    from .runs import retrain as run_retrain
    from .settings import RetrainSettings, load_recipe, settings_from

    recipe, record = load_recipe(config), None
    kind: Any = RetrainSettings
    if objective == "rtd":
        kind = RtdSettings
    elif teacher is not None or recipe.keys() & own_keys(DistillSettings, RetrainSettings):
        kind, changes["teacher"] = DistillSettings, teacher
    if teacher is not None and objective == "rtd":
        raise ValueError("a teacher is a masked LM; with --objective rtd there is none, leave --teacher out")
    changes = merge(changes, assignments, own_keys(kind))
    if search is not None:
        recipe, record = follow_search(search, recipe, inherit)
    train: Any = {RtdSettings: retrain_rtd, DistillSettings: retrain_distilled}.get(kind, run_retrain)
    result = train(settings_from(kind, recipe, changes), output_dir, record)
    if not PartialState().is_main_process:
        return
    print(f"\n{results_table([summarise('this model', [result])])}\n\nmodel: {output_dir / 'model'}")


@app.command()
def finetune(
    output_dir: OutputDir,
    model: Annotated[
        str | None, typer.Option(help="A model folder or a name on the Hub: a searched encoder, BERT, ELECTRA, ...")
    ] = None,
    config: Recipe = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or all; may be given more than once."),
    ] = None,
    glue_folder: Annotated[
        Path | None, typer.Option(help="GLUE as a folder of TSV; left out, nyu-mll/glue on the Hub.")
    ] = None,
    train_file: Annotated[Path | None, typer.Option(help="Your own data: CSV, TSV or JSON lines.")] = None,
    validation_file: Annotated[Path | None, typer.Option(help="The same columns.")] = None,
    test_file: Annotated[Path | None, typer.Option(help="The same columns; may be left out.")] = None,
    mnli_model: Annotated[
        str | None, typer.Option(help="What STS-B, MRPC and RTE start from: a run or a model fine-tuned on MNLI.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Distil from a fine-tuned model, or from a fine-tuning run with the same tasks.")
    ] = None,
    learning_rate: Annotated[list[float] | None, typer.Option(help="May be given more than once.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="May be given more than once.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be given more than once.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of each training; the best on dev counts.")] = None,
    max_steps: MaxSteps = None,
    max_train_samples: Annotated[int | None, typer.Option(help="Rows to train on, for a quick run.")] = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Fine-tune an encoder on GLUE or on your own files, over learning rates and seeds, and show the table."""
    changes: dict[str, Any] = {
        "model": model,
        "tasks": split_names(task),
        "glue_folder": text_of(glue_folder),
        "train_file": text_of(train_file),
        "validation_file": text_of(validation_file),
        "test_file": text_of(test_file),
        "mnli_model": mnli_model,
        "teacher": teacher,
        "learning_rates": learning_rate or None,
        "batch_sizes": batch_size or None,
        "seeds": seed or None,
        "num_epochs": epochs,
        "max_steps": max_steps,
        "max_train_samples": max_train_samples,
        "training_arguments": {},
    }
    start(num_threads)
    from .finetune_run import FinetuneSettings, run_finetuning
    from .settings import load_recipe, settings_from

    own = own_keys(FinetuneSettings)
    changes = merge(changes, assignments, own, ("training_arguments",))
    run_finetuning(settings_from(FinetuneSettings, load_recipe(config), changes), output_dir)
    print(f"\n{(output_dir / 'table.md').read_text(encoding='utf-8')}\ntable: {output_dir / 'table.csv'}")


@app.command()
def squad(
    output_dir: OutputDir,
    model: Annotated[
        str | None, typer.Option(help="A model folder or a name on the Hub: a searched encoder, BERT, ELECTRA, ...")
    ] = None,
    config: Recipe = None,
    train_file: Annotated[
        str | None, typer.Option(help="Official JSON, or rajpurkar/squad; left out, the model is scored as it is.")
    ] = None,
    validation_file: Annotated[str | None, typer.Option(help="The same.")] = None,
    version_2: Annotated[
        bool | None, typer.Option("--version-2", help="SQuAD 2.0: questions may have no answer.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Distil from a model fine-tuned on the same questions.")] = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Fine-tune an encoder on SQuAD 1.1 or 2.0, and score it as the official script does."""
    changes = {
        "model": model,
        "train_file": train_file,
        "validation_file": validation_file,
        "version_2": version_2,
        "teacher": teacher,
        "training_arguments": training_flags(max_steps, batch_size, learning_rate, seed),
    }
    start(num_threads)
    from accelerate import PartialState

    from .settings import load_recipe, settings_from
    from .squad_run import SquadSettings, run_squad, squad_table

    changes = merge(changes, assignments, own_keys(SquadSettings), ("training_arguments",))
    settings = settings_from(SquadSettings, load_recipe(config), changes)
    result = run_squad(settings, output_dir)
    if not PartialState().is_main_process:
        return
    print(f"\n{squad_table({Path(settings.model).name: result})}\n\npredictions: {output_dir / 'predictions.json'}")
    if result["train"] is not None:
        print(f"model:       {output_dir / 'model'}")


@app.command("squad-split")
def squad_split(
    source: Annotated[Path, typer.Argument(help="One file in SQuAD's layout.")],
    output_dir: Annotated[Path, typer.Argument(help="Where train.json and test.json go.")],
    test_fraction: Annotated[float, typer.Option(help="Of the articles.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Cut one file of questions in two by article, for those who have no training set."""
    start()
    from .squad import split_by_article

    for path in split_by_article(source, output_dir, test_fraction, seed):
        print(path)


@app.command()
def compression(
    runs: Annotated[list[Path] | None, typer.Argument(help="Finished `magic-nas finetune` runs.")] = None,
    form: Annotated[str, typer.Option(help="markdown or csv.")] = "markdown",
) -> None:
    """Show fine-tuned models beside the published rows of the paper's Table 4."""
    from .compression_table import compression_table, sweep_row

    print(compression_table([sweep_row(run) for run in runs or []], form))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A finished super-net run; with --onnx a model folder as well.")],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    architecture: Child = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX: of a model folder, or beside the child.")] = False,
) -> None:
    """Write a child of a super-net, with the weights it has there, as a model folder; or a model folder as ONNX."""
    start()
    from .onnx_export import export_onnx
    from .runs import export_child

    if onnx and (source / "config.json").is_file():
        print(f"onnx:  {export_onnx(source, output_dir)}")
        return
    folder = export_child(source, output_dir, architecture)
    print(f"model: {folder}")
    if onnx:
        print(f"onnx:  {export_onnx(folder, folder / 'onnx')}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A model's folder or name on the Hub.")],
    output_dir: Annotated[Path, typer.Argument(help="The model folder to write.")],
    to: Annotated[str, typer.Option(help="magic, or of a chain of MHA,FFN: bert, roberta or electra.")] = "magic",
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer's name or folder, if not the source's.")] = None,
) -> None:
    """Write a BERT, RoBERTa or ELECTRA checkpoint as a MAGIC model, or a MAGIC model as one of these."""
    start()
    from .runs import convert_checkpoint

    folder, dropped = convert_checkpoint(source, output_dir, to, tokenizer)
    print(f"left out: {', '.join(dropped) or 'nothing'}\nmodel:    {folder}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="An exported model folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; made where it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch; made where it does not exist. Left out, main.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the folder and list what would be sent.")] = False,
) -> None:
    """Publish a model folder on the Hub, all of it in one commit, with the token of `hf auth login` or HF_TOKEN."""
    start()
    from .publish import push_model

    report = push_model(folder, repo, private=private, revision=revision, dry_run=dry_run)
    for name, size in report.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(report.files.values()):>14,}  bytes in {len(report.files)} files")
    print(f"\nnothing was sent; it would go to {report.url}" if dry_run else f"\nmodel:  {report.url}")
    if report.commit:
        print(f"commit: {report.commit}")


def main() -> None:
    """Runs the command line; what the user can mend ends in one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("MAGIC_TRACEBACK"):
            raise
        print(f"magic-nas: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
