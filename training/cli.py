"""The command `magic-nas`. Heavy imports stand inside the commands, so that `--help` answers at once."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


app = typer.Typer(
    name="magic-nas",
    help="Search, train and ship BERT-class text encoders (MAGIC, arXiv 2108.12821).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of the run; a stopped run goes on there.")]
Recipe = Annotated[
    str | None, typer.Option("--config", "-c", help="A recipe: a name or a YAML file. Flags win over it.")
]
Child = Annotated[str | None, typer.Option(help="A child: MHA4,FFN,... or (MHA4,FFN)*3.")]
Preset = Annotated[str | None, typer.Option(help="Sizes and operators: a preset, a JSON file or a model folder.")]
Text = Annotated[
    str | None,
    typer.Option(help="A text file, a folder of them or a `datasets` name; left out, docstrings of packages."),
]
TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="A tokenizer's name or folder; left out, one is trained on the text.")
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences per device and step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, data order, masks and children.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other key of a recipe: data.vocab_size=4096, warmup_steps=100, ..."),
]
Threads = Annotated[int | None, typer.Option("--num-threads", help="CPU threads of torch.")]


@app.command()
def demo(
    output_dir: OutputDir = Path("demo_run"),
    short: Annotated[bool, typer.Option("--short", help="The shortest setting: shows that all works.")] = False,
) -> None:
    """Run the main job from real text to a model folder in a few minutes on a CPU."""
    _start(num_threads=1)
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
) -> None:
    """Show a search space: its size, operators, and the cost of its children."""
    from .hub import describe_space, load_preset

    print(describe_space(load_preset(space), sequence_length, architecture))


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
    assignments: Assignments = None,
    num_threads: Threads = None,
) -> None:
    """Train a weight-sharing super-net and name the child that it finds."""
    changes = {
        "preset": preset,
        "init_from": init_from,
        "data": {"source": text, "tokenizer": tokenizer},
        "training_arguments": {
            "max_steps": max_steps,
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "sampler": sampler,
            "alignment": alignment,
            "shrink": shrink,
        },
    }
    changes = _merge(changes, assignments, ["mlm_probability"])
    _start(num_threads)
    from accelerate import PartialState

    from .figures import draw_search
    from .hub import search_table
    from .runs import load_supernet
    from .runs import pretrain as run_pretrain
    from .settings import PretrainSettings, load_recipe, settings_from

    result = run_pretrain(settings_from(PretrainSettings, load_recipe(config), changes), output_dir)
    if not PartialState().is_main_process:
        return
    figure = draw_search(result, {}, output_dir / "report.png")
    print(f"\n{search_table(load_supernet(output_dir).config, result)}\n")
    print(f"figure:    {figure}\nsuper-net: {output_dir / 'supernet'}")
    print(f"next:      magic-nas retrain --search {output_dir} --output-dir ...")


@app.command()
def retrain(
    output_dir: OutputDir,
    config: Recipe = None,
    architecture: Child = None,
    search: Annotated[
        Path | None, typer.Option(help="A finished super-net run: train the child that it found.")
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the weights of the --search super-net.")
    ] = False,
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
    """Train one child with the masked-LM objective, from scratch or from a super-net's weights, and export it."""
    changes = {
        "preset": preset,
        "architecture": architecture,
        "data": {"source": text, "tokenizer": tokenizer},
        "training_arguments": {
            "max_steps": max_steps,
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        },
    }
    changes = _merge(changes, assignments, ["mlm_probability", "num_validation_sequences"])
    if inherit and search is None:
        raise ValueError("--inherit takes its weights from a super-net; say which with --search RUN")
    _start(num_threads)
    from accelerate import PartialState

    from .hub import results_table
    from .runs import follow_search, summarise
    from .runs import retrain as run_retrain
    from .settings import RetrainSettings, load_recipe, settings_from

    recipe, record = load_recipe(config), None
    if search is not None:
        recipe, record = follow_search(search, recipe, inherit)
    settings = settings_from(RetrainSettings, recipe, changes)
    result = run_retrain(settings, output_dir, record)
    if not PartialState().is_main_process:
        return
    print(f"\n{results_table([summarise('this model', [result])])}\n\nmodel: {output_dir / 'model'}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A finished super-net run; with --onnx a model folder as well.")],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    architecture: Child = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX: of a model folder, or beside the child.")] = False,
) -> None:
    """Write a child of a super-net, with the weights it has there, as a model folder; or a model folder as ONNX."""
    _start()
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
    _start()
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
    _start()
    from .publish import push_model

    report = push_model(folder, repo, private=private, revision=revision, dry_run=dry_run)
    for name, size in report.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(report.files.values()):>14,}  bytes in {len(report.files)} files")
    print(f"\nnothing was sent; it would go to {report.url}" if dry_run else f"\nmodel:  {report.url}")
    if report.commit:
        print(f"commit: {report.commit}")


def _merge(changes: dict[str, Any], assignments: list[str] | None, of_the_recipe: list[str]) -> dict[str, Any]:
    """Returns `changes` with the `--set` assignments in their sections and without what was not given.

    A key without a section is a training argument, but for those `of_the_recipe` itself.
    """
    for section in ("data", "training_arguments"):
        changes[section] = {key: value for key, value in changes[section].items() if value is not None}
    if not assignments:
        return changes
    import yaml

    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r} has no value; write KEY=VALUE")
        section, _, name = key.rpartition(".")
        if section not in ("", "data", "training_arguments"):
            raise ValueError(f"--set {assignment!r} names no section of a recipe; write data.KEY=VALUE or KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--set {assignment!r}: {text!r} is not a value that YAML reads; quote it") from None
        if not section and name in of_the_recipe:
            changes[name] = value
        else:
            changes[section or "training_arguments"][name] = value
    return changes


def _start(num_threads: int | None = None) -> None:
    """Sets up what every long command wants: messages on the screen, threads, quiet libraries."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"--num-threads is {num_threads}; it must be at least 1")
        import torch

        torch.set_num_threads(num_threads)


def main() -> None:
    """Runs the command line; what the user can mend ends in one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("MAGIC_TRACEBACK"):
            raise
        print(f"magic-nas: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
