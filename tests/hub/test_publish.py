"""Pushing a model folder: what is checked before, what the Hub then holds, and what a user is told when it fails."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import READER, STRANGER, WRITER, hub_server, run_client
from huggingface_hub import ModelCard
from toy import toy_config
from toy_hub import MIXED, TRAINING
from toy_verify import manifest_of
from transformers import AutoModelForSequenceClassification, BertweetTokenizer, Trainer, TrainingArguments

from modeling_magic import MagicForMaskedLM
from training.data.tokenizing import train_tokenizer
from training.hub.export import export_model
from training.hub.publish import check_export, check_weights, push_model


(ROW,) = manifest_of(MIXED)["results"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["this function returns the value of the input"] * 20, vocab_size=100, model_max_length=64)


def make_child(seed: int) -> MagicForMaskedLM:
    torch.manual_seed(seed)
    return MagicForMaskedLM(toy_config(0.0)).extract_child(MIXED).eval()


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory) -> Path:
    """A folder named `model`, not to be changed."""
    manifest = {"search": None, "training": TRAINING, "results": [ROW]}
    return export_model(make_child(0), tokenizer, tmp_path_factory.mktemp("exported") / "model", manifest)


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(exported, tmp_path / "model")


# ---- Before anything is sent ----


def test_a_folder_may_be_called_as_a_preset_is(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "bert-base")
    monkeypatch.chdir(tmp_path)
    assert push_model("bert-base", "ada/model", dry_run=True).files


def test_the_files_of_a_slow_tokenizer_are_sent_and_replaced(tmp_path):
    (tmp_path / "vocab.txt").write_text("a 10\nb 10\n", encoding="utf-8")
    (tmp_path / "bpe.codes").write_text("a b 10\n", encoding="utf-8")
    slow = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"), model_max_length=64)
    folder = export_model(make_child(0), slow, tmp_path / "model", {"search": None})
    assert {"vocab.txt", "bpe.codes"} <= set(push_model(folder, "ada/model", dry_run=True).files)
    assert export_model(make_child(1), slow, folder, {"search": None}) == folder


def test_a_dry_run_lists_the_files_and_asks_nobody(exported, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    report = push_model(exported, "ada/a-longer-name", revision="v2", dry_run=True)
    assert report.commit is None
    assert report.url.endswith("/ada/a-longer-name/tree/v2")
    assert set(report.files) == {path.name for path in exported.iterdir()}
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert report.files["model.safetensors"] == (exported / "model.safetensors").stat().st_size
    assert report.files["README.md"] != len(card.encode()), "the card names the repository"


def test_litter_is_left_out_and_an_onnx_file_is_not(folder):
    before = check_export(folder)
    for name in (".DS_Store", ".cache/huggingface/x", "__pycache__/modeling_magic.pyc", "LICENSE", "onnx/model.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert set(check_export(folder)) == {*before, "LICENSE", "onnx/model.onnx"}


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "training_args.bin", "checkpoint-10/config.json", "onnx/deep/model.onnx", "secrets.env"]
)
def test_files_that_no_export_holds_are_refused(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(
        ValueError, match=f"do not belong to an exported model: {re.escape(name)}; move them elsewhere"
    ):
        push_model(folder, "ada/encoder", dry_run=True)


@pytest.mark.parametrize("name", ["LICENSE", "onnx", "README.md"])
def test_links_are_refused(folder, tmp_path, name):
    secret = tmp_path / "secret"
    secret.mkdir() if name == "onnx" else secret.write_text("a key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"holds links, .*on this machine: {name}; push a copy .* `cp -rL`"):
        push_model(folder, "ada/encoder", dry_run=True)
    (folder / name).unlink()
    (folder / ".venv").symlink_to(secret)
    if name != "README.md":
        assert check_export(folder)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("search.json", cut_short, "search.json cannot be read"),
        ("config.json", Path.unlink, "give a JSON file or a folder with a config.json"),
        ("config.json", lambda path: edit(path, '"MHA4"', '"MHA5"'), "5 heads, which do not divide"),
        ("config.json", lambda path: edit(path, '"MHA4"', '"MHA4",\n"FFN"'), "holds a super-net; export one of its"),
        ("config.json", lambda path: edit(path, "MagicForMaskedLM", "BertModel"), "does not name a MAGIC class"),
        (
            "config.json",
            lambda path: edit(path, "auto_map", "auto_mop"),
            r"config.json in .* names no code \(auto_map\)",
        ),
        ("config.json", lambda path: edit_json(path, auto_map=None), "names no code"),
        ("config.json", lambda path: edit_json(path, auto_map=["x"]), "names no code"),
        ("config.json", lambda path: edit_json(path, architectures=3), "does not name a MAGIC class"),
        ("config.json", lambda path: edit_json(path, architectures=[["x"]]), "does not name a MAGIC class"),
        *(
            ("model.safetensors.index.json", lambda path, text=text: path.write_text(text), "does not name the files")
            for text in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}')
        ),
        ("README.md", lambda path: path.write_bytes(b"\xff\xfe"), "README.md is not UTF-8 text"),
        ("config.json", lambda path: edit(path, '"CONV5"', '"CONV7"'), "do not fit its config.json: they lack magic"),
        (
            "config.json",
            lambda path: edit(path, '"intermediate_size": 64', '"intermediate_size": 32'),
            "another shape",
        ),
        ("modeling_magic.py", Path.unlink, "lacks the model's code, modeling_magic.py; export the model again"),
        ("kernels_magic.py", Path.unlink, "lacks the model's code, kernels_magic.py; export the model again"),
        ("model.safetensors", Path.unlink, "has no model.safetensors; export the model again"),
        ("model.safetensors", cut_short, "model.safetensors is damaged or truncated"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "model.safetensors is damaged or truncated"),
        ("tokenizer_config.json", Path.unlink, "has no tokenizer; export the model again"),
        ("tokenizer.json", cut_short, "the tokenizer of .* cannot be loaded"),
        ("README.md", Path.unlink, "has no model card, README.md"),
        ("README.md", lambda path: edit(path, "# model", "# $model_name"), r"is not filled in: see \$model_name"),
        ("README.md", lambda path: path.write_text("# mine\n"), "is not filled in: see license"),
        ("README.md", lambda path: edit(path, "tags:", "tags: ["), "front matter of .* is not a YAML mapping"),
    ],
)
def test_a_damaged_folder_is_refused(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(ValueError, match=message) as error:
        push_model(folder, "ada/encoder", dry_run=True)
    assert "\n" not in str(error.value)


def test_the_code_of_a_tokenizer_is_named_as_transformers_does(folder):
    """A pair of a slow and a fast class, one of which does not exist."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit_json(folder / "config.json", auto_map={**config["auto_map"], "AutoTokenizer": ["tokens.Own", None]})
    with pytest.raises(ValueError, match=r"lacks the model's code, tokens.py"):
        push_model(folder, "ada/encoder", dry_run=True)


def test_what_trainer_saves_is_sent_as_a_whole_export(exported, tokenizer, tmp_path):
    folder = tmp_path / "tuned"
    model = AutoModelForSequenceClassification.from_pretrained(exported, num_labels=3)
    args = TrainingArguments(str(tmp_path / "run"), report_to="none", disable_tqdm=True, use_cpu=True)
    Trainer(model, args, processing_class=tokenizer).save_model(str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="is not an exported model"):
        check_export(folder)
    sent = push_model(folder, "ada/encoder", dry_run=True).files
    assert sent.keys() == push_model(exported, "ada/encoder", dry_run=True).files.keys()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # Nothing of the Trainer's, such as its pickled arguments, goes along.
    assert "training_args.bin" in before
    with pytest.raises(ValueError, match=r"it has no search\.json; make one with `magic-nas export`"):
        push_model(tmp_path, "ada/encoder", dry_run=True)


def test_weights_that_were_trained_further_are_not_sent_with_the_older_scores(folder, tokenizer, tmp_path, caplog):
    unchanged = push_model(folder, "ada/encoder", dry_run=True).files
    assert unchanged["search.json"] == (folder / "search.json").stat().st_size
    assert not caplog.messages
    # As `Trainer.save_model` leaves a folder that it was given as its own.
    model = MagicForMaskedLM.from_pretrained(folder)
    model.lm_head.bias.data += 1
    model.save_pretrained(folder)
    before = (folder / "search.json").read_bytes()
    sent = push_model(folder, "ada/encoder", dry_run=True).files
    assert sent["search.json"] < len(before)
    assert sent.keys() == unchanged.keys()
    assert (folder / "search.json").read_bytes() == before
    (message,) = caplog.messages
    assert "sent with a new card and without those scores" in message


def test_ids_beyond_the_rows_are_refused_though_the_tokens_are_fewer(folder, tokenizer):
    vocab = dict(tokenizer.get_vocab())
    last = max(vocab, key=lambda token: vocab[token])
    vocab[last] = 100
    gapped = type(tokenizer)(vocab=vocab)
    assert len(gapped) < 100
    gapped.save_pretrained(folder)
    with pytest.raises(ValueError, match="has ids up to 100 but the model has rows for only 100 tokens"):
        push_model(folder, "ada/encoder", dry_run=True)


def test_weights_in_shards(tokenizer, tmp_path, exported):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    make_child(0).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for path in (tmp_path / "shards").glob("model*"):
        shutil.copy(path, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert check_weights(folder) == check_weights(exported)
    assert set(check_export(folder)) >= {path.name for path in folder.glob("model*")}
    cut_short(min(folder.glob("*.safetensors")))
    with pytest.raises(ValueError, match=r"model-00001-of-.* is damaged or truncated"):
        check_export(folder)


@pytest.mark.parametrize("repo", ["a/b/c", "../elsewhere", "ada/enc oder", ""])
def test_a_name_that_the_hub_cannot_have_is_refused(exported, repo):
    with pytest.raises(ValueError, match=r"[Rr]epo id|give OWNER/NAME"):
        push_model(exported, repo, dry_run=True)


def test_no_token(exported, monkeypatch):
    monkeypatch.setattr("training.hub.publish.get_token", lambda: None)
    with pytest.raises(ValueError, match="there is no token for the Hub; log in with `hf auth login` or set HF_TOKEN"):
        push_model(exported, "ada/encoder")


def test_an_offline_client(exported):
    with pytest.raises(ConnectionError, match="the Hub's client is offline; unset HF_HUB_OFFLINE to push"):
        push_model(exported, "ada/encoder", token=WRITER)


# ---- With a Hub ----

PUBLISH = """
import contextlib, io, shutil, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer
import modeling_magic
from training.cli import main
from training.hub.publish import push_model

first, second = Path("first/model"), Path("second/model")
outcome = {}

def attempt(name, *arguments, **options):
    try:
        report = push_model(*arguments, **options)
        outcome[name] = [report.url, report.commit, report.files]
    except Exception as error:
        outcome[name] = [type(error).__name__, str(error)]

attempt("new", first, "ada/encoder")
attempt("unchanged", first, "encoder")
HfApi().create_tag("ada/encoder", tag="v1.0")
attempt("branch", second, "ada/encoder", revision="v2", commit_message="Another seed")
attempt("branch again", second, "ada/encoder", revision="v2")
attempt("private", first, "lab/secret", private=True)
attempt("private again", first, "lab/secret", private=True)
attempt("not private", first, "ada/encoder", private=True)

# Refused.
attempt("unknown token", first, "ada/refused", token="hf_forged00")
attempt("broken token", first, "ada/refused", token="hf_forged\\n00")
attempt("reading token", first, "ada/refused", token="%(READER)s")
attempt("reading token, old repo", first, "ada/encoder", token="%(READER)s")
attempt("stranger", second, "ada/encoder", token="%(STRANGER)s")
attempt("stranger, private", first, "lab/secret", token="%(STRANGER)s")
attempt("no namespace", first, "nobody/encoder")
attempt("no revision", first, "ada/encoder", revision="refs/pr/7")

# Connections that break.
control(cut_uploads=1000, blobs={})
attempt("cut", first, "ada/cut")
attempt("cut again", second, "ada/encoder")
control(cut_uploads=0)
outcome["after the cut"] = HfApi().list_repo_files("ada/cut")
attempt("second try", first, "ada/cut")
control(fail_commits=1, blobs={})
attempt("failed commit", second, "ada/encoder")
control(cut_uploads=1, blobs={})
attempt("a single cut", first, "ada/lucky")
endpoint, huggingface_hub.constants.ENDPOINT = huggingface_hub.constants.ENDPOINT, "http://127.0.0.1:9"
attempt("nobody there", first, "ada/encoder")
huggingface_hub.constants.ENDPOINT = endpoint

# Somebody else pushed between the look and the commit.
model_info = HfApi.model_info

def model_info_of_yesterday(*arguments, **options):
    info = model_info(*arguments, **options)
    info.sha = "0" * 40
    return info

HfApi.model_info = model_info_of_yesterday
attempt("overtaken", second, "ada/encoder")
HfApi.model_info = model_info

# A push replaces what belongs to the weights and leaves the rest.
HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="model-00001-of-00002.safetensors", repo_id="ada/cut")
HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id="ada/cut")
attempt("replaced", second, "ada/cut")

ModelCard.load("ada/encoder").validate()

# transformers' own way.
model = AutoModelForMaskedLM.from_pretrained(first)
tokenizer = AutoTokenizer.from_pretrained(first)
model.push_to_hub("ada/plain")
tokenizer.push_to_hub("ada/plain")
again = AutoModelForMaskedLM.from_pretrained("ada/plain")
ids = tokenizer("the value of the input", return_tensors="pt")
assert torch.equal(model(**ids).logits, again(**ids).logits)
assert AutoTokenizer.from_pretrained("ada/plain")("the value").input_ids == tokenizer("the value").input_ids

# The command line.
def command(*arguments):
    sys.argv = ["magic-nas", "push", *arguments]
    printed, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    return [code, printed.getvalue(), complaint.getvalue()]

outcome["command"] = command(str(second), "ada/commanded", "--private", "--revision", "next")
outcome["dry command"] = command(str(second), "ada/never", "--dry-run")
shutil.copytree(first, "bad")
Path("bad/optimizer.pt").write_text("x")
outcome["bad command"] = command("bad", "ada/never")
os.environ["HF_TOKEN"] = "hf_forged00"
outcome["refused command"] = command(str(first), "ada/never")
Path("outcome.json").write_text(json.dumps(outcome))
"""

# In a process without this package.
LOAD = """
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import Trainer, TrainingArguments

known = torch.load("known.pt", weights_only=True)
ids = torch.arange(5, 14).unsqueeze(0)
trusted = {"trust_remote_code": True}

def logits(*arguments, **options):
    return AutoModelForMaskedLM.from_pretrained(*arguments, **options, **trusted)(ids).logits

for token in (False, "%(STRANGER)s"):
    try:
        logits("lab/secret", token=token)
    except OSError as error:
        assert "not a valid model identifier" in str(error) or "private" in str(error), error
    else:
        raise AssertionError("a private model was handed out")
with torch.no_grad():
    for revision in ("main", "v1.0", "%(commit)s"):
        assert torch.equal(logits("ada/encoder", revision=revision), known["first"])
    assert torch.equal(logits("ada/encoder", revision="v2"), known["second"])
    assert torch.equal(logits("lab/secret", token="%(WRITER)s"), known["first"])

# Fine-tuned, saved, pushed again and loaded.
model = AutoModelForSequenceClassification.from_pretrained("ada/encoder", num_labels=3, **trusted)
tokenizer = AutoTokenizer.from_pretrained("ada/encoder", **trusted)
before = model.classifier.out_proj.weight.clone()
data = [{**tokenizer("the value of the input"), "labels": number %% 3} for number in range(12)]
arguments = TrainingArguments("run", max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True)
Trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
assert not torch.equal(model.classifier.out_proj.weight, before)
model.save_pretrained("tuned")
os.environ["HF_TOKEN"] = "%(WRITER)s"
model.push_to_hub("ada/tuned")
tokenizer.push_to_hub("ada/tuned")
model.eval()
with torch.no_grad():
    expected = model(ids).logits
    for source in ("tuned", "ada/tuned"):
        again = AutoModelForSequenceClassification.from_pretrained(source, **trusted)
        assert torch.equal(again(ids).logits, expected)
    encoder = AutoModel.from_pretrained("ada/tuned", **trusted)
    assert torch.equal(encoder(ids).last_hidden_state, model.magic(ids).last_hidden_state)

# The example on the card, as it stands on the Hub.
from huggingface_hub import ModelCard
import re
example = re.findall(r"```python\\n(.*?)```", ModelCard.load("ada/encoder").text, re.DOTALL)[0]
assert 'model = "ada/encoder"' in example
exec(example)
"""


@pytest.fixture(scope="module")
def published(exported, tokenizer, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A Hub after all that PUBLISH does: the server, its outcomes, the client's folder and what it printed."""
    home = tmp_path_factory.mktemp("client")
    first = shutil.copytree(exported, home / "first" / "model")
    second = export_model(make_child(1), tokenizer, home / "second" / "model", {})
    with hub_server() as server:
        done = run_client(PUBLISH % {"READER": READER, "STRANGER": STRANGER}, home, server.url, WRITER)
        outcome = json.loads((home / "outcome.json").read_text())
        yield SimpleNamespace(
            server=server, outcome=outcome, home=home, first=first, second=second, printed=done.stdout + done.stderr
        )


def test_a_push_is_one_commit_of_the_whole_folder(published):
    url, commit, files = published.outcome["new"]
    repo = published.server.repos["ada/encoder"]
    assert url == f"{published.server.url}/ada/encoder"
    assert repo.branches["main"] == repo.tags["v1.0"] == commit
    assert list(repo.messages.values())[:2] == ["initial commit", "Upload model"]
    held = repo.files(commit)
    assert held.keys() == files.keys() | {".gitattributes"}
    for path in published.first.iterdir():
        if path.name != "README.md":
            assert held[path.name] == path.read_bytes()
    assert repo.commits[commit]["model.safetensors"][1], "sent as a large file"
    assert not repo.commits[commit]["config.json"][1]
    assert published.outcome["unchanged"] == published.outcome["new"]


def test_the_card_stands_as_the_readme_under_the_name_of_the_repository(published):
    card = ModelCard(published.server.repos["ada/encoder"].files()["README.md"].decode())
    assert card.data.model_name == "encoder"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "loss": 5.25,
        "accuracy": 0.21,
    }
    assert "\n# encoder\n" in card.text
    assert 'model = "ada/encoder"' in card.text
    assert "path/to" not in card.text


def test_a_push_to_a_branch_leaves_main_alone(published):
    url, commit, _ = published.outcome["branch"]
    repo = published.server.repos["ada/encoder"]
    assert url.endswith("/ada/encoder/tree/v2")
    assert repo.branches["v2"] == commit != repo.branches["main"]
    assert repo.messages[commit] == "Another seed"
    assert repo.files("v2")["model.safetensors"] == (published.second / "model.safetensors").read_bytes()
    assert published.outcome["branch again"][1] == commit


def test_private_stays_private(published):
    server, outcome = published.server, published.outcome
    assert server.repos["lab/secret"].private
    assert not server.repos["ada/encoder"].private
    assert outcome["private again"] == outcome["private"]
    assert outcome["not private"][0] == "ValueError"
    assert "ada/encoder exists and is public, and --private does not change that" in outcome["not private"][1]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("unknown token", "PermissionError", "the Hub refuses the token (401: Invalid credentials"),
        ("broken token", "ValueError", "the token for the Hub contains spaces or other invalid characters"),
        ("reading token", "PermissionError", "the token of ada may not write to ada/refused (403: You don't have the"),
        ("reading token, old repo", "PermissionError", "the token of ada may not write to ada/encoder (403: "),
        ("stranger", "ValueError", "eve cannot write to the namespace 'ada' (403: "),
        ("stranger, private", "ValueError", "eve cannot write to the namespace 'lab' (403: "),
        ("no namespace", "ValueError", "ada cannot write to the namespace 'nobody' (403: You don't have the rights"),
        ("no revision", "ValueError", "ada/encoder has no revision 'refs/pr/7'; name a branch"),
        (
            "cut",
            "ConnectionError",
            "main of ada/cut holds either the whole push or nothing of it: run the same command again",
        ),
        ("cut again", "ConnectionError", "main of ada/encoder holds either the whole push or nothing of it"),
        ("failed commit", "ConnectionError", "the Hub failed (500: Internal error, try again); main of ada/encoder"),
        ("overtaken", "ConnectionError", "main of ada/encoder has changed in the meantime (412: "),
        ("nobody there", "ConnectionError", "the connection to http://127.0.0.1:9 broke ("),
    ],
)
def test_a_failure_is_told_in_one_line(published, name, kind, message):
    assert published.outcome[name][0] == kind
    assert message in published.outcome[name][1]
    assert "\n" not in published.outcome[name][1]


def test_no_token_is_ever_printed(published):
    texts = published.printed + json.dumps(published.outcome)
    for token in (WRITER, READER, STRANGER, "hf_forged00", "hf_forged"):
        assert token not in texts


def test_a_push_that_broke_publishes_nothing_and_the_second_try_everything(published):
    assert published.outcome["after the cut"] == [".gitattributes"]
    repo = published.server.repos["ada/cut"]
    commits = list(repo.commits)
    assert published.outcome["second try"][1] == commits[1]
    assert repo.files(commits[1])["model.safetensors"] == (published.first / "model.safetensors").read_bytes()
    # An older model stays what it was.
    assert published.server.repos["ada/encoder"].branches["main"] == published.outcome["new"][1]
    assert "ada/refused" not in published.server.repos
    # The client itself mends a single cut.
    assert published.outcome["a single cut"][1] in published.server.repos["ada/lucky"].commits


def test_a_push_replaces_weights_and_leaves_foreign_files(published):
    held = published.server.repos["ada/cut"].files()
    assert held["model.safetensors"] == (published.second / "model.safetensors").read_bytes()
    assert "model-00001-of-00002.safetensors" not in held
    assert "notes.txt" in held


def test_the_command(published):
    code, printed, complaint = published.outcome["command"]
    repo = published.server.repos["ada/commanded"]
    assert code == 0
    assert "error" not in complaint
    assert repo.private
    assert "model.safetensors" in repo.files("next")
    assert "model.safetensors" not in repo.files("main")
    assert f"model:  {published.server.url}/ada/commanded/tree/next\ncommit: {repo.branches['next']}" in printed
    code, printed, _ = published.outcome["dry command"]
    assert code == 0
    assert f"{(published.second / 'model.safetensors').stat().st_size:,}  model.safetensors" in printed
    assert f"nothing was sent; it would go to {published.server.url}/ada/never" in printed
    code, _, complaint = published.outcome["bad command"]
    assert code == 2
    assert complaint.startswith(
        "magic-nas: error: bad holds files that do not belong to an exported model: optimizer.pt"
    )
    code, _, complaint = published.outcome["refused command"]
    assert code == 2
    assert complaint.count("\n") == 1
    assert complaint.startswith("magic-nas: error: the Hub refuses the token (401")
    assert "ada/never" not in published.server.repos


@pytest.mark.slow
def test_another_process_without_the_package_loads_tunes_and_pushes_again(published):
    ids = torch.arange(5, 14).unsqueeze(0)
    with torch.no_grad():
        known = {"first": make_child(0)(ids).logits, "second": make_child(1)(ids).logits}
    home = published.home.parent / "another"
    home.mkdir()
    torch.save(known, home / "known.pt")
    names = {"commit": published.outcome["new"][1], "WRITER": WRITER, "STRANGER": STRANGER}
    run_client(LOAD % names, home, published.server.url, packages=False)
    held = published.server.repos["ada/tuned"].files()
    assert {"config.json", "model.safetensors", "modeling_magic.py", "configuration_magic.py"} <= held.keys()
    # What was loaded from the Hub is loaded again without one.
    again = "from transformers import AutoModelForSequenceClassification as A\n" + (
        'assert A.from_pretrained("ada/tuned", trust_remote_code=True).num_labels == 3'
    )
    run_client(again, home, packages=False)
