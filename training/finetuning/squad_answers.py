"""From the logits of windows to the answers of SQuAD 1.1 and 2.0, and the files that the official scripts read."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.lib.stride_tricks import sliding_window_view

from ..files import make_output_folder, write_json
from .squad_data import NO_ANSWER, SquadData, SquadWindows
from .squad_metrics import apply_threshold


# Windows to score at once: about 50 MB of scores with 384 tokens and answers of up to 30.
_SCORED_TOGETHER = 512


class Candidate(TypedDict):
    """One of the best answers to a question, as in nbest_predictions.json."""

    text: str
    probability: float
    start_logit: float
    end_logit: float


@dataclass(frozen=True)
class SquadAnswers:
    """A model's answers.

    Attributes:
        texts: for each question id the best span, even if no answer is more likely; "" if there is no span.
        nbest: for each question id the best different texts by score, with their probabilities relative to each other;
            with SQuAD 2.0 the empty text is one of them.
        null_odds: for each question id the score of no answer minus that of the best span; empty with SQuAD 1.1.
    """

    texts: dict[str, str]
    nbest: dict[str, list[Candidate]]
    null_odds: dict[str, float]

    def predictions(self, threshold: float = 0.0) -> dict[str, str]:
        """Returns the answer to each question, "" if the null odds are above the threshold."""
        return apply_threshold(self.texts, self.null_odds, threshold) if self.null_odds else dict(self.texts)

    def write(self, folder: str | Path, threshold: float = 0.0) -> None:
        """Writes predictions.json, nbest_predictions.json and, with SQuAD 2.0, null_odds.json, like BERT's script."""
        folder = Path(folder)
        make_output_folder(folder)
        write_json(folder / "nbest_predictions.json", self.nbest)
        if self.null_odds:
            write_json(folder / "null_odds.json", self.null_odds)
        write_json(folder / "predictions.json", self.predictions(threshold))


class _Spans(NamedTuple):
    """The best spans of all windows, one per element of each array."""

    question: np.ndarray
    first_character: np.ndarray
    end_character: np.ndarray
    start_logit: np.ndarray
    end_logit: np.ndarray


def find_answers(
    data: SquadData,
    windows: SquadWindows,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    *,
    version_2: bool = False,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> SquadAnswers:
    """Returns the best answers over all windows of each question, by start logit + end logit.

    All spans of the context of up to `max_answer_length` tokens compete, not only those between the best starts and
    ends. The score of no answer is that of the class token, in the window where it is lowest, as in BERT.

    Args:
        data: the questions.
        windows: windows of these questions.
        start_logits: (windows, tokens), in the order of the windows; values beyond a window's length do not matter.
        end_logits: the same shape.
        version_2: whether no answer competes.
        n_best: number of different texts to keep for a question.
        max_answer_length: largest number of tokens of an answer.

    Raises:
        ValueError: the logits do not fit the windows or are not finite, or `n_best` or `max_answer_length` is not
            positive.
    """
    for name, value in (("n_best", n_best), ("max_answer_length", max_answer_length)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    layout = windows.rows.select_columns(["question", "length", "context_start"]).with_format("numpy")[:]
    wanted = (len(windows.rows), int(layout["length"].max()))
    for logits in (start_logits, end_logits):
        if logits.ndim != 2 or logits.shape[0] != wanted[0] or logits.shape[1] < wanted[1]:
            raise ValueError(f"the logits have the shape {logits.shape}; the windows need {wanted}")
    spans = _best_spans(windows, layout, start_logits, end_logits, n_best, max_answer_length)
    order = np.lexsort((spans.end_character, spans.first_character, -spans.start_logit - spans.end_logit, spans[0]))
    spans = _Spans(*(values[order] for values in spans))
    limits = np.searchsorted(spans.question, np.arange(len(data.questions) + 1))
    null = _null_logits(layout["question"], start_logits[:, NO_ANSWER], end_logits[:, NO_ANSWER])
    # As lists, since access to single elements of an array is slow.
    columns = _Spans(*(values.tolist() for values in spans))
    answers = SquadAnswers({}, {}, {})
    texts = data.questions.select_columns(["id", "context"])[:]
    for number, (name, context) in enumerate(zip(texts["id"], texts["context"], strict=True)):
        found = _different_texts(columns, range(limits[number], limits[number + 1]), context, n_best)
        answers.texts[name] = found[0]["text"] if found else ""
        if version_2:
            silent = Candidate(text="", probability=0.0, start_logit=null[0][number], end_logit=null[1][number])
            answers.null_odds[name] = _score(silent) - _score(found[0]) if found else 0.0
            found = sorted([*found, silent], key=_score, reverse=True)
        answers.nbest[name] = _with_probabilities(found)
    return answers


def span_loss(windows: SquadWindows, start_logits: np.ndarray, end_logits: np.ndarray) -> float:
    """Returns the mean over windows of the cross-entropies of start and end, over the tokens of each window.

    A model's own loss counts padding as tokens, and so depends on how windows were batched; this one does not.

    Args:
        windows: windows with their labels.
        start_logits: (windows, tokens), as for `find_answers`.
        end_logits: the same shape.
    """
    columns = windows.rows.select_columns(["length", "start_positions", "end_positions"]).with_format("numpy")[:]
    real = np.arange(start_logits.shape[1]) < columns["length"][:, None]
    total = 0.0
    for logits, labels in ((start_logits, columns["start_positions"]), (end_logits, columns["end_positions"])):
        scores = np.where(real, logits.astype(np.float64), -np.inf)
        highest = scores.max(axis=1)
        log_sums = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
        total += float((log_sums - scores[np.arange(len(labels)), labels]).mean())
    return total / 2


def _best_spans(
    windows: SquadWindows,
    layout: dict[str, np.ndarray],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> _Spans:
    """Returns the `n_best` spans of each window, or all if it has fewer."""
    parts = []
    for begin in range(0, len(windows.rows), _SCORED_TOGETHER):
        rows = slice(begin, begin + _SCORED_TOGETHER)
        table = windows.rows.with_format("arrow")[rows]
        first, end = (
            _placed(table.column(name).combine_chunks(), layout["context_start"][rows], start_logits.shape[1])
            for name in ("first_characters", "end_characters")
        )
        # Tokens without a character, such as a lone continuation, neither begin nor end an answer.
        allowed = end > first
        starts, ends = (
            np.where(allowed, logits[rows].astype(np.float64), -np.inf) for logits in (start_logits, end_logits)
        )
        if np.isnan(starts).any() or np.isnan(ends).any() or np.isposinf(starts).any() or np.isposinf(ends).any():
            raise ValueError("the model's logits are not finite: its training has diverged; lower the learning rate")
        window, token, last = _top_spans(starts, ends, n_best, max_answer_length)
        parts.append(
            _Spans(
                layout["question"][rows][window],
                first[window, token],
                end[window, last],
                starts[window, token],
                ends[window, last],
            )
        )
    return _Spans(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _placed(characters: pa.ListArray, context_start: np.ndarray, width: int) -> np.ndarray:
    """Returns the values of the contexts' tokens at their positions, (windows, width), 0 elsewhere."""
    counts, columns = characters.value_lengths().to_numpy(), np.arange(width)
    inside = (columns >= context_start[:, None]) & (columns < (context_start + counts)[:, None])
    placed = np.zeros(inside.shape, dtype=np.int32)
    placed[inside] = characters.flatten().to_numpy()
    return placed


def _top_spans(
    starts: np.ndarray, ends: np.ndarray, n_best: int, max_answer_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, first and last column of the best spans of each row, exactly, without a score for every pair.

    A span among the best n begins at one of the n columns from which the best spans begin.

    Args:
        starts: (rows, columns), -inf if no span begins there.
        ends: (rows, columns), -inf if no span ends there.
        n_best: spans per row; fewer if a row has fewer.
        max_answer_length: largest number of columns of a span.
    """
    num_rows, width = starts.shape
    reach = min(max_answer_length, width)
    beyond = np.full((num_rows, reach - 1), -np.inf)
    ahead = sliding_window_view(np.concatenate([ends, beyond], axis=1), reach, axis=1)
    num_starts = min(n_best, width)
    best_from = starts + ahead.max(axis=2)
    candidates = np.argpartition(-best_from, num_starts - 1, axis=1)[:, :num_starts]
    rows = np.arange(num_rows)[:, None]
    scores = (starts[rows, candidates][:, :, None] + ahead[rows, candidates]).reshape(num_rows, -1)
    num_spans = min(n_best, scores.shape[1])
    top = np.argpartition(-scores, num_spans - 1, axis=1)[:, :num_spans]
    row, place = np.nonzero(np.isfinite(scores[rows, top]))
    start, length = np.divmod(top[row, place], reach)
    first = candidates[row, start]
    return row, first, first + length


def _null_logits(question: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the logits of the class token for each question, from the window where their sum is smallest."""
    order = np.lexsort((starts.astype(np.float64) + ends, question))
    least = order[np.unique(question[order], return_index=True)[1]]
    return starts[least].astype(np.float64).tolist(), ends[least].astype(np.float64).tolist()


def _different_texts(spans: _Spans, places: range, context: str, n_best: int) -> list[Candidate]:
    """Returns the best texts of one question, each once, with its best score."""
    found: dict[str, Candidate] = {}
    for place in places:
        text = context[spans.first_character[place] : spans.end_character[place]]
        if text not in found:
            start_logit, end_logit = spans.start_logit[place], spans.end_logit[place]
            found[text] = Candidate(text=text, probability=0.0, start_logit=start_logit, end_logit=end_logit)
            if len(found) == n_best:
                break
    return list(found.values())


def _score(candidate: Candidate) -> float:
    return candidate["start_logit"] + candidate["end_logit"]


def _with_probabilities(candidates: list[Candidate]) -> list[Candidate]:
    """Returns the candidates with the softmax of their scores; one empty text if there are none."""
    if not candidates:
        return [Candidate(text="", probability=1.0, start_logit=0.0, end_logit=0.0)]
    scores = np.array([_score(candidate) for candidate in candidates])
    weights = np.exp(scores - scores.max())
    shares = (weights / weights.sum()).tolist()
    return [Candidate(**{**item, "probability": share}) for item, share in zip(candidates, shares, strict=True)]
