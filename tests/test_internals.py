"""What training/internals.py takes from inside transformers and torch is there, and no other module does so."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_magic import MagicConfig
from training import internals
from training.internals import TrainerHooks


PACKAGE = Path(__file__).resolve().parent.parent / "training"
MODELING = PACKAGE.parent / "modeling_magic"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "internals.py"
}


# ---- A small training ----


class Line(nn.Module):
    """A model that reads `x` and `labels`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.weight * x).sum(dim=-1) - labels).square().mean()}


ROWS = [{"x": [float(number), 1.0], "labels": 2.0 * number, "length": number} for number in range(10)]


def stack(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


class HookedTrainer(TrainerHooks, Trainer):
    """`TrainerHooks` as a trainer of this package has them."""

    @contextmanager
    def writing_checkpoint(self, output_dir):
        self.seen = [*getattr(self, "seen", []), names(output_dir)]
        yield
        self.seen.append(names(output_dir))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def line_trainer(folder, collator=stack, rows: Any = None, callbacks=None, **arguments) -> HookedTrainer:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": "sgd",
        "learning_rate": 1e-3,
        **arguments,
    }
    args = TrainingArguments(str(folder), **settings)
    rows = ROWS if rows is None else rows
    return HookedTrainer(Line(), args, train_dataset=rows, data_collator=collator, callbacks=callbacks)


class AtEachStep(TrainerCallback):
    """Keeps what a function returns at a moment of every step."""

    def __init__(self, moment, function):
        self.seen: list[Any] = []
        setattr(self, moment, lambda *args, **kwargs: self.seen.append(function()))


# ---- Each of them is where it was ----


def moved(name: str, user: str, what: str) -> str:
    library = "torch" if name.startswith("torch") else "transformers"
    return (
        f"{library} moved {name}, used by training.internals.{user}: {what}; read how it is done now, and change "
        f"training/internals.py alone"
    )


@pytest.mark.parametrize(
    ("name", "parameters", "user"),
    [
        ("_get_grad_norm", ("self", "model", "grad_norm"), "TrainerHooks"),
        ("_save_checkpoint", ("self", "model", "trial"), "TrainerHooks"),
        ("_get_output_dir", ("self", "trial"), "TrainerHooks"),
        ("_get_train_sampler", ("self", "train_dataset"), "TrainerHooks"),
        ("_set_signature_columns_if_needed", ("self",), "TrainerHooks"),
        ("_get_collator_with_removed_columns", ("self", "data_collator", "description"), "model_collator"),
        ("_load_from_checkpoint", ("self", "resume_from_checkpoint", "model"), "load_weights"),
    ],
)
def test_methods_of_trainer(name, parameters, user):
    method = getattr(Trainer, name, None)
    assert method is not None, moved(f"Trainer.{name}", user, "it is gone")
    found = tuple(inspect.signature(method).parameters)
    assert found == parameters, moved(f"Trainer.{name}", user, f"it takes {found}, once {parameters}")


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("_signature_columns", "TrainerHooks"),
        ("current_gradient_accumulation_steps", "num_micro_batches"),
        ("_tr_loss", "loss_since_log"),
        ("_globalstep_last_logged", "loss_since_log"),
        ("_total_loss_scalar", "set_loss_since_log"),
    ],
)
def test_attributes_of_a_trainer(name, user, tmp_path):
    trainer = line_trainer(tmp_path)
    trainer.train()
    assert name in vars(trainer), moved(f"Trainer.{name}", user, "no trainer has it")


def test_attributes_of_configurations_and_tensors():
    user = "attention_implementation"
    is_there = isinstance(getattr(PreTrainedConfig, "_attn_implementation", None), property)
    assert is_there, moved("PreTrainedConfig._attn_implementation", user, "it is no property of it")
    is_there = isinstance(getattr(torch.zeros(1), "_version", None), int)
    assert is_there, moved("torch.Tensor._version", "num_writes", "no tensor has it, or it is no whole number")
    assert hasattr(torch, "_foreach_norm"), moved("torch._foreach_norm", "l2_norms", "it is gone")


# ---- Each of them does what it did ----


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1, 1e6])
def test_the_norm_is_that_from_before_clipping(tmp_path, max_grad_norm):
    def norms():
        return trainer.model.weight.grad.norm().item(), trainer.total_grad_norm.item()

    watch = AtEachStep("on_pre_optimizer_step", norms)
    trainer = line_trainer(tmp_path, callbacks=[watch], max_grad_norm=max_grad_norm)
    trainer.train()
    user = "TrainerHooks"
    for (clipped, total), entry in zip(watch.seen, trainer.state.log_history[:-1], strict=True):
        text = moved("Trainer._get_grad_norm", user, "what it returns is no longer the norm that is logged")
        assert entry["grad_norm"] == total, text
        expected = total if not 0 < max_grad_norm < total else max_grad_norm
        text = moved("Trainer._get_grad_norm", user, "on_pre_optimizer_step no longer sees clipped gradients")
        assert clipped == pytest.approx(expected, rel=1e-4), text
    assert len(watch.seen) == 4


def test_a_checkpoint_is_written_before_older_ones_are_deleted(tmp_path):
    trainer = line_trainer(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer.train()
    assert names(tmp_path) == ["checkpoint-4"]
    text = moved("Trainer._save_checkpoint", "TrainerHooks", "writing_checkpoint is not all around it")
    assert trainer.seen == [[], ["checkpoint-2"], ["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]], text


def test_the_sum_of_losses_since_the_last_log(tmp_path):
    watch = AtEachStep("on_step_end", lambda: internals.loss_since_log(trainer))
    trainer = line_trainer(tmp_path, callbacks=[watch], logging_steps=3)
    trainer.train()
    text = moved("Trainer._tr_loss", "loss_since_log", f"it reads {watch.seen}")
    assert [step for _, step in watch.seen] == [0, 0, 0, 3], text
    assert trainer.state.log_history[0]["loss"] == pytest.approx(watch.seen[2][0] / 3), text
    assert watch.seen[0][0] > 0, text
    start = AtEachStep("on_train_begin", lambda: internals.set_loss_since_log(trainer, 100.0, -1))
    trainer = line_trainer(tmp_path, callbacks=[start], logging_steps=3)
    mean = trainer.train().training_loss
    text = moved("Trainer._tr_loss", "set_loss_since_log", "the log does not go on from it")
    assert trainer.state.log_history[0]["loss"] == pytest.approx((100 + watch.seen[2][0]) / 4), text
    assert mean == pytest.approx((watch.seen[2][0] + watch.seen[3][0]) / 4, rel=1e-4), text


@pytest.mark.parametrize("kind", ["list", "datasets"])
@pytest.mark.parametrize(("input_columns", "expected"), [(None, {"x", "labels"}), (("x", "length"), {"x", "length"})])
def test_the_collator_gets_the_columns_that_are_read(tmp_path, kind, input_columns, expected):
    columns = []

    def collator(rows):
        columns.append(set(rows[0]))
        return stack([{**ROWS[0], **row} for row in rows])

    rows = ROWS if kind == "list" else Dataset.from_list(ROWS)
    trainer = line_trainer(tmp_path, collator, rows)
    trainer.input_columns = input_columns
    next(iter(trainer.get_train_dataloader()))
    assert columns
    for found in columns:
        text = moved("Trainer._set_signature_columns_if_needed", "TrainerHooks", f"the collator got {sorted(found)}")
        assert found == expected, text
    internals.model_collator(trainer)(ROWS[:2])
    name = "Trainer._get_collator_with_removed_columns"
    assert columns[-1] == expected, moved(name, "model_collator", f"the collator got {sorted(columns[-1])}")
    trainer.args.remove_unused_columns = False
    assert internals.model_collator(trainer) is collator


def test_rows_come_in_the_order_that_is_asked_for(tmp_path):
    rows: list[float] = []

    def collator(examples):
        rows.extend(example["x"][0] for example in examples)
        return stack(examples)

    trainer = line_trainer(tmp_path, collator)
    trainer.train_order = lambda: [3, 1, 4, 1, 5, 9, 2, 6]
    trainer.train()
    name = "Trainer._get_train_sampler"
    # Four batches, in steps of three and of the one that is left.
    assert rows[:8] == [3, 1, 4, 1, 5, 9, 2, 6], moved(name, "TrainerHooks", f"the rows were {rows}")


def test_weights_of_a_checkpoint_are_loaded(tmp_path):
    trainer = line_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    fresh = line_trainer(tmp_path)
    assert not torch.equal(fresh.model.weight, trainer.model.weight)
    internals.load_weights(fresh, str(tmp_path / "checkpoint-4"))
    text = moved("Trainer._load_from_checkpoint", "load_weights", "it leaves the weights as they were")
    assert torch.equal(fresh.model.weight, trainer.model.weight), text


def test_micro_batches_are_counted(tmp_path):
    # Five batches an epoch: of three, and of the two that are left.
    watch = AtEachStep("on_step_begin", lambda: internals.num_micro_batches(trainer))
    trainer = line_trainer(tmp_path, callbacks=[watch])
    trainer.train()
    name = "Trainer.current_gradient_accumulation_steps"
    assert watch.seen == [3, 2, 3, 2], moved(name, "num_micro_batches", f"steps of 3 and 2 batches read {watch.seen}")


@pytest.mark.parametrize("kind", [BertConfig, MagicConfig])
def test_a_configuration_names_its_attention(kind):
    assert internals.attention_implementation(kind()) is None
    assert internals.attention_implementation(kind(attn_implementation="eager")) == "eager"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(**sizes, vocab_size=8))
    assert internals.attention_implementation(model.config) == "sdpa"
    model.set_attn_implementation("eager")
    assert internals.attention_implementation(model.config) == "eager"


def test_norms_are_those_of_each_tensor_in_float32():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((300, 7), (11,), ())]
    expected = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    assert all(torch.equal(own, other) for own, other in zip(internals.l2_norms(tensors), expected, strict=True))
    # The squares of these are beyond float16.
    (norm,) = internals.l2_norms([torch.full((4,), 30_000.0, dtype=torch.float16)])
    assert norm.dtype == torch.float32
    assert norm == 60_000
    assert internals.l2_norms([]) == ()


def test_writes_are_counted():
    tensor = nn.Parameter(torch.zeros(3))
    before = internals.num_writes(tensor)
    text = moved("torch.Tensor._version", "num_writes", "it does not count what is written in place")
    with torch.no_grad():
        tensor.add_(1)
        tensor[0] = 2
    assert internals.num_writes(tensor) == before + 2, text
    _ = tensor + 1
    assert internals.num_writes(tensor) == before + 2
    with torch.inference_mode():
        assert internals.num_writes(torch.zeros(3).add_(1)) == 0


# ---- Nothing else in training/ reaches inside ----

# Documented, in spite of their names.
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}
# What a class of transformers' form declares about itself.
DECLARED = {
    ("training.retraining.rtd_model", "ReplacedTokenModel", "_tied_weights_keys"),
    # How a model's weights begin, which its class is documented to say.
    ("training.cells.cell_model", "CellSupernet", "_init_weights"),
}
LIBRARIES = {"transformers", "torch", "accelerate", "datasets", "huggingface_hub"}
FOREIGN: tuple[Any, ...] = (
    *(torch, nn, transformers, accelerate, datasets),
    *(Tensor, nn.Module, torch.Generator, torch.utils.data.DataLoader, torch.optim.Optimizer),
    *(Trainer, TrainingArguments, PreTrainedModel, PreTrainedConfig, PreTrainedTokenizerBase),
    *(accelerate.Accelerator, datasets.Dataset, datasets.IterableDataset),
)


def is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each private name that is reached by an attribute, an argument, an import or as a string."""
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        yield node.lineno, node.attr
    elif isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
        source = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [*source, *(alias.name for alias in node.names)]
        yield from ((node.lineno, part) for name in names for part in name.split(".") if is_private(part))
    elif isinstance(node, ast.Call):
        yield from ((node.lineno, word.arg) for word in node.keywords if word.arg and is_private(word.arg))
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, text) for text in texts if isinstance(text, str) and is_private(text))


def defined_names(tree: ast.AST) -> set[str]:
    """Private names of functions, arguments, classes and variables, and of the attributes that methods assign."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def is_own(receiver: ast.AST) -> bool:
    return isinstance(receiver, ast.Name) and receiver.id in ("self", "cls")


def names_inside(owner: Any) -> set[str]:
    """Private names of a module or class, those that only its instances have included."""
    names = {name for name in dir(owner) if is_private(name)}
    if inspect.isclass(owner):
        for kind in owner.__mro__:
            try:
                names |= defined_names(ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))))
            except (OSError, TypeError, SyntaxError):
                # Written in C, where dir knows all; some of these get lines of another text from Python 3.13.
                continue
    return names


@cache
def foreign_names() -> frozenset[str]:
    return frozenset().union(*map(names_inside, FOREIGN))


def reached_inside(tree: ast.AST, own: set[str]) -> list[str]:
    """Private names of others that a module reaches, with their lines.

    One that this package defines as well may only be reached by `self`, or where no other library has it.
    """
    found = []
    for node in ast.walk(tree):
        allowed = own if isinstance(node, ast.Attribute) and is_own(node.value) else own - foreign_names()
        found += [f"line {line}: {name}" for line, name in private_names(node) if name not in allowed | PUBLIC]
    return found


@cache
def own_names() -> set[str]:
    paths = [*MODULES.values(), *sorted(MODELING.glob("*.py"))]
    return set().union(*(defined_names(ast.parse(path.read_text(encoding="utf-8"))) for path in paths))


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_of_a_library_is_reached(module):
    found = reached_inside(ast.parse(MODULES[module].read_text(encoding="utf-8")), own_names())
    assert not found, f"{module} reaches inside another library; take it into training/internals.py: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "trainer._load_from_checkpoint(folder)",
        "self._prepare_inputs(inputs)",
        "cached_file(name, _raise_exceptions_for_missing_entries=False)",
        "from transformers.trainer_utils import _secret",
        "from torch._dynamo import config",
        "import torch._dynamo",
        "getattr(config, '_attn_implementation')",
        "torch._foreach_norm(tensors)",
        # Another class of ours has an attribute of this name.
        "tensor._version",
    ],
)
def test_the_walk_sees_what_reaches_inside(text):
    assert reached_inside(ast.parse(text), {"_run", "_version"})


@pytest.mark.parametrize("text", ["self._version", "other._run()", "row._replace(a=1)", "from .files import _flush"])
def test_the_walk_leaves_what_is_ours(text):
    assert not reached_inside(ast.parse(text), {"_run", "_version"})


def defined_in_class(statement: ast.stmt) -> set[str]:
    """Private names of a class that a statement of its body defines: methods, fields, attributes that it assigns."""
    if isinstance(statement, ast.FunctionDef):
        stores = (node for node in ast.walk(statement) if isinstance(node, ast.Attribute))
        attributes = {node.attr for node in stores if isinstance(node.ctx, ast.Store) and is_own(node.value)}
        return {name for name in {statement.name, *attributes} if is_private(name)}
    return defined_names(statement)


def overridden(module: str) -> list[str]:
    """Private names of a library's class that a class of a module defines anew, or assigns."""
    found = []
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        kind = getattr(importlib.import_module(module), node.name)
        bases = [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES]
        inside = set().union(*map(names_inside, bases))
        own = {name for statement in node.body for name in defined_in_class(statement)}
        found += [f"{node.name}.{name}" for name in own & inside if (module, node.name, name) not in DECLARED]
    return sorted(found)


@pytest.mark.parametrize("module", [name for name in MODULES if "class " in MODULES[name].read_text(encoding="utf-8")])
def test_no_private_name_of_a_library_is_defined_anew(module):
    found = overridden(module)
    assert not found, f"{module} defines what is private to a class that it derives from: {found}"
