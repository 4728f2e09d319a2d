"""A teacher for distillation (5.4): loading, what must be as in the student, its predictions, their cache on disk."""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig

from ..bars import progress_bar
from ..data.fitting import knows_token_types, max_sequence_length, num_rows
from ..data.tokenizing import load_tokenizer
from ..files import short_hash, write_json, written_at_once
from ..runs.folders import MODEL_FOLDER


HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
# What a batch may hold that a teacher reads; labels it never sees.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What a configuration says of the place and the use of the weights, and not of what they compute.
_NO_WEIGHTS = ("_name_or_path", "transformers_version", "architectures", "auto_map", "problem_type", "dtype")
_SPECIAL_TOKENS = ("pad_token", "mask_token", "cls_token", "sep_token", "unk_token")
# Tokenizers of one vocabulary may still cut text differently: by case, accents, Chinese characters and spaces.
_PROBES = ("The Quick brown fox's naïve résumé cost 1,234.5 dollars!", "don't e-mail  FOO_bar@x.org", "中文 ЁЖИК ǅ ﬁ")
_SHARD_BYTES = 32 * 2**20
_CACHE_VERSION = 1

Inputs: TypeAlias = dict[str, Tensor]
# Arrays with one row for each prediction of one sequence.
Record: TypeAlias = dict[str, np.ndarray]
S = TypeVar("S", bound=Any)


# ---- Loading ----


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from reporting weights that are missing or left over: what matters is an error here."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def load_teacher(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    auto_class: Any = AutoModelForMaskedLM,
) -> PreTrainedModel:
    """Returns a trained model of any class, ready to be a teacher: in evaluation mode, its weights frozen.

    Rows of a masked LM's embeddings that stand for no token, with which some models fill up their vocabulary, are cut
    off, so that it predicts the student's tokens.

    Args:
        name_or_path: a folder or a name on the Hub, with its tokenizer.
        tokenizer: the student's, which must cut text into the same tokens; `None` checks nothing.
        auto_class: of the head, such as `AutoModelForSequenceClassification`.

    Raises:
        ValueError: there is no such model, its head was never trained, it is a super-net, or its tokenizer differs
            from the student's (see `check_tokenizers`).
    """
    name = str(name_or_path)
    if tokenizer is not None:
        check_tokenizers(load_tokenizer(name), tokenizer, name)
    try:
        with quiet_loading():
            model, info = auto_class.from_pretrained(name, output_loading_info=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the teacher {name!r} cannot be loaded: {error}") from None
    if info["missing_keys"]:
        raise ValueError(
            f"the teacher {name!r} has no trained weights for {sorted(info['missing_keys'])[0]}; name a model that "
            f"was trained as {type(model).__name__}"
        )
    if isinstance(model.config, MagicConfig) and model.config.is_supernet:
        raise ValueError(f"the teacher {name!r} is a super-net; export one of its children and name that")
    is_masked_lm = type(model).__name__.endswith("ForMaskedLM")
    if tokenizer is not None and is_masked_lm and model.config.vocab_size > num_rows(tokenizer):
        model.resize_token_embeddings(num_rows(tokenizer))
    return model.eval().requires_grad_(False)


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, name: str) -> None:
    """Raises a ValueError, with the first difference, unless both cut text into the same tokens with the same ids.

    Args:
        teacher: the teacher's tokenizer.
        student: the student's.
        name: the teacher's, for the message.
    """
    remedy = f"take the teacher's tokenizer for the student ({name}), or another teacher"
    own, other = (tokenizer.get_vocab() for tokenizer in (student, teacher))
    if own != other:
        sizes = f"({len(other)} tokens) than the student's ({len(own)})"
        tokens = {token for vocab in (own, other) for token in vocab if own.get(token) != other.get(token)}
        first = min(tokens, key=lambda token: (min(own.get(token, 2**31), other.get(token, 2**31)), token))
        ids = [str(vocab.get(first, "no id")) for vocab in (other, own)]
        raise ValueError(
            f"the teacher {name!r} has another vocabulary {sizes}: the first token that differs is {first!r}, "
            f"{ids[0]} there and {ids[1]} here; {remedy}"
        )
    for token in _SPECIAL_TOKENS:
        there, here = getattr(teacher, f"{token}_id"), getattr(student, f"{token}_id")
        if there != here:
            raise ValueError(f"the {token} of the teacher {name!r} has the id {there}, the student's {here}; {remedy}")
    for probe in _PROBES:
        cuts = [tokenizer.tokenize(probe) for tokenizer in (teacher, student)]
        different = [pair for pair in zip_longest(*cuts) if pair[0] != pair[1]]
        if different:
            raise ValueError(
                f"the teacher {name!r} has the student's vocabulary but cuts {probe!r} into other tokens: the first "
                f"is {different[0][0]!r} there and {different[0][1]!r} here; {remedy}"
            )


def head_of(model: nn.Module) -> str:
    """Returns which of HEADS a model of transformers or MAGIC has, by the name of its class.

    Raises:
        ValueError: it is none of them.
    """
    name = type(model).__name__
    found = [head for head in HEADS if name.endswith(head)]
    if not found:
        raise ValueError(f"{name} cannot be distilled; take a class that ends in one of: {', '.join(HEADS)}")
    return found[0]


def check_teacher(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Raises a ValueError where the outputs of the two do not speak of the same things.

    They must have the same head and fit as `check_configs` says. Whether the words behind fitting sizes are the same
    only their tokenizers can tell (`check_tokenizers`).
    """
    heads = [head_of(model) for model in (teacher, student)]
    if heads[0] != heads[1]:
        raise ValueError(f"the teacher is a {type(teacher).__name__}, the student a {type(student).__name__}")
    check_configs(teacher.config, student.config, heads[0])


def check_configs(there: PreTrainedConfig, here: PreTrainedConfig, head: str) -> None:
    """Raises a ValueError where a teacher and a student with the same head do not fit.

    They must have the same pad token and, but for masked LMs and spans, the same labels. A masked LM predicts its
    vocabulary, which must be as large; another teacher must know the student's tokens, and may have more rows.

    Args:
        there: the teacher's.
        here: the student's.
        head: of HEADS.
    """
    for attribute, remedy in (
        ("vocab_size", "take a teacher of the student's tokenizer, or resize_token_embeddings"),
        ("pad_token_id", "take a teacher of the student's tokenizer"),
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
            f"the teacher has {there.num_labels} labels, the student {here.num_labels}; take a teacher that was "
            f"fine-tuned on the same task"
        )
    if there.problem_type and here.problem_type and there.problem_type != here.problem_type:
        raise ValueError(f"problem_type is {there.problem_type} in the teacher and {here.problem_type} in the student")
    names = [_label_names(config) for config in (there, here)]
    for index, (own, other) in enumerate(zip(*names, strict=True)):
        # Where one of the two has only numbers for its labels, there is nothing to compare.
        if own != other and None not in (own, other):
            raise ValueError(
                f"label {index} is {own!r} in the teacher and {other!r} in the student; take a teacher with the same "
                f"labels in the same order"
            )


def _label_names(config: Any) -> list[str | None]:
    names = [config.id2label[index] for index in range(config.num_labels)]
    return [None if name == f"LABEL_{index}" else name for index, name in enumerate(names)]


def check_length(config: PreTrainedConfig, name: str, setting: str, length: int) -> None:
    """Raises a ValueError where a model takes fewer tokens than it is to be given.

    Args:
        config: the model's.
        name: the model, for the message.
        setting: what the length is called.
        length: in tokens.
    """
    longest = max_sequence_length(config)
    if longest is not None and length > longest:
        raise ValueError(
            f"{setting} is {length} but {name} has {longest} positions; take a smaller {setting} or another model"
        )


# ---- Predictions ----


def teacher_inputs(teacher: nn.Module, inputs: Mapping[str, Any]) -> Inputs:
    """Returns what of a batch the teacher reads: never the labels, token types only where it knows several."""
    taken = set(inspect.signature(teacher.forward).parameters)
    if isinstance(teacher, PreTrainedModel) and not knows_token_types(teacher.config):
        taken.discard("token_type_ids")
    return {name: inputs[name] for name in _INPUTS if name in taken and inputs.get(name) is not None}


def masked_logits(encoder: nn.Module, model: nn.Module, inputs: Mapping[str, Tensor], masked: Tensor) -> Tensor:
    """Returns a masked LM's predictions at the masked positions, (number of them, vocab_size), in reading order.

    The head is run on those positions alone: what the encoder hands to it holds no others. Where a class keeps its
    encoder elsewhere than in `base_model`, the head is run on all positions.

    Args:
        encoder: the `base_model` of the model.
        model: a masked LM whose head looks at each position on its own, or what wraps it for several processes.
        inputs: without labels.
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
    """Returns a hash of all that a model's outputs depend on: its class, its configuration and its weights."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_WEIGHTS}
    digest = blake2b(digest_size=16)
    digest.update(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sequence_keys(inputs: Inputs, masked: Tensor | None = None) -> list[bytes]:
    """Returns a key for each sequence of a batch: a hash of all that the teacher reads of it, but for the padding.

    Two sequences have one key where the teacher says the same of them: the same tokens with the same ones masked, in
    whatever batch, epoch or run.

    Args:
        inputs: what the teacher reads, (batch, seq_len) each.
        masked: (batch, seq_len) bool, the positions it predicts; `None` for all.
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
    """Returns the records of the sequences of a batch, of which each has so many rows."""
    bounds = np.cumsum(lengths.cpu().numpy())[:-1]
    names = list(record)
    parts = zip(*(np.split(array, bounds) for array in record.values()), strict=True)
    # Copies: a view would keep the whole batch in memory.
    return [{name: array.copy() for name, array in zip(names, part, strict=True)} for part in parts]


def join_records(records: Iterable[Record]) -> Record:
    """Returns the records of several sequences as one, their rows end to end."""
    kept = list(records)
    return {name: np.concatenate([record[name] for record in kept]) for name in kept[0]}


class _Shard(NamedTuple):
    file: Any
    offsets: np.ndarray


class TeacherCache:
    """A teacher's outputs on disk, one record a sequence, found by `sequence_keys`.

    The folder holds one folder for each teacher and its settings, so that outputs of different teachers never mix; in
    it files of some 32 MiB, each written under another name and renamed, named by the hash of its content. What was
    written when a run is stopped serves the next one; several processes may write at once. Records are read from disk
    one by one: in memory are their keys alone, and those not yet written.

    Attributes:
        folder: of these settings, in the folder given.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        """Opens what there is and checks it.

        Args:
            folder: of any number of caches; created where it is not there.
            settings: JSON, all that the records depend on beside the keys, the teacher's `weights_hash` among them.

        Raises:
            ValueError: a file is damaged.
        """
        described = {"version": _CACHE_VERSION, **settings}
        self.folder = Path(folder).expanduser() / f"teacher-{short_hash(described)}"
        self.folder.mkdir(parents=True, exist_ok=True)
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
        """Returns the record of a sequence, `None` where there is none."""
        if key in self._unwritten:
            return self._unwritten[key]
        if key not in self._places:
            return None
        shard, row = self._places[key]
        file, offsets = self._shards[shard]
        start, end = offsets[row : row + 2]
        names = [name for name in file.keys() if name not in ("keys", "offsets")]
        if start == end:
            # safetensors refuses an empty slice at the end.
            return {name: file.get_tensor(name)[:0] for name in names}
        return {name: file.get_slice(name)[start:end] for name in names}

    def put(self, key: bytes, record: Record) -> None:
        """Keeps a record, which is on disk after `flush` or when enough of them have come together."""
        self._unwritten[key] = record
        self._unwritten_bytes += sum(array.nbytes for array in record.values())
        if self._unwritten_bytes >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is not on disk yet."""
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
            f"{path} is damaged: its content is not what was written; delete it, the teacher computes again what it "
            f"held"
        )


# ---- Teachers of runs ----


def follow_teacher(settings: S) -> tuple[str, S]:
    """Returns the folder or name of a run's teacher, and settings whose text is cut by the teacher's tokenizer.

    The teacher may be a finished retrain run. A tokenizer that the settings name stays: one trained on the text would
    never be the teacher's.

    Args:
        settings: with the fields `teacher` and `data`.
    """
    inside = Path(settings.teacher) / MODEL_FOLDER
    source = str(inside) if (inside / "config.json").is_file() else settings.teacher
    if settings.data.tokenizer is None:
        settings = replace(settings, data=replace(settings.data, tokenizer=source))
    return source, settings


def load_fitting_teacher(
    load: Callable[[str, PreTrainedTokenizerBase], PreTrainedModel], source: str, settings: Any
) -> PreTrainedModel:
    """Returns a run's teacher once all that can be checked without the text has been.

    Args:
        load: `load_teacher` or what loads another kind of it.
        source: as `follow_teacher` returns it, as the settings.
        settings: with the fields `teacher` and `data`.

    Raises:
        ValueError: its tokenizer is another than that of the text, or it takes fewer tokens than a block has.
    """
    teacher = load(source, load_tokenizer(str(settings.data.tokenizer)))
    if settings.data.block_size is not None:
        check_length(teacher.config, f"the teacher {settings.teacher!r}", "block_size", settings.data.block_size)
    return teacher
