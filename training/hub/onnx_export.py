"""Export to ONNX, and quantisation to int8 (the extra `onnx`)."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from torch import Tensor

import modeling_magic
from modeling_magic import MagicConfig
from modeling_magic.modeling_magic import AUTO_MAP

from ..data.fitting import fit_tokenizer, knows_token_types
from ..files import make_output_folder, write_bytes, write_json, written_at_once
from ..pretrained import pretrained_config
from .export import CONFIG_CODE, MANIFEST_NAME
from .model_folders import tokenizer_of


INT8_NAME = "model_int8.onnx"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Linear layers and embedding tables. Convolutions have few weights, and are slower in int8 than in float32.
_QUANTISED = ["MatMul", "Gather"]


def check_packages(int8: bool = False) -> None:
    """Raises a ValueError if a package is missing for the export, or with `int8` for the quantisation."""
    _need("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))


def export_onnx(folder: str | Path, output_dir: str | Path) -> Path:
    """Writes the model of a folder as ONNX with dynamic batch size and length, and returns the file's path.

    Inputs are input_ids, attention_mask and, unless the model has only one token type, token_type_ids, each (batch,
    length), or (batch, choices, length) for multiple choice. The outputs have the names of the model's outputs, such
    as logits or last_hidden_state. The class is the one that the folder was saved from. Also written is what a program
    needs to run the model: config.json with the code that reads it, and the tokenizer if the folder has one.

    Args:
        folder: a model folder.
        output_dir: the folder to write, created if it does not exist.

    Raises:
        ValueError: the packages of the extra are missing, the model is a super-net, or `output_dir` holds a model.
    """
    check_packages()
    output_dir = Path(output_dir)
    if (output_dir / MANIFEST_NAME).is_file() or any(output_dir.glob("*.safetensors")):
        raise ValueError(f"{output_dir} holds a model, whose files ONNX would replace; use another folder")
    config = pretrained_config(folder)
    if config.is_supernet:
        raise ValueError(f"{folder} holds a super-net; export one of its children first: magic-nas export")
    kind = getattr(modeling_magic, (config.architectures or ["MagicModel"])[0])
    model = kind.from_pretrained(folder, attn_implementation="sdpa").eval()
    model.config.unpad_inputs = False
    make_output_folder(output_dir)
    path = output_dir / "model.onnx"
    with written_at_once(path) as temporary, _quiet():
        _trace(model, temporary)
    _write_beside(output_dir, config, folder)
    return path


def _write_beside(output_dir: Path, config: MagicConfig, folder: str | Path) -> None:
    """Writes the configuration, its code and the tokenizer."""
    write_bytes(output_dir / CONFIG_CODE, Path(modeling_magic.__file__).with_name(CONFIG_CODE).read_bytes())
    # The folder does not hold the code of a model.
    write_json(output_dir / "config.json", {**config.to_dict(), "auto_map": {"AutoConfig": AUTO_MAP["AutoConfig"]}})
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        return
    with TemporaryDirectory() as temporary:
        fit_tokenizer(tokenizer, config).save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            write_bytes(output_dir / file.name, file.read_bytes())


def quantize_onnx(path: str | Path, output: str | Path | None = None) -> Path:
    """Writes an ONNX model with linear layers and embedding tables in 8 bits, and returns the file's path.

    Activations are quantised at run time (ONNX Runtime's dynamic quantisation), so no data is needed. Weights of
    linear layers have a scale for each output channel and use seven of the eight bits: with all eight, sums overflow
    on x86 processors without VNNI, and the outputs would depend on the processor.

    Args:
        path: a file written by `export_onnx`.
        output: the file to write. Default: model_int8.onnx next to `path`.

    Raises:
        ValueError: the packages of the extra are missing, or there is no file at `path`.
    """
    _need("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    path = Path(path)
    output = path.with_name(INT8_NAME) if output is None else Path(output)
    _check_file(path)
    with written_at_once(output) as temporary, _quiet():
        # Both steps write additional files next to their input and output.
        folded = temporary.with_name("folded.onnx")
        # Folds constants: otherwise the table that a masked-LM head shares with the embeddings would be converted to
        # float32 and transposed in each call.
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantize_dynamic(
            folded,
            temporary,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    return output


class OnnxModel:
    """An ONNX file that is called like a torch model, with tensors by name as inputs and outputs, on the CPU.

    Attributes:
        path: the path of the file.
        num_threads: number of CPU threads per call.
    """

    def __init__(self, path: str | Path, num_threads: int = 1) -> None:
        """Loads the file.

        Args:
            path: a file written by `export_onnx` or `quantize_onnx`.
            num_threads: number of CPU threads per call.

        Raises:
            ValueError: ONNX Runtime is missing, `path` is not an ONNX file, or `num_threads` is below 1.
        """
        _need("onnxruntime")
        import onnxruntime

        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be at least 1")
        self.path, self.num_threads = Path(path), num_threads
        _check_file(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        # Threads that keep spinning after a call would take cores from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # ONNX Runtime's exceptions have no common base class.
            raise ValueError(f"{path} is not an ONNX file that can be run: {error}") from error
        self.input_names = tuple(one.name for one in self._session.get_inputs())
        self.output_names = tuple(one.name for one in self._session.get_outputs())

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Runs the model.

        Args:
            **inputs: input_ids, and attention_mask and token_type_ids of the same shape (see `export_onnx`), which
                default to all 1 and all 0. For a model with one token type, token_type_ids are accepted if all are 0.

        Returns:
            The outputs by name, such as last_hidden_state (batch, length, hidden), on the CPU.

        Raises:
            ValueError: input_ids are missing, or the model does not have an input of a given name.
        """
        types = inputs.get("token_type_ids")
        if types is not None and "token_type_ids" not in self.input_names and not types.any():
            del inputs["token_type_ids"]
        if unknown := inputs.keys() - set(self.input_names):
            raise ValueError(f"{self.path} takes {', '.join(self.input_names)}; got {', '.join(sorted(unknown))}")
        if "input_ids" not in inputs:
            raise ValueError(f"{self.path} needs input_ids; got {', '.join(inputs) or 'nothing'}")
        filled = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        given = {name: inputs.get(name) for name in self.input_names}
        arrays = {
            name: (filled[name](inputs["input_ids"]) if value is None else value).to("cpu", torch.long).numpy()
            for name, value in given.items()
        }
        outputs = self._session.run(None, arrays)
        return {name: torch.from_numpy(value) for name, value in zip(self.output_names, outputs, strict=True)}


def _trace(model: transformers.PreTrainedModel, path: Path) -> None:
    inputs = _INPUTS if knows_token_types(model.config) else _INPUTS[:2]
    has_choices = isinstance(model, modeling_magic.MagicForMultipleChoice)
    # All sizes are different: the exporter would treat equal ones as the same dimension.
    shape = (2, 3, 9) if has_choices else (2, 9)
    example = {name: torch.ones(shape, dtype=torch.long) for name in inputs}
    example["attention_mask"][1, ..., 5:] = 0
    if "token_type_ids" in example:
        # Every model knows type 0.
        example["token_type_ids"].zero_()
    names = ("batch", "choices") if has_choices else ("batch",)
    sizes = {place: torch.export.Dim(name) for place, name in enumerate(names)}
    sizes[len(names)] = torch.export.Dim("length", min=2, max=model.config.max_sequence_length)
    with torch.no_grad():
        output_names = list(model(**example).keys())
    torch.onnx.export(
        model,
        kwargs=example,
        f=path,
        dynamo=True,
        external_data=False,
        input_names=list(inputs),
        output_names=output_names,
        dynamic_shapes=dict.fromkeys(inputs, sizes),
        verbose=False,
    )


def _need(*packages: str) -> None:
    """Raises a ValueError that names the extra if one of the packages is missing."""
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{error}; install what the export needs: pip install 'magic-nas[onnx]'") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; write one with `magic-nas export FOLDER OUTPUT_DIR --onnx`")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings that the exporter and the quantiser give for every model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxruntime")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
