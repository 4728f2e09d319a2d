"""The export of a compressed model: a folder that is used like the checkpoint's."""

import copy
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCardData

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..hub.card import EMBEDDING_USAGE, HEADS, card_metadata, example_call, linked_name, shown_name
from ..hub.export import export_model
from ..hub.model_folders import card_facts, public_name
from ..hub.sentence_folders import (
    CROSS_ENCODER_FIELDS,
    cross_encoder_files,
    embedding_files,
    is_cross_encoder,
    json_of,
)
from ..space.search_space import format_architecture
from ..tables import markdown_table
from .source import (
    Source,
    read_tokenizer,
)


# Fields in which a child must equal the checkpoint to replace it.
_SAME_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "embedding_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_labels",
    "hidden_act",
    "layer_norm_eps",
    "padding_aware_positions",
)


def export_compressed(
    source: Source,
    model: MagicPreTrainedModel,
    output_dir: str | Path,
    manifest: dict[str, Any],
    *,
    budget: str,
    table: str,
) -> Path:
    """Writes a compressed model as a folder of the checkpoint's kind, and returns its path.

    The folder has the layout of `export_model`, with the checkpoint's tokenizer, labels, dropout and all other
    settings. For sentence embeddings and CrossEncoders it also has the files of sentence-transformers. It loads there
    with `trust_remote_code=True`, or without it if `modeling_magic` is imported.

    Args:
        source: the checkpoint that was compressed.
        model: a child with the checkpoint's class and sizes; it is not changed.
        output_dir: the folder to write; an older export there is replaced.
        manifest: further facts for search.json, such as the search and the training.
        budget: the limit of the search in words, such as "at most 0.40 of the checkpoint's latency".
        table: a Markdown table that compares the compressed model with the checkpoint, for the card and search.json.

    Raises:
        ValueError: the model is a super-net, its class or sizes differ from the checkpoint's, or `output_dir` holds
            something else.
    """
    _check_model(source, model)
    license_and_language = card_facts(str(source.folder))
    facts = {"compressed_from": _public_name(source), "kind": source.kind, "budget": budget, **license_and_language}
    name = shown_name(Path(output_dir).resolve().name)
    return export_model(
        _with_source_config(source, model),
        # Read anew, since calls leave their truncation and padding behind in a tokenizer.
        read_tokenizer(source.model_folder, source.name, source.model.config, source.kind),
        output_dir,
        {**facts, **manifest, "table": table},
        card=_render_card(source, model, name, license_and_language, budget, table),
        files=_sentence_files(source),
    )


def _check_model(source: Source, model: MagicPreTrainedModel) -> None:
    if model.config.is_supernet:
        raise ValueError("the model is a super-net; export one of its children: model.extract_child(architecture)")
    wanted, found = type(source.model).__name__, type(model).__name__
    if wanted != found:
        raise ValueError(
            f"the model is a {found} but the checkpoint is a {wanted}; pass a child of the checkpoint's class"
        )
    for field in _SAME_FIELDS:
        there, here = getattr(source.model.config, field), getattr(model.config, field)
        if there != here:
            raise ValueError(
                f"{field} is {here} in the model but {there} in the checkpoint; pass a child of the checkpoint's sizes"
            )


def _with_source_config(source: Source, model: MagicPreTrainedModel) -> MagicPreTrainedModel:
    """Returns the same tensors with the checkpoint's configuration; only the operators are the model's."""
    config: MagicConfig = source.model.config.child_config(model.config.chain)
    config.dtype = model.dtype
    values = json_of(source.model_folder / "config.json")
    for field in CROSS_ENCODER_FIELDS:
        if source.kind == "sequence" and field in values:
            setattr(config, field, values[field])
    published = copy.copy(model)
    published.config = config
    return published


def _hub_name(source: Source) -> str | None:
    """Returns the Hub name under which the checkpoint was given, `None` if it was given as a folder."""
    return None if Path(source.name).expanduser().is_dir() else source.name


def _public_name(source: Source) -> str:
    """Returns the checkpoint's name on the Hub, or a hash of its weights, so that no local path is published."""
    return _hub_name(source) or public_name(source.model_folder)


def _sentence_files(source: Source) -> dict[str, str]:
    """Returns the text of each file that sentence-transformers reads in addition to the model."""
    if source.pooling is not None:
        return embedding_files(source.folder, source.modules, source.model.config.hidden_size, source.max_length)
    if source.kind == "sequence" and is_cross_encoder(source.folder):
        return cross_encoder_files(source.folder)
    return {}


# ---- The card ----


_CARD = Template("""\
---
$metadata
---

# $model_name

$kind, compressed from $source with magic-nas: an encoder of $num_layers layers, hidden size $hidden_size. Its
operators were found by a search under a budget, initialized from that checkpoint and distilled from it. It takes the
same inputs as the checkpoint and uses the same tokenizer. Its outputs have the same shape and approximate the
checkpoint's.

## Checkpoint and budget

$origin

`search.json` beside the weights holds the same facts in machine-readable form, and those of the search.

## Compared with the checkpoint

$table

`found` is this model. A drop is the checkpoint without some of its blocks or layers. The child of `one width` has the
same attention and the same feed-forward operator in every block; a `random child` was drawn at random within the
budget. Unless a row says equal steps, these controls were trained with the compute of the found model and its search.
FLOPs and latency are relative to the checkpoint's. Latency is for batches padded to their longest sentence (padded) or
for real tokens only (unpadded). The loss (lower is better) and the score after it compare outputs with the
checkpoint's on held-out text.

## Architecture

![The operators from the bottom up](architecture.png)

From the bottom up, one operator per layer:

```
$architecture
```

`MHA12` is attention with 12 heads, `FFN` a feed-forward network of the checkpoint's inner size, $intermediate_size;
`x` and a number after a name give another inner size. Each operator ends in a residual sum and a layer norm, as in
BERT.

## How to load it

It loads with the code next to the weights (read that before you run it). `model` is the folder that holds this card,
or its name on the Hub:

$usage
If the package magic-nas is installed, `import modeling_magic` registers the model, and `trust_remote_code=True` can be
omitted.

## Limits

- It was trained to reproduce the checkpoint on the texts of the compression, and nothing beyond that: measure it
  on your own texts before you rely on it.
- It inherits all biases and faults of the checkpoint.
- Latencies hold for the machine, batch size and lengths with which they were measured.
""")
_HEAD_USAGE = Template("""\
```python
from transformers import $imports

model = "path/to/$model_name"
encoder = $auto_class.from_pretrained(model, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
$call
```
""")
_STATES_USAGE = Template("""\

With transformers alone, $what:

```python
import torch
from transformers import AutoModel, AutoTokenizer

model = "path/to/$model_name"
encoder = AutoModel.from_pretrained(model, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
sentences = ["A man is playing a guitar.", "Someone plays an instrument."]
inputs = tokenizer(sentences, padding=True, truncation=True, max_length=$max_length, return_tensors="pt")
with torch.no_grad():
    states = encoder(**inputs).last_hidden_state
$pooling
```
""")
_POOLING_LINES = {
    "mean": (
        'mask = inputs["attention_mask"].unsqueeze(-1)\nembeddings = (states * mask).sum(dim=1) / mask.sum(dim=1)'
    ),
    "cls": "embeddings = states[:, 0]",
}
_POOLING_WORDS = {"mean": "the mean of the tokens' states", "cls": "the first token's state"}


def _render_card(
    source: Source, model: MagicPreTrainedModel, name: str, facts: dict[str, Any], budget: str, table: str
) -> str:
    """Returns the model card: the checkpoint and the budget, the table, the operators and an example that runs."""
    config, before = model.config, source.model.config
    origin = [
        ("checkpoint", _public_name(source)),
        ("budget", budget),
        ("layers, one operator each", f"{config.num_hidden_layers}, the checkpoint {before.num_hidden_layers}"),
        ("parameters", f"{model.num_parameters():,}, the checkpoint {source.model.num_parameters():,}"),
        ("longest input", f"{source.max_length} tokens"),
    ]
    if source.pooling is not None:
        normed = ", scaled to length 1" if source.pooling.normalize else ""
        width = source.pooling.width(config.hidden_size)
        origin.append(("embedding", f"{width} numbers, {source.pooling.mode} of the last states{normed}"))
    kind = "An encoder for sentence embeddings" if source.pooling is not None else HEADS[type(model).__name__].kind
    return _CARD.substitute(
        metadata=_card_metadata(source, model, name, facts).to_yaml(),
        model_name=name,
        kind=kind,
        source=linked_name(_public_name(source)),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=before.intermediate_size,
        origin=markdown_table(("what", "value"), origin),
        table=table,
        architecture=format_architecture(config.chain),
        usage=_usage(source, model, name),
    )


def _card_metadata(source: Source, model: MagicPreTrainedModel, name: str, facts: dict[str, Any]) -> ModelCardData:
    data = card_metadata(facts, name, source.tokenizer.mask_token, type(model).__name__)
    data.base_model = _hub_name(source)
    if source.pooling is not None:
        # It is not known what the states of a bare encoder are used for.
        data.pipeline_tag = "feature-extraction" if source.modules is None else "sentence-similarity"
        data.library_name = "sentence-transformers"
        data.tags = [*(data.tags or []), "sentence-transformers", "feature-extraction", "sentence-similarity"]
        data.pop("widget", None)
    return data


def _usage(source: Source, model: MagicPreTrainedModel, name: str) -> str:
    """Returns the examples, each a block of Python with its introduction."""
    if source.pooling is None:
        kind = type(model).__name__
        call = example_call(kind, source.tokenizer.mask_token)
        imports = [HEADS[kind].auto_class, "AutoTokenizer", *(["pipeline"] if "pipeline(" in call else [])]
        return _HEAD_USAGE.substitute(
            model_name=name, auto_class=HEADS[kind].auto_class, imports=", ".join(imports), call=call
        )
    usage = EMBEDDING_USAGE.substitute(model_name=name)
    mode, normed = source.pooling.mode, source.pooling.normalize
    if mode in _POOLING_LINES:
        lines = _POOLING_LINES[mode]
        lines += "\nembeddings = torch.nn.functional.normalize(embeddings)" if normed else ""
        what = _POOLING_WORDS[mode] + (", scaled to length 1" if normed else "")
        usage += _STATES_USAGE.substitute(model_name=name, max_length=source.max_length, pooling=lines, what=what)
    return usage
