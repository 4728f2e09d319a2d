"""A model folder to verify, with each part read once, and the result of a check.

The files may contain anything: a part that cannot be read is a finding, not an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import modeling_magic
from modeling_magic import MagicConfig

from ..pretrained import pretrained_config
from .card import CARD_NAME, HEADS
from .contents import CONFIG_NAME, MANIFEST_NAME, files_in, recorded_hashes
from .presets import load_preset
from .publish import check_weights
from .sentence_folders import json_of


OK, DIFFERS, NOT_CHECKED, NOT_RECORDED = "ok", "differs", "not checked", "not recorded"
# For a score that the user asked to measure again.
NOT_MEASURED = "not measured"
# What reading a record may raise if it is not in the form that this package writes.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# Names in the folder of a super-net's run.
SUPERNET_NAME, RESULT_NAME = "supernet", "result.json"
NO_JSON = "damaged: it is not a JSON mapping"

# Files that can run code: pickles, among them torch's, and code itself.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".bin", ".pt", ".pth", ".ckpt")
CODE_SUFFIXES = (".py", ".so", ".pyd", ".dll", ".dylib")
EXECUTED_SUFFIXES = (*PICKLE_SUFFIXES, *CODE_SUFFIXES)

_LONGEST_CELL = 100


# ---- Checks ----


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: the name of what was checked.
        recorded: the recorded value.
        found: the value found in the folder.
        verdict: "ok", "differs", "not checked", "not recorded" or "not measured".
        note: the reason or further facts, may be empty.
    """

    what: str
    recorded: str
    found: str
    verdict: str
    note: str = ""


def check(what: str, recorded: Any, found: Any, verdict: str, note: str = "") -> Check:
    """Returns a check with its values prepared for a table: on one line, without control characters, not too long.

    Args:
        what: the name of what was checked.
        recorded: the recorded value, `None` if there is none.
        found: the value found in the folder, `None` if there is none.
        verdict: the verdict, see `Check`.
        note: the note, see `Check`.
    """
    shown = ["-" if value is None else _shown(value) for value in (recorded, found)]
    return Check(_line(what), shown[0], shown[1], verdict, _line(note))


def compare(what: str, recorded: Any, found: Any, note: str = "") -> Check:
    """Returns the check that a value is as recorded.

    Args:
        what: the name of what is checked.
        recorded: the recorded value, `None` if there is none.
        found: the value found in the folder, `None` if there is none.
        note: the note if they differ.
    """
    if recorded is None:
        return check(what, recorded, found, NOT_RECORDED)
    if found is None:
        return check(what, recorded, found, NOT_CHECKED, "it cannot be determined")
    return check(what, recorded, found, OK) if recorded == found else check(what, recorded, found, DIFFERS, note)


def _line(value: Any) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(value).split()))


def _shown(value: Any) -> str:
    text = _line(f"{value:,}" if type(value) is int else value)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 3]}..."


# ---- The folder ----


class VerifiedFolder:
    """The contents of a model folder.

    Attributes:
        folder: the path of the folder.
        files: the files by their paths in the folder, without hidden ones.
        faults: by name, what is wrong with a file that could not be read.
        values: the values in config.json.
        record: the values in search.json. For a super-net in a run, the result of the run is added.
        config: the configuration, `None` if it cannot be read or is not that of a MAGIC model.
    """

    def __init__(self, folder: Path) -> None:
        """Reads everything except the card and the weights."""
        self.folder, self.faults = folder, dict[str, str]()
        self.files = {name: path for name, path in files_in(folder).items() if not _is_litter(name)}
        self.values, self.record = self._read(CONFIG_NAME), self._read(MANIFEST_NAME)
        self.config = self._read_config()
        if self.is_supernet and folder.name == SUPERNET_NAME and (folder.parent / RESULT_NAME).is_file():
            self.record = {"search": json_of(folder.parent / RESULT_NAME), **self.record}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json_of(self.folder / name)
        except ValueError:
            self.faults[name] = NO_JSON
            return {}

    def _read_config(self) -> MagicConfig | None:
        if not self.is_magic:
            return None
        try:
            return load_preset(self.folder)
        except UNREADABLE as error:
            self.faults[CONFIG_NAME] = str(error)
            return None

    @property
    def is_magic(self) -> bool:
        """Whether config.json says that it is a MAGIC model."""
        return self.values.get("model_type") == MagicConfig.model_type

    @property
    def is_supernet(self) -> bool:
        """Whether any layer offers a choice of operators."""
        return self.config is not None and self.config.is_supernet

    @property
    def child(self) -> MagicConfig | None:
        """The configuration if it is one that an export can have, otherwise `None`."""
        return None if self.is_supernet or self.class_name not in HEADS else self.config

    @property
    def class_name(self) -> str:
        """The class that config.json names, empty if it names none."""
        names = self.values.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    @property
    def has_weights(self) -> bool:
        """Whether there are safetensors files."""
        return SAFE_WEIGHTS_NAME in self.files or SAFE_WEIGHTS_INDEX_NAME in self.files

    @property
    def is_onnx(self) -> bool:
        """Whether it holds only a model for ONNX Runtime."""
        return not self.has_weights and any(name.endswith(".onnx") for name in self.files)

    @property
    def is_recorded(self) -> bool:
        """Whether search.json has hashes of the other files."""
        return bool(recorded_hashes(self.record))

    @cached_property
    def card(self) -> str | None:
        """The text of the card, `None` if there is none or it is not text."""
        if CARD_NAME not in self.files:
            return None
        try:
            return self.files[CARD_NAME].read_text(encoding="utf-8")
        except ValueError:
            self.faults[CARD_NAME] = "damaged: it is not UTF-8"
            return None

    # ---- Weights ----

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shape of every tensor, from the headers of the weight files, `None` if they cannot be read."""
        try:
            return check_weights(self.folder)
        except UNREADABLE as error:
            self.faults[SAFE_WEIGHTS_NAME] = str(error).partition(";")[0]
            return None

    @cached_property
    def model(self) -> PreTrainedModel | None:
        """The model that config.json describes, on the meta device, `None` if it describes none."""
        try:
            kind = getattr(modeling_magic if self.is_magic else transformers, self.class_name)
            config: Any = self.config
            if not self.is_magic:
                config = pretrained_config(self.folder, local_files_only=True)
                # A configuration with absurdly many layers would fill the memory; MAGIC's own has a bound.
                if getattr(config, "num_hidden_layers", 0) > len(self.shapes or ()):
                    return None
            with torch.device("meta"):
                return kind(config) if config is not None and issubclass(kind, PreTrainedModel) else None
        # transformers raises exceptions without a common base class for an invalid configuration.
        except Exception:
            return None

    @property
    def tied(self) -> dict[str, str]:
        """The tied tensors of the model: the name of each with that of the tensor that it is tied to."""
        return dict((self.model.all_tied_weights_keys if self.model is not None else None) or {})

    @cached_property
    def num_parameters(self) -> int | None:
        """The number of parameters by the headers, tied tensors once and no buffers, `None` if they cannot be read."""
        if self.shapes is None:
            return None
        buffers = set[str]() if self.model is None else {name for name, _ in self.model.named_buffers()}
        twice = {name for name, other in self.tied.items() if other in self.shapes}
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name not in buffers | twice)

    def misfits(self) -> Sequence[str]:
        """Returns the names of tensors that only the model or only the files have, or whose shapes differ."""
        assert self.model is not None
        assert self.shapes is not None
        wanted = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        tied = {name for pair in self.tied.items() for name in pair}
        lacking = wanted.keys() - self.shapes.keys() - tied
        return sorted(lacking | {name for name, shape in self.shapes.items() if wanted.get(name) != shape})


def _is_litter(name: str) -> bool:
    parts = name.split("/")
    if "__pycache__" in parts:
        return True
    # A hidden file is litter unless it could be weights or code.
    hidden = any(part.startswith(".") for part in parts) and parts[0] != ".eval_results"
    return hidden and not name.endswith(EXECUTED_SUFFIXES)
