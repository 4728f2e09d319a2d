"""The command `magic-nas`. Heavy imports are inside the commands, so `--help` responds immediately."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..compression.settings import CompressSettings
from ..finetuning.settings import EvaluateSettings, FinetuneSettings, PredictSettings, SquadSettings
from ..options import Settings, read_value
from ..retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from ..search.settings import SearchSettings
from ..space.settings import BudgetSettings, LatencySettings
from ..stopping import Stopped, signals_handled
from ..supernet.settings import BlockwiseSettings, PretrainSettings
from ..tables import counted
from .analyze import app as analyze_app
from .failures import failure, goes_on
from .options import Child, Given, OutputDir, Overwrite, set_threads, starts, takes


app = typer.Typer(
    name="magic-nas",
    help="Compress, search, train and ship BERT-class text encoders (MAGIC, arXiv 2108.12821).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(analyze_app)

# The class or function that loads a compressed model, by the kind of its checkpoint.
_LOADERS = {
    "sentence": "SentenceTransformer",
    "masked_lm": "AutoModelForMaskedLM.from_pretrained",
    "sequence": "AutoModelForSequenceClassification.from_pretrained",
    "token": "AutoModelForTokenClassification.from_pretrained",
    "span": "AutoModelForQuestionAnswering.from_pretrained",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        import training

        print(f"magic-nas {training.__version__}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@starts()
def demo(
    output_dir: OutputDir = Path("demo_run"),
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Run the paper's pipeline: train a super-net, find a child and re-train it."
        ),
    ] = False,
    short: Annotated[
        bool, typer.Option("--short", help="Use the shortest setting, only to show that everything works.")
    ] = False,
) -> None:
    """Compress a real encoder on real text in a few minutes on a CPU, or search for one from scratch."""
    set_threads(1)
    if from_scratch:
        _demo_from_scratch(output_dir, short)
        return
    from .demo import NUM_SEARCHED, SMALLER_FOLDER, nearest_sentences
    from .demo import demo as run_demo

    result = run_demo(output_dir, short)
    _show_compression(result, output_dir / SMALLER_FOLDER)
    print(f"\nNearest of {NUM_SEARCHED:,} paragraphs of the text to each question, for both encoders:")
    for question, old, new in nearest_sentences(output_dir):
        print(f"{question}\n  checkpoint: {old}\n  smaller:    {new}")


def _demo_from_scratch(output_dir: Path, short: bool) -> None:
    from .demo_from_scratch import demo_from_scratch, fill_mask_answers

    report = demo_from_scratch(output_dir, short)
    print(f"\n{report['table']}\n\n{report['standing']}\n")
    for answer in fill_mask_answers(report["model"]):
        print(answer)
    print(f"\nfigure: {report['figure']}\nmodel:  {report['model']}")
    print(f"load:   import modeling_magic; AutoModelForMaskedLM.from_pretrained({report['model']!r})")


@app.command()
@takes(CompressSettings)
def compress(
    output_dir: OutputDir,
    given: Given,
    checkpoint: Annotated[
        str | None, typer.Argument(help="The encoder to compress: a folder, or a name on the Hub.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Distil children as tasks on a Ray cluster; needs the extra `ray`.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="With --ray: address of a running cluster. Default: this machine.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="With --ray and no --address: number of parallel tasks. Default: one per CPU.")
    ] = None,
) -> None:
    """Compress a pre-trained encoder into a smaller, faster one for each budget, and compare it with controls."""
    from accelerate import PartialState

    from ..compression.compress_run import compress as run_compress
    from ..compression.distill_ray import RayCluster

    recipe = given.recipe()
    settings = given.settings(recipe if checkpoint is None else {**recipe, "checkpoint": checkpoint})
    if not settings.checkpoint:
        raise ValueError(
            "no encoder to compress is given; use magic-nas compress CHECKPOINT --max-latency 0.4x --text ..."
        )
    if not ray and (address is not None or num_workers is not None):
        raise ValueError("--address and --num-workers configure a Ray cluster; add --ray")
    if address is not None and num_workers is not None:
        raise ValueError("--num-workers starts workers on this machine, but --address names a cluster; remove one")
    result = run_compress(settings, output_dir, cluster=RayCluster(address, num_workers) if ray else None)
    if PartialState().is_main_process:
        _show_compression(result, output_dir)


def _show_compression(result: dict[str, Any], output_dir: Path) -> None:
    from .following import command

    print(f"\n{result['table']}\n")
    print("\n".join([*result["verdicts"], *(f"warning: {text}" for text in result["latency"]["warnings"])]))
    print(f"\nfigure: {output_dir / 'figure.svg'}\ntable:  {output_dir / 'table.md'}")
    names = [member["name"] for member in result["members"]]
    folders = [output_dir / "model" / name for name in names] if len(names) > 1 else [output_dir / "model"]
    for folder in folders:
        print(f"model:  {folder}")
    print(f"load:   {_LOADERS[result['kind']]}({str(folders[0])!r}, trust_remote_code=True)")
    print(f"next:   {command('push', folders[0], 'OWNER/NAME')}")


@app.command()
@takes(BudgetSettings, recipe=False)
def describe(
    space: Annotated[str, typer.Argument(help="A preset, a JSON file or a model folder.")],
    given: Given,
    architecture: Child = None,
) -> None:
    """Show a search space: its size, operators, the cost of its children, and how many of them fit a budget."""
    from ..hub.presets import load_preset
    from ..space.describe import describe_space
    from ..space.limits import budget_of, costs_of

    config = load_preset(space)
    limits = BudgetSettings(**given.changes(BudgetSettings))
    limits.sequence_length = _fitting_length(limits.sequence_length, 128, config)
    further = [cost for cost in costs_of(config, limits) if cost.name not in ("num_parameters", "flops")]
    print(describe_space(config, limits.sequence_length, architecture, budget_of(config, limits), further))
    if limits.latency_table is not None:
        from ..space.latency import LatencyTable

        print(f"\nlatency table: {LatencyTable.load(limits.latency_table).summary()}")


def _fitting_length(asked: int | None, default: int, config: Any) -> int:
    """Returns the length to count or measure with, and tells the user if it is not the one asked for."""
    most = int(config.max_sequence_length)
    if asked is not None and asked > most:
        print(f"the length is {most} tokens, not {asked}: the model has no more positions")
    return min(asked or default, most)


@app.command()
@starts()
@takes(LatencySettings, recipe=False)
def benchmark(
    space: Annotated[str, typer.Argument(help="A preset, a JSON file or a model folder.")],
    given: Given,
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The JSON file to write.")] = Path(
        "latency.json"
    ),
    architecture: Child = None,
) -> None:
    """Measure the latency of each operator in a space on this device, and how well their sums predict children."""
    changes = given.changes(LatencySettings)
    settings = LatencySettings(**changes)
    set_threads(settings.num_threads)
    from ..files import check_output
    from ..hub.presets import load_preset
    from ..space.latency import measure_latency
    from ..space.search_space import SearchSpace, parse_architecture
    from .following import after_benchmark

    config = load_preset(space)
    child = None if architecture is None else parse_architecture(architecture)
    if child is not None:
        SearchSpace.from_config(config.candidate_operators).check(child)
    settings = replace(settings, seq_len=_fitting_length(changes.get("seq_len"), settings.seq_len, config))
    # Before the measurement, so that it is not lost.
    check_output(output, [".json"], [space])
    table = measure_latency(config, settings)
    print(f"\n{table.to_markdown()}")
    table.save(output)
    if child is not None:
        print(f"\n{architecture}: {table.beside(table.measure_child(config, child))}")
    print(f"\ntable: {output}")
    if not table.trusted:
        print("next:  measure again while the machine is idle; a latency limit does not accept this table")
    elif (following := after_benchmark(space, config, table, output)) is not None:
        print(f"next:  {following}")


@app.command()
@takes(PretrainSettings, BlockwiseSettings)
def pretrain(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Train a weight-sharing super-net and find its best child."""
    from accelerate import PartialState

    from ..hub.presets import load_preset
    from ..supernet.blockwise_run import blockwise_table, run_blockwise
    from ..supernet.figures import draw_health, draw_search
    from ..supernet.pretrain import pretrain as run_pretrain
    from ..supernet.pretrain import search_table
    from .following import after_supernet

    settings = given.settings()
    is_blockwise = isinstance(settings, BlockwiseSettings)
    result = (run_blockwise if is_blockwise else run_pretrain)(settings, output_dir)
    if not PartialState().is_main_process:
        return
    figure = draw_search(result, {}, output_dir / "report.png")
    health = draw_health(result, output_dir / "health.png")
    table = (blockwise_table if is_blockwise else search_table)(load_preset(output_dir / "supernet"), result)
    print(f"\n{table}\n")
    print(f"figure:    {figure}\nhealth:    {health}\nsuper-net: {output_dir / 'supernet'}")
    for label, following in zip(("next:", "or:"), after_supernet(output_dir, result), strict=False):
        print(f"{label:<10} {following}")


@app.command()
@takes(SearchSettings)
def search(
    output_dir: OutputDir,
    given: Given,
    supernet: Annotated[
        Path | None, typer.Argument(help="A finished super-net run, or the folder of a super-net.")
    ] = None,
) -> None:
    """Find the best child of a super-net within a budget, and compare it with random search and the BERT pattern."""
    from accelerate import PartialState

    from ..search.run import search_summary, search_supernet
    from ..supernet.loading import follow_supernet
    from .following import after_search

    recipe = given.recipe()
    source = supernet or read_value("supernet", recipe.get("supernet"), str | None)
    if source is None:
        raise ValueError("no super-net to search is given; use magic-nas search RUN --output-dir ...")
    settings = given.settings(follow_supernet(source, recipe))
    result = search_supernet(settings, output_dir)
    if not PartialState().is_main_process:
        return
    print(f"\n{search_summary(result)}\n")
    print(f"report: {output_dir / 'report.html'}\nmodel:  {output_dir / 'model'}")
    print(f"next:   {after_search(output_dir)}")


@app.command()
@starts()
@takes(BudgetSettings, recipe=False)
def best(
    search_run: Annotated[Path, typer.Argument(help="The folder of a search, finished or not.")],
    given: Given,
    top: Annotated[int, typer.Option(help="Number of children to show.")] = 5,
) -> None:
    """Show the best children within another budget among those that a search has evaluated, without evaluating any."""
    from ..search.run import best_table

    print(best_table(search_run, BudgetSettings(**given.changes(BudgetSettings)), top))


@app.command()
@takes(RetrainSettings, RtdSettings, DistillSettings)
def retrain(
    output_dir: OutputDir,
    given: Given,
    objective: Annotated[
        str | None,
        typer.Option(
            help="mlm (masked LM) or rtd (ELECTRA: train a generator and a discriminator, keep the discriminator). "
            "Default: the objective of the recipe, else mlm."
        ),
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="A finished super-net run or search: train the child that it found.")
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the weights of the --search super-net.")
    ] = False,
) -> None:
    """Train one child, from scratch or from a super-net's weights, and export it."""
    if objective not in (None, "mlm", "rtd"):
        raise ValueError(f"--objective is {objective!r}; choose mlm or rtd")
    if inherit and search is None:
        raise ValueError("--inherit takes weights from a super-net; add --search RUN")
    if objective == "rtd" and ("teacher",) in given.values:
        raise ValueError("--teacher is a masked LM, which --objective rtd cannot learn from; remove one of them")
    from accelerate import PartialState

    from ..hub.card import results_table
    from ..hub.export import summarise
    from ..retraining.distill_run import retrain_distilled
    from ..retraining.retrain import follow_search
    from ..retraining.retrain import retrain as run_retrain
    from ..retraining.rtd_run import retrain_rtd
    from ..runs.recipes import check_command

    recipe, record = given.recipe(), None
    if objective is not None:
        wanted: tuple[type[Settings], ...] = (
            (RtdSettings,) if objective == "rtd" else (RetrainSettings, DistillSettings)
        )
        given = replace(given, kinds=wanted)
    check_command(given.kind(recipe), recipe)
    if search is not None:
        recipe, record = follow_search(search, recipe, inherit)
    settings = given.settings(recipe)
    runs: dict[type, Any] = {RtdSettings: retrain_rtd, DistillSettings: retrain_distilled}
    result = runs.get(type(settings), run_retrain)(settings, output_dir, record)
    if not PartialState().is_main_process:
        return
    print(f"\n{results_table([summarise('this model', [result])])}\n\nmodel: {output_dir / 'model'}")


@app.command()
@takes(FinetuneSettings)
def finetune(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Fine-tune an encoder on GLUE or on your own files, over learning rates and seeds, and show a table."""
    from ..finetuning.finetune_run import run_finetuning

    run_finetuning(given.settings(), output_dir)
    print(f"\n{(output_dir / 'table.md').read_text(encoding='utf-8')}\ntable: {output_dir / 'table.csv'}")


@app.command()
@starts(threads=True)
@takes(EvaluateSettings, recipe=False)
def evaluate(
    model: Annotated[str, typer.Argument(help="A fine-tuned classifier: a folder, or a name on the Hub.")],
    file: Annotated[Path, typer.Option("--file", help="A file with labels: CSV, TSV, JSON lines or CoNLL.")],
    given: Given,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="A JSON file for the result.")
    ] = None,
) -> None:
    """Score a fine-tuned classifier on a file with labels."""
    from ..files import check_output, write_json
    from ..finetuning.file_predictions import evaluate_file, scores_table

    if output is not None:
        check_output(output, [".json"], [file, model])
    result = evaluate_file(model, file, EvaluateSettings(**given.changes(EvaluateSettings)))
    print(f"\n{scores_table(result)}")
    if output is not None:
        write_json(output, result)
        print(f"\nresult: {output}")


@app.command()
@starts(threads=True)
@takes(PredictSettings, recipe=False)
def predict(
    model: Annotated[str, typer.Argument(help="A fine-tuned classifier: a folder, or a name on the Hub.")],
    file: Annotated[Path, typer.Option("--file", help="A file of texts: CSV, TSV, JSON lines or CoNLL.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The .csv or .jsonl file to write.")],
    given: Given,
) -> None:
    """Predict the rows of a file with a fine-tuned classifier, and write the predictions next to its columns."""
    from ..finetuning.file_predictions import predict_file

    path = predict_file(model, file, output, PredictSettings(**given.changes(PredictSettings)))
    print(f"\npredictions: {path}")


@app.command()
@takes(SquadSettings)
def squad(
    output_dir: OutputDir,
    given: Given,
) -> None:
    """Fine-tune an encoder on SQuAD 1.1 or 2.0, and score it like the official script."""
    from accelerate import PartialState

    from ..finetuning.squad_run import run_squad, squad_table

    settings = given.settings()
    result = run_squad(settings, output_dir)
    if not PartialState().is_main_process:
        return
    print(f"\n{squad_table({Path(settings.model).name: result})}\n\npredictions: {output_dir / 'predictions.json'}")
    if result["train"] is not None:
        print(f"model:       {output_dir / 'model'}")


@app.command("squad-split")
@starts()
def squad_split(
    source: Annotated[Path, typer.Argument(help="A file in the SQuAD format.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder for train.json and test.json.")],
    test_fraction: Annotated[float, typer.Option(help="Share of the articles that test.json gets.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Split a file of questions by article into a training and a test set."""
    from ..finetuning.squad_data import split_by_article

    for path in split_by_article(source, output_dir, test_fraction, seed):
        print(path)


@app.command()
@starts()
def export(
    source: Annotated[Path, typer.Argument(help="A finished super-net run, or a model folder.")],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    architecture: Child = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX: of a model folder, or in addition to the child.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="With --onnx: also write model_int8.onnx, with 8-bit weights.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a child of a super-net as a model folder, or a model folder as a complete export or as ONNX."""
    if int8 and not onnx:
        raise ValueError("--int8 quantizes the ONNX file; add --onnx")
    from ..hub.export import check_unused
    from ..hub.model_folders import export_folder, model_in
    from ..hub.onnx_export import check_packages, export_onnx, quantize_onnx
    from ..supernet.loading import SUPERNET_FOLDER, export_child

    model, onnx_folder = source, output_dir
    if onnx:
        # Checked before a child is written.
        check_packages(int8)
    if not (source / SUPERNET_FOLDER / "config.json").is_file():
        source = model = Path(model_in(source))
    is_model = (source / "config.json").is_file()
    if is_model and architecture is not None:
        raise ValueError(f"{source} holds a single model, not a super-net run; remove --architecture")
    if not (onnx and is_model):
        check_unused(output_dir, source, overwrite)
        model = export_folder(source, output_dir) if is_model else export_child(source, output_dir, architecture)
        onnx_folder = model / "onnx"
        print(f"model: {model}")
    if onnx:
        path = export_onnx(model, onnx_folder)
        print(f"onnx:  {_sized(path)}")
        if int8:
            print(f"int8:  {_sized(quantize_onnx(path))}")


@app.command()
@starts()
def convert(
    source: Annotated[str, typer.Argument(help="A model: a folder or a name on the Hub.")],
    output_dir: Annotated[Path, typer.Argument(help="The model folder to write.")],
    to: Annotated[
        str, typer.Option(help="Target class: magic, or for a chain of MHA,FFN: bert, roberta or electra.")
    ] = "magic",
    tokenizer: Annotated[
        str | None, typer.Option(help="Name or folder of a tokenizer. Default: that of the source.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a BERT, RoBERTa or ELECTRA checkpoint as a MAGIC model, or a MAGIC model as one of these."""
    from ..hub.convert import convert_checkpoint
    from ..hub.export import check_unused

    if to == "magic":
        check_unused(output_dir, source, overwrite)
    elif overwrite:
        raise ValueError(f"--overwrite replaces MAGIC models only, not with --to {to}; use another folder")
    folder, dropped = convert_checkpoint(source, output_dir, to, tokenizer)
    print(f"omitted: {', '.join(dropped) or 'nothing'}\nmodel:   {folder}")
    if to == "magic" and any("pooler" in name for name in dropped):
        print(
            f"note:    a new classification head starts without the pooler here; to keep it, convert only the "
            f"encoder, which AutoModel.from_pretrained({source!r}).save_pretrained(FOLDER) writes"
        )


@app.command()
@starts()
def push(
    folder: Annotated[Path, typer.Argument(help="An exported model folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch; created if it does not exist. Default: main.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list the files that would be sent.")
    ] = False,
) -> None:
    """Publish a model folder on the Hub in one commit, with the token of `hf auth login` or HF_TOKEN."""
    from ..hub.publish import push_model
    from ..hub.verify import changed_since_export

    if changed := changed_since_export(folder):
        print(f"warning: changed since the export: {', '.join(changed)}", file=sys.stderr)
    report = push_model(folder, repo, private=private, revision=revision, dry_run=dry_run)
    for name, size in report.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(report.files.values()):>14,}  bytes in {counted(len(report.files), 'file')}")
    print(f"\nnothing was sent; it would go to {report.url}" if dry_run else f"\nmodel:  {report.url}")
    if report.commit:
        print(f"commit: {report.commit}")


@app.command()
@starts()
def verify(
    folder: Annotated[str, typer.Argument(help="A model folder, a run that contains one, or a name on the Hub.")],
    text: Annotated[
        str | None,
        typer.Option(
            help="The text on which the recorded loss was measured, to measure it again. Default: skip this."
        ),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            help="Score the model on a task again: NAME=FILE as in compress, or the validation file of a fine-tuned "
            "classifier.",
        ),
    ] = None,
) -> None:
    """Compare a model folder with its search.json and its card; the exit status is 1 if anything differs.

    It is also 1 if a score that --text or --eval asks for could not be measured.

    Parameters and FLOPs are counted again, and the files' hashes and the architectures are compared. No code from the
    folder is run. The record is part of the folder and is not signed: whoever can write there can also change it.
    """
    from ..hub.verify import verify_export
    from ..runs.folders import bars_off

    with bars_off():
        found = verify_export(folder, text=text)
        if evals:
            found = replace(found, checks=(*found.checks, *_scores_again(found.folder, evals)))
    print(f"{found.table}\n\n{found.summary}")
    if found.differing or found.unmeasured:
        raise typer.Exit(1)


def _scores_again(folder: Path, evals: list[str]) -> list[Any]:
    """Scores a fine-tuned classifier, or else a compressed model, on its tasks again."""
    from ..finetuning.rescore_file import check_file, is_finetuned

    if is_finetuned(folder):
        return [one for file in evals for one in check_file(folder, file)]
    from ..compression.rescore_tasks import check_tasks

    return check_tasks(folder, evals)


@app.command(context_settings={"ignore_unknown_options": True})
def options(
    command: Annotated[list[str] | None, typer.Argument(help="A command, such as pretrain or analyze sweep.")] = None,
) -> None:
    """List the keys of one or all commands that recipes and `--set` accept, with type, default, bounds and meaning."""
    from .reference import options_page

    print(options_page(" ".join(command or ())))


def _sized(path: Path) -> str:
    """Returns a file's path and its size."""
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


def main() -> None:
    """Runs the command line; a failure ends with a one-line message.

    The exit code is 2 for errors that the user can fix, 1 if the machine lacks something or `verify` finds
    differences, and 128 plus the signal's number if the command was stopped: 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        with signals_handled():
            app()
    except SystemExit as end:
        if not end.code:
            _leave_processes()
        raise
    except Stopped as stop:
        _end(128 + stop.number, f"{stop}{goes_on()}")
    except Exception as error:
        line = failure(error)
        if os.environ.get("MAGIC_TRACEBACK") or (line is None and not isinstance(error, ValueError | OSError)):
            raise
        _end(2 if line is None else 1, f"error: {line or error}")


def _leave_processes() -> None:
    """Closes the connections to the other processes of torchrun: without this, a process may abort at its exit."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _end(code: int, line: str) -> None:
    # All processes of a run receive a signal, and only the first reports it; an error may occur in just one process.
    if code < 128 or os.environ.get("RANK", "0") == "0":
        print(f"magic-nas: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
