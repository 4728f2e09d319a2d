"""Export to ONNX (the extra `onnx`)."""

from pathlib import Path

import torch
import transformers

import modeling_magic

from ..files import write_json, written_at_once


def export_onnx(folder: str | Path, output_dir: str | Path) -> Path:
    """Writes the model of a folder as ONNX, batch and length free, and returns the file's path.

    Inputs are input_ids, attention_mask and token_type_ids, each (batch, length); the outputs are named as those of
    the model, such as logits or last_hidden_state. The class is the one that the folder was saved from.

    Args:
        folder: a model folder.
        output_dir: where to write model.onnx and config.json; it is made where it is not there.

    Raises:
        ValueError: the packages of the extra are missing, or the model is a super-net.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}; install what the export needs: pip install 'magic-nas[onnx]'") from None
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.is_supernet:
        raise ValueError(f"{folder} holds a super-net; export one of its children first: magic-nas export")
    kind = getattr(modeling_magic, (config.architectures or ["MagicModel"])[0])
    model = kind.from_pretrained(folder, attn_implementation="sdpa").eval()
    model.config.unpad_inputs = False
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "model.onnx"
    with written_at_once(path) as temporary:
        _trace(model, temporary)
    write_json(output_dir / "config.json", config.to_dict())
    return path


def _trace(model: transformers.PreTrainedModel, path: Path) -> None:
    # Sizes that occur once only: the exporter would take equal ones for one size.
    names = ("input_ids", "attention_mask", "token_type_ids")
    example = {name: torch.ones(2, 9, dtype=torch.long) for name in names}
    example["attention_mask"][1, 5:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=model.config.max_sequence_length)}
    with torch.no_grad():
        output_names = list(model(**example).keys())
    torch.onnx.export(
        model,
        kwargs=example,
        f=path,
        dynamo=True,
        external_data=False,
        input_names=list(names),
        output_names=output_names,
        dynamic_shapes=dict.fromkeys(names, sizes),
        verbose=False,
    )
