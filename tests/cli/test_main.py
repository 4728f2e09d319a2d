"""The command line: from a search to an export, and wrong input."""

import json
import re
import sys

import pytest
import torch
import yaml
from toy import toy_config
from toy_cli import SHORT, run_main, without_int8, write_compression
from toy_finetune import SIZES, toy_tokenizer
from toy_hub import MIXED, export_tokenizer
from toy_runs import shared_preset, shared_text
from toy_verify import flip_byte
from transformers import AutoModelForMaskedLM, BertConfig, BertForSequenceClassification

from modeling_magic import MagicForMaskedLM, MagicModel
from training.cli import main as run
from training.compression.settings import KINDS
from training.hub.export import export_model
from training.hub.publish import check_export


@pytest.fixture(scope="module")
def text_folder():
    return shared_text()


@pytest.fixture(scope="module")
def preset():
    return shared_preset()


def test_commands_from_search_to_export(tmp_path, preset, text_folder, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "preset": preset,
                "data": {"source": str(text_folder), "vocab_size": 100, "block_size": 16, "validation_fraction": 0.1},
                "training_arguments": {
                    "shrink_every_n_steps": 2,
                    "shrink_operators_per_round": 8,
                    "disable_tqdm": True,
                },
            }
        )
    )
    search = tmp_path / "search"
    arguments = ["pretrain", "-c", recipe, "-o", search, "--max-steps", 4, "--batch-size", 4, "--shrink"]
    arguments += ["--set", "num_validation_sequences=8", "--set", "mlm_probability=0.2"]
    arguments += ["--set", "shrink_num_children=4", "--set", "alignment_warmup_steps=0", "--set", "learning_rate=1e-3"]
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "| found child |" in out
    assert (search / "report.png").stat().st_size > 10_000
    settings = json.loads((search / "run.json").read_text())["settings"]
    assert settings["training_arguments"]["learning_rate"] == 1e-3
    assert settings["training_arguments"]["num_validation_sequences"] == 8
    assert settings["mlm_probability"] == 0.2
    child = tmp_path / "child"
    code, out, err = run_main(monkeypatch, capsys, "retrain", "--search", search, "-o", child, "--max-steps", 2)
    assert code == 0, err
    assert "| this model |" in out
    assert AutoModelForMaskedLM.from_pretrained(child / "model")
    code, out, err = run_main(monkeypatch, capsys, "export", search, tmp_path / "exported", "--onnx")
    assert code == 0, err
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "exported")
    assert (tmp_path / "exported" / "onnx" / "model.onnx").is_file()
    code, out, err = run_main(monkeypatch, capsys, "export", child / "model", tmp_path / "onnx", "--onnx", "--int8")
    assert code == 0, err
    names = ["model.onnx", "model_int8.onnx"]
    beside = {"config.json", "configuration_magic.py", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {*names, *beside}
    check_export(tmp_path / "exported")
    code, out_of_verify, err = run_main(monkeypatch, capsys, "verify", tmp_path / "exported", "--text", text_folder)
    assert code == 0, err
    assert "| score on held-out text | loss" in out_of_verify
    assert "| ok: within 0.0005 |" in out_of_verify
    for folder in (search, child, tmp_path / "onnx"):
        code, out_of_verify, err = run_main(monkeypatch, capsys, "verify", folder)
        assert code == 0, err
        assert "nothing differs" in out_of_verify.splitlines()[-1]
    code, _, err = run_main(monkeypatch, capsys, "export", child / "model", tmp_path / "again")
    assert code == 0, err
    check_export(tmp_path / "again")
    for name, line in zip(names, out.splitlines()[-2:], strict=True):
        path = tmp_path / "onnx" / name
        assert line.split(": ")[1].strip() == f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


def test_verify_names_what_differs_and_ends_with_status_1(tmp_path, monkeypatch, capsys):
    tokenizer = export_tokenizer()
    child = MagicForMaskedLM(toy_config(vocab_size=len(tokenizer))).extract_child(MIXED)
    folder = export_model(child, tokenizer, tmp_path / "encoder", {})
    code, out, err = run_main(monkeypatch, capsys, "verify", folder)
    assert code == 0, err
    assert out.splitlines()[:2] == ["| what | recorded | found | verdict |", "| --- | --- | --- | --- |"]
    assert out.splitlines()[-1].startswith(f"{folder}, an export: nothing differs, ")
    flip_byte(folder / "model.safetensors")
    code, out, err = run_main(monkeypatch, capsys, "verify", folder)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].endswith(": weights: model.safetensors.")
    flip_byte(folder / "model.safetensors")
    code, out, err = run_main(monkeypatch, capsys, "verify", folder, "--text", tmp_path / "nowhere")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].endswith("; not measured: score on held-out text.")
    code, _, err = run_main(monkeypatch, capsys, "verify", tmp_path)
    assert code == 2
    assert "has no config.json; give one of the folders in it" in err


@pytest.mark.slow
def test_a_compression_ends_with_its_table_its_verdicts_and_its_models(tmp_path, monkeypatch, capsys):
    write_compression(tmp_path)
    without_int8(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments = ["compress", "minilm", "--text", "text", "--max-params", "0.9x, 0.6x", "--eval", "stsb=dev.tsv"]
    arguments += ["-o", "smaller", *SHORT]
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "| **params-0.9x: found** |" in out
    assert "stsb (dev.tsv)" in out
    table, *verdicts = (tmp_path / "smaller" / "table.md").read_text().strip().split("\n\n")
    assert "\n".join([f"\n{table}\n", *verdicts]) in out
    assert [text.partition(":")[0] for text in verdicts] == ["params-0.9x", "params-0.6x"]
    assert out.splitlines()[-6:] == [
        "figure: smaller/figure.svg",
        "table:  smaller/table.md",
        "model:  smaller/model/params-0.9x",
        "model:  smaller/model/params-0.6x",
        "load:   SentenceTransformer('smaller/model/params-0.9x', trust_remote_code=True)",
        "next:   magic-nas push smaller/model/params-0.9x OWNER/NAME",
    ]
    for name in ("params-0.9x", "params-0.6x"):
        code, shown, err = run_main(monkeypatch, capsys, "verify", f"smaller/model/{name}", "--eval", "stsb=dev.tsv")
        assert code == 0, shown
        assert re.search(r"\| score: stsb \(dev.tsv\) \| (-?[\d.]+) \| \1 \| ok: within 0.1 \|", shown), shown
        assert "| card: Compared with its source | as in search.json | the same numbers | ok |" in shown
        assert MagicModel.from_pretrained(f"smaller/model/{name}").num_parameters() > 0
    # A run that has ended shows its result again, and learns of no other budget.
    monkeypatch.setattr("training.compression.compress_run.load_source", lambda *_: pytest.fail("loaded"))
    code, again, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert again == out
    code, _, err = run_main(monkeypatch, capsys, *arguments, "--max-params", "0.5x")
    assert code == 2
    assert "smaller holds another run" in err


def test_a_cluster_is_asked_for_by_name(tmp_path, monkeypatch, capsys):
    asked = []

    def compress(*given, cluster):
        asked.append(cluster)
        raise ValueError("enough")

    monkeypatch.setattr("training.compression.compress_run.compress", compress)
    begin = ["compress", "one", "--text", "a", "--max-latency", "0.4x", "-o", tmp_path]
    code, _, err = run_main(monkeypatch, capsys, *begin, "--num-workers", "2")
    assert code == 2
    assert "add --ray" in err
    code, _, err = run_main(monkeypatch, capsys, *begin, "--ray", "--address", "auto", "--num-workers", "2")
    assert code == 2
    assert "but --address names a cluster; remove one" in err
    for more in ([], ["--ray"], ["--ray", "--address", "auto"], ["--ray", "--num-workers", "2"]):
        run_main(monkeypatch, capsys, *begin, *more)
    assert asked == [None, (None, None, 1, 0), ("auto", None, 1, 0), (None, 2, 1, 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_one_budget_has_its_model_in_the_folder_itself(tmp_path, monkeypatch, capsys, kind):
    asked = []
    result = {"table": "| model |", "verdicts": ["latency-0.4x: better."], "latency": {"warnings": ["a busy machine"]}}
    result |= {"kind": kind, "members": [{"name": "latency-0.4x"}]}
    monkeypatch.setattr(
        "training.compression.compress_run.compress", lambda *given, cluster: asked.append(given) or dict(result)
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("command: compress\ncheckpoint: one\nmax_latency: 0.5x\nnum_threads: 2\nsteps: 7\n")
    code, out, err = run_main(monkeypatch, capsys, "compress", "-c", recipe, "-o", tmp_path)
    assert code == 0, err
    flags = ["two", "-c", recipe, "-o", tmp_path, "--max-latency", "0.4x", "--num-threads", "3"]
    flags += ["--text", "a,b.txt", "--text", "owner/c", "--eval", "stsb=a.tsv", "--eval", "pairs=b.tsv"]
    code, out, err = run_main(monkeypatch, capsys, "compress", *flags)
    assert code == 0, err
    (first, folder), (second, _) = asked
    assert folder == tmp_path
    assert (first.checkpoint, first.max_latency, first.num_threads, first.steps) == ("one", ("0.5x",), 2, 7)
    assert (second.checkpoint, second.max_latency, second.num_threads, second.steps) == ("two", ("0.4x",), 3, 7)
    assert second.text == ("a", "b.txt", "owner/c")
    assert second.eval == ("stsb=a.tsv", "pairs=b.tsv")
    assert "warning: a busy machine" in out.splitlines()
    *_, model, load, following = out.splitlines()
    assert model == f"model:  {tmp_path / 'model'}"
    assert f"({str(tmp_path / 'model')!r}, trust_remote_code=True)" in load
    assert following == f"next:   magic-nas push {tmp_path / 'model'} OWNER/NAME"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compress", "-o", "{tmp}/run"],
            "no encoder to compress is given; use magic-nas compress CHECKPOINT --max-latency",
        ),
        (["compress", "{tmp}", "-o", "{tmp}/run", "--text", "{tmp}"], "no budget is given; set how small"),
        (["compress", "{tmp}", "-o", "{tmp}/run", "--max-params", "0.5x"], "no text is given; pass unlabelled text"),
        (["compress", "{tmp}", "-o", "{tmp}/run", "--max-params", "2x"], "--max-params is 2x; give less than"),
        (["compress", "{tmp}", "-o", "{tmp}/run", "--max-params", "half"], "--max-params is 'half'; give a share of"),
        (["compress", "{tmp}", "-o", "{tmp}/run", "--num-threads", "0"], "num_threads is 0; it must be at least 1"),
        (["compress", "{tmp}/no", "-o", "{tmp}/run", "--max-flops", "0.5x", "--text", "{tmp}"], "no model {tmp}/no;"),
        (
            ["compress", "{tmp}", "-o", "{tmp}", "--max-params", "0.5x", "--text", "x"],
            "is not empty and does not hold a run",
        ),
        (["describe", "magic-huge"], "unknown preset 'magic-huge'; choose one of"),
        (["describe", "magic-tiny", "--architecture", "MHA5,FFN"], "5 heads"),
        (["describe", "magic-tiny", "--architecture", "MHA4,,FFN"], "is not an operator name"),
        (["pretrain", "-o", "{tmp}/run", "--text", "{tmp}/nowhere"], "nowhere"),
        (["pretrain", "-o", "{tmp}/run", "--text", "{tmp}/empty"], "empty"),
        (["pretrain", "-o", "{tmp}/run", "--preset", "bert-base"], "super-net needs a layer with several candidates"),
        (
            ["pretrain", "-o", "{tmp}/run", "--sampler", "gradual", "--set", "num_substitutions=99"],
            "choose 1 to 6, the number of layers",
        ),
        (["pretrain", "-o", "{tmp}/run", "--set", "optim=[1"], "is not a valid YAML value"),
        (["pretrain", "-o", "{tmp}/run", "--set", "max_step=3"], "did you mean 'training_arguments.max_steps'"),
        (["pretrain", "-o", "{tmp}/run", "--set", "max_steps"], "has no value; write KEY=VALUE"),
        (["pretrain", "-o", "{tmp}/run", "--set", "a.b=3"], "the recipe has no such section"),
        (["pretrain", "-o", "{tmp}/run", "--sampler", "spos"], "sampler is 'spos'; choose one of"),
        (["pretrain", "-o", "{tmp}/run", "-c", "{tmp}/none.yaml"], "does not exist; choose one of"),
        (["pretrain", "-o", "{tmp}/run", "--num-threads", "0"], "--num-threads is 0; it must be at least 1"),
        (["pretrain", "-o", "{tmp}"], "is not empty and does not hold a run"),
        (["retrain", "-o", "{tmp}/run", "--architecture", "MHA4,CONV8"], "even kernel 8"),
        (["retrain", "-o", "{tmp}/run", "--architecture", ""], "no architecture is given; give a run with --search"),
        (["retrain", "-o", "{tmp}/run", "--inherit"], "add --search RUN"),
        (
            ["retrain", "-o", "{tmp}/run", "--search", "{tmp}/nowhere"],
            "there is no folder {tmp}/nowhere; give the folder of",
        ),
        (
            ["retrain", "-o", "{tmp}/run", "--search", "{tmp}"],
            "does not contain a finished super-net run; give the folder",
        ),
        (["export", "{tmp}/nowhere", "{tmp}/out"], "there is no folder {tmp}/nowhere; give the folder of"),
        (["export", "{tmp}/nowhere", "{tmp}/out", "--int8"], "--int8 quantizes the ONNX file; add --onnx"),
    ],
)
def test_wrong_input_ends_in_one_line_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("training.supernet.trainer.MagicTrainer.train", lambda *_, **__: pytest.fail("trained"))
    code, _, err = run_main(monkeypatch, capsys, *(text.format(tmp=tmp_path) for text in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("magic-nas: error: ")
    assert message.format(tmp=tmp_path) in last
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_export_to_int8_without_its_packages_writes_no_child(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("training.supernet.loading.export_child", lambda *_: pytest.fail("exported"))
    code, _, err = run_main(monkeypatch, capsys, "export", tmp_path / "run", tmp_path / "out", "--onnx", "--int8")
    assert code == 2
    assert "pip install 'magic-nas[onnx]'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--preset", "magic-tiny", "--text", "nowhere"],
        ["retrain", "--preset", "magic-tiny", "--architecture", "(MHA4,FFN)*13", "--text", "nowhere"],
        ["retrain", "--objective", "rtd", "--preset", "magic-tiny", "--architecture", "(MHA4,FFN)*13"],
        ["finetune", "--model", "nowhere", "--train-file", "nowhere.csv"],
        ["squad", "--model", "nowhere", "--train-file", "nowhere/squad"],
        ["analyze", "standalone", "--preset", "magic-micro", "--text", "nowhere"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_every_training_refuses_an_unknown_tracker_before_it_reads_anything(tmp_path, monkeypatch, capsys, arguments):
    output = tmp_path / "run"
    given = [*arguments, "-o", output, "--set", "training_arguments.report_to=none_such"]
    code, _, err = run_main(monkeypatch, capsys, *given)
    assert code == 2
    assert "report_to is 'none_such'" in err
    assert not output.exists()


def test_a_classifier_is_scored_and_predicts_a_file(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_hidden_layers=1, num_attention_heads=4, id2label={0: "no", 1: "yes"})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    toy_tokenizer().save_pretrained(tmp_path / "bert")
    file, output = tmp_path / "mine.csv", tmp_path / "out" / "predicted.csv"
    file.write_text("one,two,label\nfine a,b c,yes\ndull b,c d,no\n", encoding="utf-8")
    given = [tmp_path / "bert", "--file", file, "--text-column", "one,two"]
    code, out, err = run_main(monkeypatch, capsys, "evaluate", *given, "-o", tmp_path / "scores" / "result.json")
    assert code == 0, err
    assert "| accuracy | macro_f1 | matthews_correlation | f1 | rows |" in out
    result = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert f"| {100 * result['metrics']['accuracy']:.2f} |" in out
    assert result["text_columns"] == ["one", "two"]
    code, out, err = run_main(monkeypatch, capsys, "predict", *given, "-o", output)
    assert code == 0, err
    assert out.splitlines()[-1] == f"predictions: {output}"
    assert output.read_text().splitlines()[0] == "one,two,label,prediction,probability"
    code, _, err = run_main(monkeypatch, capsys, "predict", *given, "-o", tmp_path / "out.xlsx")
    assert code == 2
    assert "give a file that ends in .csv or .jsonl" in err
    for command in ("evaluate", "predict"):
        code, _, err = run_main(monkeypatch, capsys, command, *given, "-o", tmp_path / "out")
        assert code == 2
        assert "directory" in err
    before = (tmp_path / "bert" / "config.json").read_bytes()
    code, _, err = run_main(monkeypatch, capsys, "evaluate", *given, "-o", tmp_path / "bert" / "config.json")
    assert code == 2
    assert "which is the input; give another output" in err
    assert (tmp_path / "bert" / "config.json").read_bytes() == before


def test_a_length_that_the_model_does_not_have_is_told_if_it_was_given(monkeypatch, capsys):
    code, out, err = run_main(monkeypatch, capsys, "describe", "magic-micro")
    assert (code, err) == (0, "")
    assert "the length is" not in out
    code, out, err = run_main(monkeypatch, capsys, "describe", "magic-micro", "--sequence-length", "65")
    assert code == 0, err
    assert out.startswith("the length is 64 tokens, not 65: the model has no more positions\n")


def test_what_changed_since_the_export_is_told_before_a_push(tmp_path, monkeypatch, capsys):
    tokenizer = export_tokenizer()
    child = MagicForMaskedLM(toy_config(vocab_size=len(tokenizer))).extract_child(MIXED)
    folder = export_model(child, tokenizer, tmp_path / "encoder", {})
    # What transformers showed while it wrote.
    capsys.readouterr()
    code, _, err = run_main(monkeypatch, capsys, "push", folder, "ada/encoder", "--dry-run")
    assert (code, err) == (0, "")
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("| parameters | ", "| parameters | 9"))
    code, _, err = run_main(monkeypatch, capsys, "push", folder, "ada/encoder", "--dry-run")
    assert (code, err) == (0, "warning: changed since the export: card: parameters, card: lines with numbers\n")
    code, _, err = run_main(monkeypatch, capsys, "push", tmp_path / "nowhere", "ada/encoder", "--dry-run")
    assert code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}; give the folder of a model" in err


def test_a_space_is_not_replaced_by_its_latencies(tmp_path, monkeypatch, capsys):
    space = tmp_path / "space.json"
    toy_config().to_json_file(space)
    before = space.read_bytes()
    code, _, err = run_main(monkeypatch, capsys, "benchmark", space, "--sequence-length", "4", "-o", space)
    assert code == 2
    assert "space.json is also the input; give another output" in err
    assert space.read_bytes() == before


def test_a_model_is_only_replaced_when_asked(tmp_path, monkeypatch, capsys):
    tokenizer = export_tokenizer()
    config = toy_config(vocab_size=len(tokenizer))
    for number, name in enumerate(("one", "other")):
        torch.manual_seed(number)
        export_model(MagicForMaskedLM(config).extract_child(MIXED), tokenizer, tmp_path / name, {})
    weights = (tmp_path / "one" / "model.safetensors").read_bytes()
    for command in ("export", "convert"):
        code, _, err = run_main(monkeypatch, capsys, command, tmp_path / "other", tmp_path / "one")
        assert code == 2
        assert "one holds a model already; pass --overwrite to replace it, or use another folder" in err
    code, _, err = run_main(monkeypatch, capsys, "export", tmp_path / "other", tmp_path / "one", "--onnx")
    assert code == 2
    assert "one holds a model, whose files ONNX would replace; use another folder" in err
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == weights
    check_export(tmp_path / "one")
    code, _, err = run_main(monkeypatch, capsys, "convert", tmp_path / "other", tmp_path / "one", "--to", "bert")
    assert code == 2
    assert "--overwrite" not in err
    given = ["convert", tmp_path / "other", tmp_path / "one", "--to", "bert", "--overwrite"]
    code, _, err = run_main(monkeypatch, capsys, *given)
    assert code == 2
    assert "--overwrite replaces MAGIC models only, not with --to bert; use another folder" in err
    # A folder may be completed in place.
    for arguments in ([tmp_path / "one"], [tmp_path / "other", "--overwrite"]):
        source, *flags = arguments
        code, _, err = run_main(monkeypatch, capsys, "export", source, tmp_path / "one", *flags)
        assert code == 0, err
        assert ((tmp_path / "one" / "model.safetensors").read_bytes() == weights) == (not flags)


def test_a_finished_command_leaves_the_other_processes(tmp_path, monkeypatch):
    """As one process of torchrun does; a group that is left to the interpreter's exit may abort it."""

    def command() -> None:
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        raise SystemExit(0)

    monkeypatch.setattr(sys.modules["training.cli.main"], "app", command)
    with pytest.raises(SystemExit, match="0"):
        run()
    assert not torch.distributed.is_initialized()
