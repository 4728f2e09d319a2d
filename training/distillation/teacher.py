"""Teachers for distillation (5.4): loading, checks against the student, predictions, and their cache on disk."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_magic import MagicConfig

from ..bars import progress_bar
from ..data.fitting import knows_token_types, max_sequence_length, num_rows
from ..data.tokenizing import load_tokenizer
from ..files import make_output_folder, short_hash, write_json, written_at_once
from ..hub.model_folders import model_in
from ..pretrained import pretrained_model


HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
# The inputs of a batch that a teacher may read; it never sees labels.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Fields of a configuration about the location and use of the weights, which do not affect what they compute.
_NO_WEIGHTS = ("_name_or_path", "transformers_version", "architectures", "auto_map", "problem_type", "dtype")
_SPECIAL_TOKENS = ("pad_token", "mask_token", "cls_token", "sep_token", "unk_token")
# Tokenizers with the same vocabulary may still split text differently: case, accents, Chinese characters and spaces.
_PROBES = ("The Quick brown fox's naïve résumé cost 1,234.5 dollars!", "don't e-mail  FOO_bar@x.org", "中文 ЁЖИК ǅ ﬁ")
_SHARD_BYTES = 32 * 2**20
_CACHE_VERSION = 1

Inputs: TypeAlias = dict[str, Tensor]
# Arrays with one row per prediction for one sequence.
Record: TypeAlias = dict[str, np.ndarray]
S = TypeVar("S", bound=Any)


# ---- Loading ----


def load_teacher(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    auto_class: Any = AutoModelForMaskedLM,
) -> PreTrainedModel:
    """Returns a trained model of any class as a teacher: in evaluation mode, with frozen weights.

    Some models pad their vocabulary with embedding rows that belong to no token. A masked LM's rows of this kind are
    removed, so that it predicts the student's tokens.

    Args:
        name_or_path: a folder or a name on the Hub, with its tokenizer, or a run with one such model.
        tokenizer: the student's tokenizer, which must split text into the same tokens; `None` skips the check.
        auto_class: the Auto class of the head, such as `AutoModelForSequenceClassification`.

    Raises:
        ValueError: the model does not exist, its head is not trained, it is a super-net, or its tokenizer differs from
            the student's (see `check_tokenizers`).
    """
    name = model_in(name_or_path)
    if tokenizer is not None:
        check_tokenizers(load_tokenizer(name), tokenizer, name)
    model, info = pretrained_model(auto_class, name, "the teacher")
    if info["missing_keys"]:
        raise ValueError(
            f"the teacher {name!r} has no trained weights for {sorted(info['missing_keys'])[0]}; give a model that "
            f"was trained as {type(model).__name__}"
        )
    if isinstance(model.config, MagicConfig) and model.config.is_supernet:
        raise ValueError(f"the teacher {name!r} is a super-net; export one of its children and give that")
    is_masked_lm = type(model).__name__.endswith("ForMaskedLM")
    if tokenizer is not None and is_masked_lm and model.config.vocab_size > num_rows(tokenizer):
        model.resize_token_embeddings(num_rows(tokenizer))
    return model.eval().requires_grad_(False)


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, name: str) -> None:
    """Raises a ValueError with the first difference unless both split text into the same tokens with the same ids.

    Args:
        teacher: the teacher's tokenizer.
        student: the student's tokenizer.
        name: the name of the teacher, for the message.
    """
    remedy = f"use the teacher's tokenizer for the student ({name}), or another teacher"
    own, other = (tokenizer.get_vocab() for tokenizer in (student, teacher))
    if own != other:
        sizes = f"({len(other)} tokens) than the student's ({len(own)})"
        tokens = {token for vocab in (own, other) for token in vocab if own.get(token) != other.get(token)}
        first = min(tokens, key=lambda token: (min(own.get(token, 2**31), other.get(token, 2**31)), token))
        ids = [str(vocab.get(first, "no id")) for vocab in (other, own)]
        raise ValueError(
            f"the teacher {name!r} has a different vocabulary {sizes}: the first token that differs is {first!r}, "
            f"{ids[0]} in the teacher and {ids[1]} in the student; {remedy}"
        )
    for token in _SPECIAL_TOKENS:
        there, here = getattr(teacher, f"{token}_id"), getattr(student, f"{token}_id")
        if there != here:
            raise ValueError(
                f"the {token} of the teacher {name!r} has the id {there}, but the student's has {here}; {remedy}"
            )
    for probe in _PROBES:
        cuts = [tokenizer.tokenize(probe) for tokenizer in (teacher, student)]
        different = [pair for pair in zip_longest(*cuts) if pair[0] != pair[1]]
        if different:
            raise ValueError(
                f"the teacher {name!r} has the student's vocabulary but splits {probe!r} into other tokens: the first "
                f"is {different[0][0]!r} in the teacher and {different[0][1]!r} in the student; {remedy}"
            )


def head_of(model: nn.Module) -> str:
    """Returns which of HEADS a model of transformers or MAGIC has, judged by the name of its class.

    Raises:
        ValueError: the model has none of them.
    """
    name = type(model).__name__
    found = [head for head in HEADS if name.endswith(head)]
    if not found:
        raise ValueError(f"{name} cannot be distilled; use a class whose name ends in one of: {', '.join(HEADS)}")
    return found[0]


def check_teacher(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Raises a ValueError if the outputs of the two do not correspond.

    They must have the same head and fit according to `check_configs`. Whether vocabularies of the same size contain
    the same words can only be checked with the tokenizers (`check_tokenizers`).
    """
    heads = [head_of(model) for model in (teacher, student)]
    if heads[0] != heads[1]:
        raise ValueError(f"the teacher is a {type(teacher).__name__} but the student is a {type(student).__name__}")
    check_configs(teacher.config, student.config, heads[0])


def check_configs(there: PreTrainedConfig, here: PreTrainedConfig, head: str) -> None:
    """Raises a ValueError if a teacher and a student with the same head do not fit.

    They must have the same pad token and, except for masked LMs and spans, the same labels. A masked LM predicts its
    vocabulary, which must have the same size. Other teachers must know the student's tokens, and may have more rows.

    Args:
        there: the configuration of the teacher.
        here: the configuration of the student.
        head: one of HEADS.
    """
    for attribute, remedy in (
        ("vocab_size", "use a teacher with the student's tokenizer, or resize_token_embeddings"),
        ("pad_token_id", "use a teacher with the student's tokenizer"),
    ):
        own, other = getattr(here, attribute), getattr(there, attribute)
        has_more = attribute == "vocab_size" and head != "ForMaskedLM" and other > own
        if own != other and not has_more:
            raise ValueError(f"{attribute} is {other} in the teacher and {own} in the student; {remedy}")
    if head in ("ForSequenceClassification", "ForTokenClassification"):
        _check_labels(there, here)


def _check_labels(there: Any, here: Any) -> None:
    if there.num_labels != here.num_labels:
        raise ValueError(
            f"the teacher has {there.num_labels} labels but the student has {here.num_labels}; use a teacher that was "
            f"fine-tuned on the same task"
        )
    if there.problem_type and here.problem_type and there.problem_type != here.problem_type:
        raise ValueError(f"problem_type is {there.problem_type} in the teacher and {here.problem_type} in the student")
    names = [_label_names(config) for config in (there, here)]
    for index, (own, other) in enumerate(zip(*names, strict=True)):
        # If one of the two has only numbers for its labels, there is nothing to compare.
        if own != other and None not in (own, other):
            raise ValueError(
                f"label {index} is {own!r} in the teacher and {other!r} in the student; use a teacher with the same "
                f"labels in the same order"
            )


def _label_names(config: Any) -> list[str | None]:
    names = [config.id2label[index] for index in range(config.num_labels)]
    return [None if name == f"LABEL_{index}" else name for index, name in enumerate(names)]


def check_length(config: PreTrainedConfig, name: str, setting: str, length: int) -> None:
    """Raises a ValueError if a model accepts fewer tokens than needed.

    Args:
        config: the configuration of the model.
        name: the name of the model, for the message.
        setting: the name of the length, for the message.
        length: the length in tokens.
    """
    longest = max_sequence_length(config)
    if longest is not None and length > longest:
        raise ValueError(
            f"{setting} is {length} but {name} has {longest} positions; choose a smaller {setting} or another model"
        )


# ---- Predictions ----


def teacher_inputs(teacher: nn.Module, inputs: Mapping[str, Any]) -> Inputs:
    """Returns the inputs of a batch that the teacher reads: never labels, and token types only if it has several."""
    taken = set(inspect.signature(teacher.forward).parameters)
    if isinstance(teacher, PreTrainedModel) and not knows_token_types(teacher.config):
        taken.discard("token_type_ids")
    return {name: inputs[name] for name in _INPUTS if name in taken and inputs.get(name) is not None}


def masked_logits(encoder: nn.Module, model: nn.Module, inputs: Mapping[str, Tensor], masked: Tensor) -> Tensor:
    """Returns a masked LM's predictions at the masked positions, (number of them, vocab_size), in reading order.

    The head is run only on those positions, because a hook removes the others from the output of the encoder. If the
    encoder of a class is not its `base_model`, the head is run on all positions.

    Args:
        encoder: the `base_model` of the model.
        model: a masked LM whose head treats each position separately, or its wrapper for several processes.
        inputs: the inputs, without labels.
        masked: (batch, seq_len) bool.
    """
    cut = False

    def keep_masked(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal cut
        if "last_hidden_state" in output:
            output.last_hidden_state = output.last_hidden_state[masked].unsqueeze(0)
            cut = True
        return output

    hook = encoder.register_forward_hook(keep_masked)
    try:
        logits = model(**inputs, return_dict=True).logits
    finally:
        hook.remove()
    return logits.squeeze(0) if cut else logits[masked]


# ---- The cache ----


def weights_hash(model: PreTrainedModel) -> str:
    """Returns a hash of everything that a model's outputs depend on: its class, configuration and weights."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_WEIGHTS}
    digest = blake2b(digest_size=16)
    digest.update(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sequence_keys(inputs: Inputs, masked: Tensor | None = None) -> list[bytes]:
    """Returns a key for each sequence of a batch: a hash of all its inputs to the teacher except for padding.

    Two sequences have the same key if the teacher's predictions for them are the same: the same tokens, with the same
    ones masked, in any batch, epoch or run.

    Args:
        inputs: the inputs of the teacher, each (batch, seq_len).
        masked: (batch, seq_len) bool, the predicted positions; `None` for all.
    """
    ids = inputs["input_ids"]
    read = {"attention_mask": torch.ones_like(ids), **inputs} | ({} if masked is None else {"masked": masked})
    arrays = {name: read[name].to("cpu", torch.int32).numpy() for name in sorted(read)}
    keys = []
    for row, mask in enumerate(arrays["attention_mask"]):
        length = int(np.flatnonzero(mask).max(initial=-1)) + 1
        digest = blake2b(digest_size=16)
        for name, array in arrays.items():
            digest.update(f"{name} {length} ".encode())
            digest.update(array[row, :length].tobytes())
        keys.append(digest.digest())
    return keys


def split_record(record: Record, lengths: Tensor) -> list[Record]:
    """Returns the records of the sequences of a batch, given the number of rows of each."""
    bounds = np.cumsum(lengths.cpu().numpy())[:-1]
    names = list(record)
    parts = zip(*(np.split(array, bounds) for array in record.values()), strict=True)
    # Copies, because a view would keep the whole batch in memory.
    return [{name: array.copy() for name, array in zip(names, part, strict=True)} for part in parts]


def join_records(records: Iterable[Record]) -> Record:
    """Returns the records of several sequences as one, with their rows concatenated."""
    kept = list(records)
    return {name: np.concatenate([record[name] for record in kept]) for name in kept[0]}


class _Shard(NamedTuple):
    file: Any
    offsets: np.ndarray


class TeacherCache:
    """A teacher's outputs on disk, one record per sequence, found by `sequence_keys`.

    The cache has one folder for each teacher and its settings, so outputs of different teachers never mix. It contains
    files of about 32 MiB, each written atomically and named by the hash of its content. Records written before a run
    stopped can be used by the next run, and several processes may write at the same time. Records are read from disk
    one by one; only their keys and the unwritten records are in memory.

    Attributes:
        folder: the folder for these settings, inside the given folder.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        """Opens and checks the existing files.

        Args:
            folder: the folder of any number of caches; it is created if it does not exist.
            settings: JSON, everything that the records depend on besides the keys, including the teacher's
                `weights_hash`.

        Raises:
            ValueError: a file is damaged.
        """
        described = {"version": _CACHE_VERSION, **settings}
        self.folder = Path(folder).expanduser() / f"teacher-{short_hash(described)}"
        make_output_folder(self.folder)
        write_json(self.folder / "settings.json", described)
        self._shards: list[_Shard] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._unwritten: dict[bytes, Record] = {}
        self._unwritten_bytes = 0
        paths = sorted(self.folder.glob("*.safetensors"))
        for path in progress_bar(paths, desc="Checking the teacher's outputs", unit="file"):
            _check_content(path)
            self._open(path)

    def __len__(self) -> int:
        return len(self._places) + len(self._unwritten)

    def get(self, key: bytes) -> Record | None:
        """Returns the record of a sequence; `None` if there is none."""
        if key in self._unwritten:
            return self._unwritten[key]
        if key not in self._places:
            return None
        shard, row = self._places[key]
        file, offsets = self._shards[shard]
        start, end = offsets[row : row + 2]
        names = [name for name in file.keys() if name not in ("keys", "offsets")]
        if start == end:
            # safetensors rejects an empty slice at the end.
            return {name: file.get_tensor(name)[:0] for name in names}
        return {name: file.get_slice(name)[start:end] for name in names}

    def put(self, key: bytes, record: Record) -> None:
        """Adds a record; it is written to disk by `flush`, or when enough records have accumulated."""
        self._unwritten[key] = record
        self._unwritten_bytes += sum(array.nbytes for array in record.values())
        if self._unwritten_bytes >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the records that are not on disk yet."""
        if not self._unwritten:
            return
        records = list(self._unwritten.values())
        arrays = {name: np.concatenate([record[name] for record in records]) for name in records[0]}
        lengths = [len(next(iter(record.values()))) for record in records]
        arrays["offsets"] = np.cumsum([0, *lengths])
        arrays["keys"] = np.frombuffer(b"".join(self._unwritten), dtype=np.uint8).reshape(len(records), -1)
        content = save(arrays)
        path = self.folder / f"{blake2b(content, digest_size=16).hexdigest()}.safetensors"
        with written_at_once(path) as temporary:
            temporary.write_bytes(content)
        self._open(path)
        self._unwritten.clear()
        self._unwritten_bytes = 0

    def _open(self, path: Path) -> None:
        file = safe_open(path, framework="numpy")
        keys, index = file.get_tensor("keys").tobytes(), len(self._shards)
        self._shards.append(_Shard(file, file.get_tensor("offsets")))
        bounds = pairwise(range(0, len(keys) + 1, blake2b(digest_size=16).digest_size))
        self._places.update({keys[start:end]: (index, row) for row, (start, end) in enumerate(bounds)})


def _check_content(path: Path) -> None:
    digest = blake2b(digest_size=16)
    with path.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != path.stem:
        raise ValueError(
            f"{path} is damaged: its content has changed since it was written; delete it, and the teacher computes "
            f"its records again"
        )


# ---- Teachers of runs ----


def follow_teacher(settings: S) -> tuple[str, S]:
    """Returns the folder or name of a run's teacher, and settings in which its tokenizer splits the text.

    The teacher may be a run with one model. If the settings name a tokenizer, it is kept. If they name none, the
    teacher's is set, because one trained on the text would never be the teacher's.

    Args:
        settings: settings with the fields `teacher` and `data`.
    """
    source = model_in(settings.teacher)
    if settings.data.tokenizer is None:
        settings = replace(settings, data=replace(settings.data, tokenizer=source))
    return source, settings


def load_fitting_teacher(
    load: Callable[[str, PreTrainedTokenizerBase], PreTrainedModel], source: str, settings: Any
) -> PreTrainedModel:
    """Returns a run's teacher after all checks that do not need the text.

    Args:
        load: `load_teacher`, or the loader of another kind of teacher.
        source: the teacher, from `follow_teacher`.
        settings: the settings from `follow_teacher`, with the fields `teacher` and `data`.

    Raises:
        ValueError: its tokenizer differs from that of the text, or it accepts fewer tokens than a block has.
    """
    teacher = load(source, load_tokenizer(str(settings.data.tokenizer)))
    if settings.data.block_size is not None:
        check_length(teacher.config, f"the teacher {settings.teacher!r}", "block_size", settings.data.block_size)
    return teacher
