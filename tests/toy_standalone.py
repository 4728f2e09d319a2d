"""A table of four children on made-up text, trained in a second, for tests and the processes that they start."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from training.analysis.settings import StandaloneSettings
from training.data.settings import DataSettings


def toy_standalone(folder: Path, num_layers: int = 2) -> StandaloneSettings:
    """Writes a preset and a text into `folder` and returns settings that train all children of the preset on it."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0}
    config = {"model_type": "magic", "candidate_operators": [["FFN", "CONV3"]] * num_layers, "vocab_size": 80, **sizes}
    (folder / "toy.json").write_text(json.dumps(config))
    words = "model layer weight search child anchor token".split()
    documents = ["\n".join(f"the {words[(n + k) % 7]} of the {words[n * k % 7]}" for k in range(8)) for n in range(60)]
    (folder / "a.txt").write_text("\n\n".join(f"{number} {text}" for number, text in enumerate(documents)))
    return StandaloneSettings(
        preset=str(folder / "toy.json"),
        num_validation_sequences=8,
        data=DataSettings(source=str(folder / "a.txt"), vocab_size=80, block_size=16, validation_fraction=0.2),
        training_arguments={"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    )


def trained_with(settings: StandaloneSettings, **arguments) -> StandaloneSettings:
    """Returns the settings with other training arguments."""
    return replace(settings, training_arguments={**settings.training_arguments, **arguments})


if __name__ == "__main__":
    import torch

    from training.analysis.standalone import train_standalone

    torch.set_num_threads(1)
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    longer = trained_with(toy_standalone(source), max_steps=int(sys.argv[3]), use_cpu=True)
    train_standalone(longer, output, progress=False)
