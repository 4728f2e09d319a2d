"""A compression that takes seconds: toys of each kind with text, and processes that are killed in the middle."""

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from toy_sources import save_checkpoint, save_sentence_checkpoint
from transformers import AutoTokenizer

from training.compression import compress_run, judging, workbench
from training.compression.sentences import read_sentences
from training.compression.settings import CompressSettings
from training.compression.source import load_source
from training.compression.workbench import Workbench, new_accelerator


# One class for each kind of checkpoint.
CLASSES = {
    "sentence": "BertModel",
    "masked_lm": "BertForMaskedLM",
    "sequence": "RobertaForSequenceClassification",
    "token": "ElectraForTokenClassification",
    "span": "BertForQuestionAnswering",
}
SHORT: dict[str, Any] = {
    "supernet_steps": 6,
    "steps": 5,
    "calibration_steps": 2,
    "num_evaluations": 6,
    "batch_size": 16,
    "latency_length": 12,
    "latency_batch_size": 4,
    "num_validation_sentences": 40,
    "num_search_sentences": 20,
    "precision": "no",
}


def save_source(folder: Path, class_name: str = "BertModel", **changes: Any) -> Path:
    """Saves a checkpoint, a bare encoder as one of sentence-transformers; returns its folder."""
    if class_name.endswith("Model"):
        return save_sentence_checkpoint(folder, class_name)
    return save_checkpoint(folder, class_name, **changes)


def write_sentences(path: Path, source: Path, number: int = 240) -> Path:
    """Writes different sentences of three to nine words that a checkpoint's tokenizer knows."""
    words = sorted(filter(str.isalpha, AutoTokenizer.from_pretrained(source).get_vocab()))
    rng = random.Random(0)
    drawn = (" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(2 * number))
    path.write_text("\n".join(list(dict.fromkeys(drawn))[:number]))
    return path


def toy_settings(folder: Path, class_name: str = "BertModel", **changes: Any) -> CompressSettings:
    """Settings of a compression by FLOPs of a toy, whose files are written into a folder if they are not there."""
    source, text = folder / "source", folder / "text.txt"
    if not source.is_dir():
        save_source(source, class_name)
        write_sentences(text, source)
    values = {"checkpoint": str(source), "text": (str(text),), "max_flops": ("0.6x",), **SHORT, **changes}
    return CompressSettings(**values)


def toy_bench(folder: Path, class_name: str = "BertModel", **changes: Any) -> Workbench:
    """The workbench of such a compression, in float32 unless the settings say something else."""
    settings = toy_settings(folder, class_name, **changes)
    source = load_source(settings.checkpoint, settings.kind)
    sentences = read_sentences(
        settings.text, source.tokenizer, source.max_length, settings.num_sentences, settings.num_validation_sentences
    )
    run = folder / "run"
    run.mkdir(exist_ok=True)
    return Workbench(settings, source, sentences, run, new_accelerator(settings.precision))


# ---- Processes that are killed ----


class Kill(BaseException):
    """What a kill is in the test's own process."""


def at_call(number: int, function: Callable[..., Any], stop: Callable[[], None], after: bool = False) -> Any:
    """A function that stops the process at its n-th call, before the work or after it."""
    calls = 0

    def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            stop()
        result = function(*args, **kwargs)
        if calls == number:
            stop()
        return result

    return stopping


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], Any]) -> int:
    """Does work in a fork of this process, which has computed nothing yet; returns the signal that ended it."""
    if not (child := os.fork()):
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or not os.WEXITSTATUS(status), "see above"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path, class_name: str, points: list[str]) -> None:
    """Compresses in processes of which each is killed at one point, OWNER.FUNCTION NUMBER, and the last at none."""
    shorten()
    settings = toy_settings(folder, class_name)
    for point in points:
        name, number = point.rsplit(" ", 1)
        in_a_child(partial(killed, settings, folder, name, int(number)))
    assert in_a_child(lambda: compress_run.compress(settings, folder / "out", progress=False)) == 0


def killed(settings: CompressSettings, folder: Path, name: str, number: int) -> None:
    path, _, attribute = name.rpartition(".")
    owner: Any = sys.modules[path] if path in sys.modules else class_of(path)
    setattr(owner, attribute, at_call(number, getattr(owner, attribute), kill_self))
    compress_run.compress(settings, folder / "out", progress=False)


def class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(sys.modules[module], name)


def shorten() -> None:
    """Leaves int8 out, measures latency in two rounds, and has a training save after every second step."""

    def missing(int8: bool = False) -> None:
        raise ValueError("not in this test")

    judging.check_packages, judging._NUM_ROUNDS, workbench._SAVE_STEPS = missing, 2, 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
