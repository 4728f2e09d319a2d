"""Questions about two texts, the tokenizers that cut them, and files in the official layout of SQuAD."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizer, RobertaTokenizer

from training.data.tokenizing import train_tokenizer
from training.finetuning.squad_data import SquadData


# As SQuAD has them on the Hub.
COLUMNS = Features(
    {
        **{name: Value("string") for name in ("id", "title", "question", "context")},
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
RIVER = "The Amazon is a river in South America. It is 6,400 km long, and the river carries the most water."
TOWER = "Built in 1889, the Eiffel Tower stands in Paris; the tower's height is 330 metres."
LONG = " ".join(f"{RIVER if number % 2 else TOWER}" for number in range(4)).replace("6,400", "7,777", 1)


def question(name: str, text: str, context: str, *answers: str, **changes: Any) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": found, **changes}


def content_of(*paragraphs: tuple[str, str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The official layout from (title, context, questions)."""
    articles: dict[str, list[Any]] = {}
    for title, context, questions in paragraphs:
        articles.setdefault(title, []).append({"context": context, "qas": questions})
    return {"version": "1.1", "data": [{"title": name, "paragraphs": items} for name, items in articles.items()]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def squad_tokenizer() -> BertTokenizer:
    return train_tokenizer([RIVER, TOWER, "where when who how what was it built 7,777"] * 3, vocab_size=200)


def byte_level_tokenizer(folder: Path) -> RobertaTokenizer:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([RIVER, TOWER], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    trained.save_model(str(folder))
    merges: Any = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    return RobertaTokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)


def data_of(*rows: tuple[str, str, list[str]]) -> SquadData:
    """Questions from (question, context, answers)."""
    questions = [
        {
            "id": str(number),
            "title": "T",
            "question": text,
            "context": context,
            "answers": {"text": answers, "answer_start": [context.index(answer) for answer in answers]},
        }
        for number, (text, context, answers) in enumerate(rows)
    ]
    facts = {"source": "hand", "sha256": json.dumps(rows), "unanswerable": sum(not row[2] for row in rows)}
    return SquadData(Dataset.from_list(questions, features=COLUMNS), facts)
