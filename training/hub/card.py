"""The model card of an export: metadata, tables and example."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from modeling_magic import MagicConfig

from ..space.search_space import compact_architecture, format_architecture
from ..tables import counted, counted_children, markdown_table


CARD_NAME = "README.md"


@dataclass(frozen=True)
class Head:
    """Facts about a model class for the model card and the figure.

    Attributes:
        auto_class: the Auto class that loads it.
        task: its task on the Hub, `None` if the Hub has no such task.
        kind: a description of such a model in words.
        name: the name of the head in the figure, empty without a head.
        flops: the name of the head in `count_flops`.
    """

    auto_class: str
    task: str | None
    kind: str
    name: str
    flops: str = "none"


HEADS = {
    "MagicModel": Head("AutoModel", "feature-extraction", "A text encoder", ""),
    "MagicForMaskedLM": Head("AutoModelForMaskedLM", "fill-mask", "A masked language model", "masked-LM head", "mlm"),
    "MagicForPreTraining": Head(
        "AutoModelForPreTraining", None, "A detector of replaced tokens (ELECTRA)", "replaced-token head", "rtd"
    ),
    "MagicForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "text-classification", "A text classifier", "classifier"
    ),
    "MagicForTokenClassification": Head(
        "AutoModelForTokenClassification", "token-classification", "A token classifier", "token classifier"
    ),
    "MagicForQuestionAnswering": Head(
        "AutoModelForQuestionAnswering",
        "question-answering",
        "A model that answers questions with a span of text",
        "span head",
    ),
    "MagicForMultipleChoice": Head(
        "AutoModelForMultipleChoice", "multiple-choice", "A model that chooses among texts", "choice head"
    ),
}

_SENTENCE_TAGS = ["sentence-transformers", "feature-extraction", "sentence-similarity"]
_HASH = "sha256:"
# Characters that could end a title or a Python string, or begin HTML, a link or a formula.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029<>\"\\`\[\]$|]")

_SENTENCE = "This function returns the {} of the input."
_QUESTION = "What does it return?"


def card_length(config: MagicConfig) -> int:
    """Returns the sequence length at which a card counts FLOPs."""
    return min(128, config.max_sequence_length)


# ---- The model card ----

EMBEDDING_USAGE = Template("""\
```python
from sentence_transformers import SentenceTransformer

model = "path/to/$model_name"
encoder = SentenceTransformer(model, trust_remote_code=True)
embeddings = encoder.encode(["A man is playing a guitar.", "Someone plays an instrument."])
print(encoder.similarity(embeddings, embeddings))
```
""")


def render_model_card(
    config: MagicConfig, manifest: dict[str, Any], name: str, mask_token: str | None, kind: str = "MagicForMaskedLM"
) -> str:
    """Returns the model card of a child: the template of hub_configs, filled in from its manifest.

    Args:
        config: the configuration of the child.
        manifest: the manifest, as in search.json.
        name: the name of the model.
        mask_token: the mask token of the tokenizer, for the examples of a masked LM.
        kind: the name of the model's class, a key of `HEADS`.
    """
    name = shown_name(name)
    head, call = HEADS[kind], example_call(kind, mask_token)
    imports = [head.auto_class, "AutoTokenizer", *(["pipeline"] if "pipeline(" in call else [])]
    return card_template().substitute(
        metadata=card_metadata(manifest, name, mask_token, kind).to_yaml(),
        kind=head.kind,
        auto_class=head.auto_class,
        imports=", ".join(imports),
        call=call,
        model_name=name,
        architecture=format_architecture(manifest["architecture"]),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=f"{config.vocab_size:,}",
        max_sequence_length=config.max_sequence_length,
        num_parameters=f"{manifest['num_parameters']:,}",
        flops=f"{manifest['flops']:.3g}",
        flops_of="the encoder alone" if head.flops == "none" else f"including the {head.name} at every position",
        sequence_length=card_length(config),
        made=_made(manifest),
        origin=_origin(manifest),
        training=_training(manifest),
        results=_results(manifest, kind),
        learned=_learned(manifest),
        embeddings=_embeddings(manifest, name),
    )


def _embeddings(manifest: dict[str, Any], name: str) -> str:
    """Returns how to get sentence embeddings, if the model makes them, and the introduction of what follows."""
    if manifest.get("sentence_embeddings") is None:
        return ""
    usage = EMBEDDING_USAGE.substitute(model_name=name)
    return f"For sentence embeddings, with sentence-transformers:\n\n{usage}\nFor the states of the tokens:\n\n"


def shown_name(name: str) -> str:
    """Returns a model's name for titles and examples, with "-" in place of characters that would break out of them."""
    return _UNSAFE.sub("-", name)


def example_call(kind: str, mask_token: str | None) -> str:
    """Returns the last lines of a class's usage example, which use the loaded `encoder` and `tokenizer`."""
    sentence = _quoted(_sentence(kind, mask_token))
    if kind == "MagicForPreTraining":
        return f'encoder(**tokenizer({sentence}, return_tensors="pt")).logits'
    if kind == "MagicForMultipleChoice":
        return (
            f'choices = tokenizer([{sentence}, {sentence.upper()}], return_tensors="pt", padding=True)\n'
            "encoder(**{name: values.unsqueeze(0) for name, values in choices.items()}).logits"
        )
    if kind == "MagicForQuestionAnswering":
        return (
            f'inputs = tokenizer("{_QUESTION}", {sentence}, return_tensors="pt")\n'
            "outputs = encoder(**inputs)\n"
            "tokenizer.decode(inputs.input_ids[0, outputs.start_logits.argmax() : outputs.end_logits.argmax() + 1])"
        )
    return f'pipeline("{HEADS[kind].task}", model=encoder, tokenizer=tokenizer)({sentence})'


def _quoted(text: str) -> str:
    """Returns a text as a Python string literal, as a mask token may contain quotes."""
    return json.dumps(text, ensure_ascii=False)


def _sentence(kind: str, mask_token: str | None) -> str:
    return _SENTENCE.format(mask_token if kind == "MagicForMaskedLM" and mask_token else "value")


def card_template() -> Template:
    """Returns the template that `render_model_card` fills."""
    return Template(files("hub_configs").joinpath("model_card.md").read_text(encoding="utf-8"))


def card_metadata(
    manifest: dict[str, Any], name: str, mask_token: str | None, kind: str = "MagicForMaskedLM"
) -> ModelCardData:
    """Returns the front matter of the card, all of it from the manifest. For the arguments see `render_model_card`."""
    head, corpus = HEADS[kind], corpus_of(manifest)
    evaluations = _evaluations(manifest, kind) + _task_evaluations(manifest, kind)
    sentences = manifest.get("sentence_embeddings") is not None
    example = {"text": _sentence(kind, mask_token)}
    fills_masks = kind == "MagicForMaskedLM" and mask_token is not None
    if kind == "MagicForQuestionAnswering":
        example = {"text": _QUESTION, "context": example["text"]}
    tags = ["magic", *([] if _converted_from(manifest) else ["neural-architecture-search"]), "encoder"]
    return ModelCardData(
        language=manifest.get("language") or ("en" if corpus.get("source_kind") == "docstrings" else None),
        license=manifest.get("license", "unknown"),
        library_name="sentence-transformers" if sentences else "transformers",
        pipeline_tag="sentence-similarity" if sentences else head.task,
        tags=[*tags, *(_SENTENCE_TAGS if sentences else [])],
        base_model=_base_model(manifest),
        datasets=[corpus["source"]] if corpus.get("source_kind") == "hub" else None,
        metrics=sorted({evaluation.metric_type for evaluation in evaluations} - {"loss"}) or None,
        mask_token=mask_token if fills_masks else None,
        widget=[example] if head.task and not sentences else None,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def corpus_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of the text that the weights were trained on, empty if there is none."""
    return ((manifest.get("training") or manifest.get("search") or {}).get("corpus")) or {}


def own_result(manifest: dict[str, Any], kind: str) -> dict[str, float]:
    """Returns the masked-LM loss and accuracy of exactly these weights on the held-out text, empty if unknown.

    A row of results may hold several seeds of one architecture. Only the seed of these weights is used.

    Args:
        manifest: the manifest, as in search.json.
        kind: the name of the model's class, a key of `HEADS`.
    """
    training, search = manifest.get("training"), manifest.get("search") or {}
    if kind != "MagicForMaskedLM" or not corpus_of(manifest):
        return {}
    if training is None:
        own = {"loss": search.get("val_loss"), "accuracy": search.get("val_accuracy")}
    else:
        rows = [row for row in manifest.get("results", []) if row["architecture"] == manifest["architecture"]]
        seeds = rows[0].get("seed", [training["seed"]]) if rows else []
        if training["seed"] not in seeds:
            return {}
        index = seeds.index(training["seed"])
        own = {"loss": rows[0]["val_loss"][index], "accuracy": rows[0]["val_accuracy"][index]}
    return {name: value for name, value in own.items() if value is not None}


def _evaluations(manifest: dict[str, Any], kind: str) -> list[EvalResult]:
    """Returns the results in the form of a card's model-index."""
    corpus = corpus_of(manifest)
    on_hub = corpus.get("source_kind") == "hub"
    names = {"loss": "masked-LM loss (nats per masked token)", "accuracy": "accuracy on masked tokens"}
    return [
        EvalResult(
            task_type="fill-mask",
            task_name="masked language modelling",
            # `datasets` calls text files "text". The name of a file must not point to someone else's data set.
            dataset_type=corpus["source"] if on_hub else "text",
            dataset_name=f"{corpus['source']}, documents held out from training",
            dataset_config=corpus.get("dataset_config"),
            dataset_split=corpus["split"] if on_hub else None,
            dataset_args={"sha256": corpus["sha256"]["validation"]},
            metric_type=metric,
            metric_name=names[metric],
            metric_value=round(value, 4),
        )
        for metric, value in own_result(manifest, kind).items()
    ]


def write_benchmark_results(manifest: dict[str, Any], kind: str, folder: Path) -> None:
    """Writes .eval_results/<data set>.yaml, the Hub's own format, which supports only data sets on the Hub."""
    corpus, own = corpus_of(manifest), own_result(manifest, kind)
    if "accuracy" not in own or corpus["source_kind"] != "hub":
        return
    entry = EvalResultEntry(
        dataset_id=corpus["source"],
        task_id=corpus.get("dataset_config") or "default",
        value=round(own["accuracy"], 4),
        notes=f"accuracy on masked tokens; documents held out from the {corpus['split']} split",
    )
    path = folder / ".eval_results" / f"{corpus['source'].rpartition('/')[2]}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def _converted_from(manifest: dict[str, Any]) -> str | None:
    """Returns the model that the layers were converted from, `None` if they were searched or given."""
    return None if manifest.get("search") else manifest.get("converted_from")


def _base_model(manifest: dict[str, Any]) -> str | None:
    """Returns the Hub name of the model that training began with, `None` for a folder, which is known by its hash."""
    base = (manifest.get("finetuning") or {}).get("start") or _converted_from(manifest)
    return None if base is None or base.startswith(_HASH) else base


def linked_name(model: str) -> str:
    """Returns a model's name for a card: a link to the Hub, or the hash that `public_name` gives for a folder."""
    if not model.startswith(_HASH):
        return f"[{model}](https://huggingface.co/{model})"
    return f"the model whose weights have the SHA-256 `{model.removeprefix(_HASH)}`"


def _made(manifest: dict[str, Any]) -> str:
    if source := _converted_from(manifest):
        return f"It was converted with magic-nas from\n{linked_name(source)}."
    return (
        "It was made with magic-nas, which searches the order of operators by weight\n"
        "sharing ([the paper](#citation))."
    )


def _origin(manifest: dict[str, Any]) -> str:
    search = manifest.get("search")
    if source := _converted_from(manifest):
        return (
            f"The layers are those of {linked_name(source)}: an attention layer and a feed-forward layer for each "
            f"block, with its weights. Before any further training, the outputs are the same."
        )
    if source := manifest.get("compressed_from"):
        budget = manifest.get("budget", "not recorded")
        return f"The layers were found by compressing {linked_name(source)}. Budget: {budget}."
    if search is None:
        return "The architecture was given, not found by a search."
    layers = search["candidate_operators"]
    facts = [
        ("text", (search.get("corpus") or {}).get("source")),
        ("sampler", search.get("sampler")),
        ("alignment", search.get("alignment")),
        ("optimizer steps of the super-net", f"{search['steps']:,}" if "steps" in search else None),
        ("seed", search.get("seed")),
        ("budget", search.get("budget")),
        ("searcher", search.get("searcher")),
        ("children evaluated", search.get("num_evaluations")),
        ("compared with random children", search.get("better_than_random")),
        ("validation loss with shared weights", f"{search['val_loss']:.3f}"),
    ]
    space = f"{counted(len(layers), 'layer')}, {counted_children(math.prod(map(len, layers)))}"
    # Facts that are not on record are omitted.
    return markdown_table(
        ("what", "value"), [("search space", space), *(fact for fact in facts if fact[1] is not None)]
    )


def _training(manifest: dict[str, Any]) -> str:
    training, finetuning = manifest.get("training"), manifest.get("finetuning")
    if finetuning is not None:
        versions = ", ".join(f"{name} {version}" for name, version in finetuning["versions"].items())
        facts = [(name.replace("_", " "), value) for name, value in finetuning.items() if name != "versions"]
        return markdown_table(("what", "value"), [*facts, ("versions", versions)])
    if training is None and _converted_from(manifest):
        return "The weights are those of the model that it was converted from, without further training."
    if training is None and "search" in manifest:
        return "The weights are those of the super-net, without further training after the search."
    if training is None:
        return "How the weights were trained is not recorded."
    corpus = training["corpus"]
    return markdown_table(
        ("what", "value"),
        [
            ("objective", training.get("objective", "not recorded")),
            ("text", corpus["source"]),
            ("sha256 of the text", f"`{corpus['sha256']['train'][:16]}`"),
            ("steps", f"{training['steps']:,}"),
            ("tokens in a step", f"{training['tokens_per_step']:,}"),
            ("start", training["start"]),
            ("seed", training["seed"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in training["versions"].items())),
        ],
    )


def _learned(manifest: dict[str, Any]) -> str:
    """Returns where the language, topics and biases of the weights come from, as far as it is known."""
    if corpus_of(manifest) and not manifest.get("finetuning"):
        return (
            "It has learned only from the text named above, and has taken on that text's kind of language,\n"
            "  topics and biases."
        )
    return "It has the kind of language, topics and biases of the text that its weights were trained on."


def _results(manifest: dict[str, Any], kind: str) -> str:
    results, scores = manifest.get("results", []), manifest.get("scores", [])
    if not results and not scores and (own := own_result(manifest, kind)):
        shown = [f"{name} {value:.4f}" for name, value in own.items()]
        return f"As a masked LM, on text held out from training: {', '.join(shown)}."
    columns = ("data", "split", "rows", "metric", "value")
    rows = [(*(score[name] for name in columns[:4]), f"{score['value']:.4f}") for score in scores]
    tables = [results_table(results)] if results or not rows else []
    return "\n\n".join([*tables, *([markdown_table(columns, rows)] if rows else [])])


def _task_evaluations(manifest: dict[str, Any], kind: str) -> list[EvalResult]:
    """Returns the scores of a fine-tuning in the form of a card's model-index."""
    return [
        EvalResult(
            task_type=HEADS[kind].task or "other",
            # As in `_evaluations`, the name does not refer to a data set on the Hub.
            dataset_type="text",
            dataset_name=score["data"],
            dataset_split=score["split"],
            metric_type=score["metric"],
            metric_value=round(score["value"], 4),
        )
        for score in manifest.get("scores", [])
    ]


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns measured results as a Markdown table with one row per model, or a sentence if there are none."""
    if not results:
        return "Nothing was measured."
    columns = ("model", "architecture", "parameters", "FLOPs", "steps", "validation loss", "validation accuracy")
    rows = [
        (
            row["name"],
            compact_architecture(row["architecture"]),
            f"{row['num_parameters'] / 1e6:.2f}M",
            f"{row['flops']:.2e}",
            f"{row['steps']:,}",
            spread(row["val_loss"], 3),
            f"{spread([100 * value for value in row['val_accuracy']], 1)}%",
        )
        for row in results
    ]
    return markdown_table(columns, rows)


def spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean over seeds, with half their range if there are several."""
    mean = f"{math.fsum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {(max(values) - min(values)) / 2:.{digits}f}"
