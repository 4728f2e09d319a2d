"""The Python of the README and of the pages in docs/ runs, and the commands and options of the README exist."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from toy import collate, toy_config, toy_data, toy_trainer
from toy_cli import without_int8, write_compression
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, TrainerCallback

from modeling_magic import MagicForMaskedLM, configuration_magic
from training.analysis import standalone, sweep_run
from training.cli.main import app, main
from training.cli.options import path_of
from training.cli.reference import ALL_SETTINGS
from training.data.settings import DataSettings
from training.data.tokenizing import train_tokenizer
from training.hub.export import export_model
from training.hub.presets import load_preset
from training.options import own_keys, sections_of
from training.runs.recipes import load_recipe
from training.search.compare import search_children
from training.space.budgets import AdditiveCost, Budget, BudgetedSpace, Limit
from training.space.costs import count_flops, count_parameters
from training.space.search_space import SearchSpace
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.journal import RankedChild


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SENTENCES = "the anchor aligns the child. a layer holds the operators of the super-net. every step trains one child. "


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs_as_it_stands(tmp_path, monkeypatch):
    """On a small text and for a few steps; the lines are the README's."""
    loading, searching, under_a_budget = blocks("python")
    write_compression(tmp_path)
    (tmp_path / "demo_run" / "smaller").mkdir(parents=True)
    (tmp_path / "minilm").rename(tmp_path / "demo_run" / "smaller" / "model")
    assert len(searching.strip().splitlines()) <= 12
    assert len([line for line in under_a_budget.splitlines() if line]) < 12
    (tmp_path / "text").mkdir(exist_ok=True)
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 3}" for number in range(300)))
    monkeypatch.chdir(tmp_path)
    for old, new in {
        "vocab_size=4096": "'text', vocab_size=200",
        "max_steps=1600": "max_steps=4, num_validation_sequences=4, report_to='none'",
        '"shrink_every_n_steps": 400': '"shrink_every_n_steps": 1',
        '"alignment_warmup_steps": 200': '"alignment_warmup_steps": 1',
    }.items():
        assert searching.count(old) == 1
        searching = searching.replace(old, new)
    names: dict = {}
    exec(searching, names)
    assert names["trainer"].state.global_step == 4
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder").config.chain == names["child"].config.chain
    exec(loading, {})
    supernet = MagicForMaskedLM(toy_config(vocab_size=len(names["data"].tokenizer), max_position_embeddings=128))
    supernet.save_pretrained(tmp_path / "run" / "supernet")
    names["data"].tokenizer.save_pretrained(tmp_path / "run" / "supernet")
    for old, new in {"batch_size=16, num_sequences=256": "batch_size=2, num_sequences=4", ", 500)": ", 6)"}.items():
        assert under_a_budget.count(old) == 1
        under_a_budget = under_a_budget.replace(old, new)
    exec(under_a_budget, names)
    found = names["found"].winner.architecture
    encoder = AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder")
    assert encoder.config.chain == found
    assert encoder.num_parameters() <= 800_000


def test_python_of_the_hub_page_runs(supernet, tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["it is good", "it is bad", "a sentence", "another one"] * 20, vocab_size=60)
    child = supernet.extract_child(("MHA4", "CONV3", "FFN", "CONV5"))
    child.resize_token_embeddings(len(tokenizer))
    export_model(child, tokenizer, tmp_path / "encoder", {})
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    code = code.replace('TrainingArguments("finetuned",', 'TrainingArguments("finetuned", report_to="none",')
    names: dict = {}
    exec(code, names)
    assert names["states"].shape[:2] == (2, 4)
    assert AutoModelForSequenceClassification.from_pretrained("classifier").config.num_labels == 2


# PEFT asks for a name of transformers that has become another.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_python_of_the_recipe_for_lora_runs(supernet, tmp_path, monkeypatch):
    # Its import takes a second.
    import peft

    tokenizer = train_tokenizer(["it is good", "it is bad", "a sentence", "another one"] * 20, vocab_size=60)
    child = supernet.extract_child(("MHA4", "CONV3", "FFN", "CONV5"))
    child.resize_token_embeddings(len(tokenizer))
    export_model(child, tokenizer, tmp_path / "encoder" / "model", {})
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    recipe, mapping = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "peft" in code)
    before, _, after = recipe.partition("# ... Trainer")
    names: dict = {}
    exec(before, names)
    adapted, batch = names["adapted"], tokenizer(["it is good", "it is bad"], return_tensors="pt")
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for operator in ("MHA4.query", "CONV3.intermediate", "FFN.intermediate", "CONV5.dense"):
        assert any(f"{operator}.lora_A" in name for name in trained)
    assert all("lora_" in name or "classifier" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        adapted(**batch, labels=torch.tensor([1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = adapted.eval()(**batch).logits
    exec(f"# {after}", names)
    merged = AutoModelForSequenceClassification.from_pretrained("merged").eval()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=1e-5)
    # The head of another start is the adapter's.
    start = AutoModelForSequenceClassification.from_pretrained("encoder/model", num_labels=2)
    again = peft.PeftModel.from_pretrained(start, "adapter").eval()
    torch.testing.assert_close(again(**batch).logits, expected, rtol=0, atol=1e-6)
    # Without target modules.
    start = AutoModelForSequenceClassification.from_pretrained("encoder/model", num_labels=2)
    with pytest.raises(ValueError, match="target_modules"):
        peft.get_peft_model(start, peft.LoraConfig(task_type="SEQ_CLS"))
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(table, "magic", None)
    exec(mapping, {})
    adapted = peft.get_peft_model(start, peft.LoraConfig(task_type="SEQ_CLS"))
    trained = [name for name, parameter in adapted.named_parameters() if "lora_A" in name and parameter.requires_grad]
    # Query and value, and the first layer of each of three other operators.
    assert len(trained) == 2 + 3


def test_python_of_the_page_on_compression_runs(tmp_path, monkeypatch):
    """With a budget that a toy can have, and for a few steps."""
    write_compression(tmp_path)
    without_int8(monkeypatch)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "compress.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) < 12
    budget, short = 'max_latency="0.4x"', "steps=4, supernet_steps=4, calibration_steps=2, num_evaluations=12"
    assert code.count(budget) == 1
    names: dict = {}
    exec(code.replace(budget, f'max_params="0.9x", {short}'), names)
    assert names["embeddings"].shape == (2, 32)
    assert names["result"]["models"][1]["tasks"].keys() == {"stsb (dev.tsv)"}


def test_the_search_in_python_is_that_of_the_readme():
    """Which another test runs."""
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    search, *_ = re.findall(r"```python\n.*?```", page, re.DOTALL)
    assert search in README


def test_the_searcher_of_the_search_page_climbs():
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    names: dict = {}
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Climber" in code)
    exec(code, names)
    space = SearchSpace((("MHA4", "FFN", "CONV3"),) * 4)
    cost = AdditiveCost("cost", 0, {"MHA4": 3, "FFN": 2, "CONV3": 1})
    within = BudgetedSpace(space, Budget((Limit(cost, maximum=10),)))

    def evaluate(children):
        return [RankedChild(child, 4.0 - child.count("FFN"), 0.0) for child in children]

    found = search_children(evaluate, space, within.budget, names["Climber"](within, seed=0), 60)
    assert min(child.val_loss for child in found.searched) == 0.0


def test_what_the_page_on_extending_adds_works(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration_magic, "_OWN_OPERATORS", {})
    sampling, operator = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict = {}
    exec(sampling, names)
    exec(operator, names)
    config = toy_config(0.0, candidate_operators=[["MHA4", "FFN", "GLU", "GLUx24"]] * 4)
    own = toy_trainer(tmp_path / "run", config, max_steps=12)
    sets = {"train_dataset": toy_data(), "eval_dataset": toy_data()[:16], "data_collator": collate}
    trainer = names["FewAttentionTrainer"](own.model, own.args, **sets)
    drawn: list = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            drawn.append(trainer.architecture)

    trainer.add_callback(Watch())
    trainer.train()
    assert len(set(drawn)) > 6
    assert all(sum(name == "MHA4" for name in child) <= 2 for child in drawn)
    child = trainer.model.extract_child(("GLU", "MHA4", "GLUx24", "FFN"))
    assert count_parameters(child.config, child.config.chain, head="mlm") == child.num_parameters()
    ids = torch.arange(5, 15).view(1, 10)
    # What the counter sees of attention.
    child.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter:
        child.magic(ids)
    assert count_flops(child.config, child.config.chain, 10, "torch", head="none") == counter.get_total_flops()
    child.save_pretrained(tmp_path / "encoder")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(again.eval()(ids).logits, child.eval()(ids).logits)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of a page's blocks: the words of each command, and what follows them."""
    text = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)).replace("\\\n", "")
    for line in re.findall(r"^magic-nas (.*)$", text, re.MULTILINE):
        name, *words = shlex.split(line, comments=True)
        yield (f"{name} {words.pop(0)}" if name == "analyze" else name), words


def command_of(name: str) -> Any:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    for name, words in command_lines(page):
        known = {option for parameter in command_of(name).params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_and_keys_fit_their_commands(page):
    for name, words in command_lines(page):
        kinds = [kind for kind in ALL_SETTINGS if kind.command.partition(" --")[0] == name]
        for option, value in pairwise(words):
            if option in ("--config", "-c"):
                kinds = [kind for kind in kinds if kind.command == load_recipe(value)["command"]]
                assert kinds, f"{name}: {value}"
            elif option == "--set":
                key = value.partition("=")[0]
                assert any(is_key(kind, path_of(kind, key)) for kind in kinds), f"{name}: {key}"


def is_key(kind, path) -> bool:
    known = own_keys(kind) if len(path) == 1 else {field.name for field in fields(sections_of(kind)[path[0]])}
    return path[-1] in known


def test_rankings_of_the_page_on_analyses_fit_together(monkeypatch):
    """Text that fits the children's positions, and sweeps in the space of the truth."""
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    text = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", "")
    asked: list = []
    monkeypatch.setattr(standalone, "train_standalone", lambda given, _: asked.append(given) or 1 / 0)
    monkeypatch.setattr(sweep_run, "run_sweep", lambda given, _: asked.append(given.pretrain) or 1 / 0)
    for line in re.findall(r"^magic-nas (analyze (?:standalone|sweep) .*)$", text, re.MULTILINE):
        monkeypatch.setattr("sys.argv", ["magic-nas", *shlex.split(line)])
        with pytest.raises(ZeroDivisionError):
            main()
    assert len(asked) == 3
    configs = [load_preset(given.preset) for given in asked]
    for given, config in zip(asked, configs, strict=True):
        assert given.data.block_size <= config.max_sequence_length
        assert config.candidate_operators == configs[0].candidate_operators
    for given in asked[:2]:
        standalone.check_standalone(given)


def test_limits_of_the_search_page_exist():
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    limits = {
        option for parameter in typer.main.get_command(app).commands["search"].params for option in parameter.opts
    }
    mentioned = set(re.findall(r"`(--(?:max|min)-[\w-]+)", page))
    assert mentioned
    assert mentioned <= limits


def test_options_of_the_readme_exist():
    known = {field.name for kind in (MagicTrainingArguments, DataSettings) for field in fields(kind)}
    for pattern in (r"--set (?:data\.)?([a-z]\w*)=", r"`--(sampler|alignment|shrink)"):
        mentioned = set(re.findall(pattern, README))
        assert mentioned
        assert mentioned <= known


def test_python_of_the_page_on_fine_tuning_runs():
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    names: dict = {}
    # The recipe for LoRA has a test of its own.
    exec("".join(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "peft" not in code), names)
    ids = torch.arange(12).view(2, 6)
    assert names["pair"](ids, labels=ids).loss_rtd.isfinite()


def test_python_of_the_page_on_analyses_runs(supernet):
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    for old, new in {
        '("MHA4", "FFN")': '("MHA4",) * 4',
        '("MHA4", "CONV3")': '("MHA4", "MHA4", "MHA4", "FFN")',
    }.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    ids = torch.arange(12).view(2, 6)
    names: dict = {"model": supernet, "batches": [{"input_ids": ids, "labels": ids}]}
    exec(code, names)
    assert len(names["gradients"].gradients) == 2


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"make {target} " in README
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
