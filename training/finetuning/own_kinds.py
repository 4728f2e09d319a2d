"""The task of a user's own file: which columns hold text, which holds the label, and the kind of task.

All of it is inferred from the values of the training file. If they are ambiguous, the error names the option to set.
"""

import ast
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from .settings import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS
from .task_files import LABEL_SEPARATOR, Cell, Row, Table, is_number, require_columns


# Names of columns of row numbers, which are not text.
_ROW_NUMBERS = ("idx", "index", "id")
# The names of the label column if the file has no "label".
_LABEL_NAMES = ("labels", "score", "tags", "ner_tags", "pos_tags")
_WORDS_NAMES = ("tokens", "words")
# A character of a script that puts no spaces between its words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LIST_ITEM = re.compile(r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<number>[+-]?\d+(?:\.\d*)?)""", re.DOTALL)
# Categories are short, and their values repeat.
_CATEGORY_WORDS = 4
# Whole numbers with more different values than this, most of which occur once, may be amounts.
_MANY_LABELS = 20


# ---- Lists in CSV ----


def with_lists(table: Table) -> Table:
    """Converts columns of lists, as pandas and numpy print them into CSV and TSV, to lists.

    An empty cell among them is an empty list.
    """
    columns = {}
    for name in table.columns:
        cells = [row.cells[name] for row in table.rows]
        texts = [cell.strip() for cell in cells if isinstance(cell, str)]
        lists = [_printed_list(text) if text else [] for text in texts]
        if len(lists) == len(cells) and any(texts) and all(one is not None for one in lists):
            columns[name] = lists
    if not columns:
        return table
    rows = [
        Row(row.where, {**row.cells, **{name: lists[number] for name, lists in columns.items()}})
        for number, row in enumerate(table.rows)
    ]
    return replace(table, rows=rows)


def _printed_list(text: str) -> list[str | int | float] | None:
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inner = text[1:-1]
    # Commas and spaces between the items, and nothing else.
    if re.sub(r"[,\s]", "", _LIST_ITEM.sub("", inner)):
        return None
    items: list[str | int | float] = []
    for item in _LIST_ITEM.finditer(inner):
        number = item["number"]
        if number is not None:
            items.append(float(number) if "." in number else int(number))
            continue
        printed = _printed_text(item["text"])
        if printed is None:
            return None
        items.append(printed)
    return items


def _printed_text(literal: str) -> str | None:
    """Returns the text of a Python or JSON string, `None` if it is not one or holds half of a character."""
    if "\\" not in literal:
        return literal[1:-1]
    try:
        text = str(ast.literal_eval(literal))
        # JSON escapes the two halves of a character one by one.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except (SyntaxError, ValueError):
        return None


def check_lists(table: Table, columns: Sequence[str]) -> None:
    """Checks that columns in which most cells are printed lists hold nothing else.

    Args:
        table: the result of `with_lists`.
        columns: the columns that are read.

    Raises:
        ValueError: a cell is not a list, and would be read as text with brackets; the message gives file and line.
    """
    for name in columns:
        rows = [row for row in table.rows if isinstance(row.cells[name], str)]
        odd = [row for row in rows if _printed_list(str(row.cells[name]).strip()) is None]
        if odd and 2 * len(odd) <= len(rows):
            raise ValueError(
                f"{odd[0].where}: column {name!r} holds {odd[0].cells[name]!r:.60}, which is not a list of texts or "
                f"numbers as in other rows; correct it, or write the file as JSON lines"
            )


# ---- Columns ----


def find_label_column(table: Table, given: str | None) -> str:
    """Returns the column of the label: the given one, "label", or the only one with another usual name.

    Raises:
        ValueError: there is no such column, or several have such a name.
    """
    if given is not None or "label" in table.columns:
        name = given or "label"
        require_columns(table, (name,))
        return name
    found = [name for name in _LABEL_NAMES if name in table.columns]
    if len(found) > 1:
        raise ValueError(
            f"{table.path}: {' or '.join(found)} may be the label; choose one with label_column (--label-column)"
        )
    require_columns(table, found or ("label",), option="label_column (--label-column)")
    return found[0]


def label_column_if_any(table: Table, given: str | None) -> str | None:
    """Returns the label column like `find_label_column`, `None` if there are no or several candidates."""
    if given is None and "label" not in table.columns and sum(name in table.columns for name in _LABEL_NAMES) != 1:
        return None
    return find_label_column(table, given)


def find_text_columns(
    table: Table, given: Sequence[str] | None, label_column: str | None, way: str = "with text_columns (--text-column)"
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the one or two text columns, and for each other column why it is not text.

    A column of numbers, of one value or of identifiers is not text, nor is one without a name or called idx, index or
    id.
    A column of single words or categories next to one of sentences may or may not be text.

    Args:
        table: the rows.
        given: the text columns; `None` infers them.
        label_column: the column of the label; `None` if there is none.
        way: how the caller sets the columns, for errors.

    Raises:
        ValueError: a column does not exist, there are no text columns or too many, or a column may or may not be text.
    """
    others: dict[str, str] = {}
    if given is not None:
        texts = tuple(given)
        require_columns(table, texts)
    else:
        texts, others = _columns_of_text(table, label_column, way)
    if len(texts) not in (1, 2) or len(set(texts)) != len(texts):
        chosen = "text_columns must name" if given is not None else f"name {way}"
        why = "".join(f"; {name!r} holds {what}" for name, what in others.items())
        raise ValueError(f"{table.path}: {chosen} one or two of the columns {', '.join(table.columns)}{why}")
    if {"label", "idx"} & set(texts) or label_column in texts:
        raise ValueError(f"{table.path}: a text column must not be the label or be called label or idx; rename it")
    return texts, others


def _columns_of_text(table: Table, label_column: str | None, way: str) -> tuple[tuple[str, ...], dict[str, str]]:
    cells = {name: [row.cells[name] for row in table.rows] for name in table.columns if name != label_column}
    labels = [] if label_column is None else [row.cells[label_column] for row in table.rows]
    others = {name: why for name in cells if (why := _no_text(name, cells[name]))}
    texts = [name for name in cells if name not in others]
    words = [name for name in texts if all(isinstance(cell, list) for cell in cells[name])]
    if words:
        # If a row has several lists, such as words and parts of speech, one has such a name.
        named = [name for name in words if name in _WORDS_NAMES]
        texts = named if len(named) == 1 else words
        return tuple(texts), {**others, **{name: "other text" for name in cells if name not in (*texts, *others)}}
    for name in list(texts):
        if len(texts) > 1 and _are_identifiers(cells[name]):
            others[name] = "identifiers"
            texts.remove(name)
    if any(_are_sentences(cells[name]) for name in texts):
        for name in list(texts):
            if len(texts) == 1 or (_are_sentences(cells[name]) and not _are_categories(cells[name])):
                continue
            if labels and _name_each_other(cells[name], labels):
                others[name] = f"{label_column!r} in other words"
                texts.remove(name)
            else:
                raise ValueError(
                    f"{table.path}: column {name!r} holds single words or categories, which may or may not be text; "
                    f"name one or two of {', '.join(texts)} {way}"
                )
    return tuple(texts), others


def _no_text(name: str, cells: Sequence[Cell]) -> str:
    """Returns what a column holds if it cannot be text, else ""."""
    if not name or re.fullmatch(r"Unnamed: \d+", name):
        return "the row numbers of pandas" if all(map(is_number, cells)) else "what has no name"
    if name.lower() in _ROW_NUMBERS:
        return "row numbers"
    filled = [cell for cell in cells if cell not in (None, "", [])]
    if not filled:
        return "nothing"
    if any(isinstance(cell, list) for cell in filled):
        of_words = all(isinstance(word, str) for cell in filled if isinstance(cell, list) for word in cell)
        return "" if of_words else "lists of numbers"
    texts = [cell for cell in filled if isinstance(cell, str)]
    if 2 * len(texts) <= len(filled):
        return "numbers" if any(map(is_number, filled)) else "no text"
    if 2 * sum(any(character.isalpha() for character in text) for text in texts) <= len(texts):
        return "numbers"
    return "one value" if len(texts) > 1 and len(set(texts)) == 1 else ""


def _are_sentences(cells: Sequence[Cell]) -> bool:
    texts = [cell.strip() for cell in cells if isinstance(cell, str)]
    longer = sum(len(text.split()) > 1 or len(_UNSPACED.findall(text)) > 1 for text in texts)
    return 2 * longer > len(texts)


def _are_identifiers(cells: Sequence[Cell]) -> bool:
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    with_digits = sum(any(character.isdigit() for character in text) for text in texts)
    one_word = all(len(text.split()) == 1 for text in texts)
    return one_word and len(set(texts)) == len(texts) and 2 * with_digits > len(texts)


def _are_categories(cells: Sequence[Cell]) -> bool:
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    are_short = all(len(text.split()) <= _CATEGORY_WORDS and len(_UNSPACED.findall(text)) <= 8 for text in texts)
    return are_short and len(texts) >= 10 and 2 * len(set(texts)) <= len(texts)


def _name_each_other(cells: Sequence[Cell], labels: Sequence[Cell]) -> bool:
    pairs = {(str(cell), str(label)) for cell, label in zip(cells, labels, strict=True)}
    return len(pairs) == len({cell for cell, _ in pairs}) == len({label for _, label in pairs}) < len(cells)


# ---- Kinds of labels ----


def infer_problem_type(table: Table, text_columns: Sequence[str], label_column: str) -> str:
    """Infers the kind of task from the values of a table's labels.

    - lists of words, BIO tags separated by spaces, or as many tags as words in every row: token classification;
    - lists of labels, labels joined by "|", or zeros and ones of one length (`are_vectors`): several labels per row;
    - numbers in most rows, at least one of them not whole: regression;
    - everything else, including whole numbers such as 1.0: one class per row.

    If most rows are of one kind, a row of another kind is an error in that row, not another kind of task.

    Raises:
        ValueError: the labels fit two kinds.
    """
    cells = [row.cells[label_column] for row in table.rows]
    texts = [row.cells[text_columns[0]] for row in table.rows] if len(text_columns) == 1 else []
    column = f"{table.path}: column {label_column!r}"
    if any(isinstance(text, list) for text in texts):
        return TOKENS
    lists = [cell for cell in cells if isinstance(cell, list)]
    if lists and all(len(one) == 1 and str(one[0]) in ("0", "1", "0.0", "1.0") for one in lists):
        raise ValueError(
            f"{column} holds lists of one 0 or 1, which may be a class or a vector; write the class on its own, "
            f"without a list"
        )
    if any(is_number(part) and not float(str(part)).is_integer() for one in lists for part in one):
        raise ValueError(f"{column} holds lists of fractions; give one number or classes in each row")
    if texts and _are_tags(column, texts, cells):
        return TOKENS
    if are_vectors(cells) or lists or any(isinstance(cell, str) and LABEL_SEPARATOR in cell for cell in cells):
        return MULTI_LABEL
    return _kind_of_values(column, cells)


def are_vectors(cells: Collection[Cell]) -> bool:
    """Whether labels are vectors: equally many zeros and ones in all rows, at least two, as a list or in one text."""
    vectors = [vector_of(cell) for cell in cells]
    return all(vector is not None for vector in vectors) and len({len(vector or ()) for vector in vectors}) == 1


def vector_of(cell: Cell) -> list[int] | None:
    """Returns a cell as a vector of zeros and ones, `None` if it is not one."""
    parts = re.split(r"[|,;\s]+", cell.strip()) if isinstance(cell, str) else cell
    if not isinstance(parts, list) or len(parts) < 2:
        return None
    if not all(isinstance(part, bool) or (is_number(part) and float(str(part)) in (0, 1)) for part in parts):
        return None
    return [int(part if isinstance(part, bool) else float(str(part))) for part in parts]


def _are_tags(column: str, texts: Sequence[Cell], cells: Sequence[Cell]) -> bool:
    """Whether labels are a tag for each word; raises a ValueError if they may also be classes."""
    of_lists = all(isinstance(cell, list) for cell in cells)
    if not of_lists and any(isinstance(cell, list) for cell in cells):
        return False
    tags = [[str(part) for part in cell] if isinstance(cell, list) else str(cell).split() for cell in cells]
    if any(len(row) > 1 for row in tags) and are_bio([tag for row in tags for tag in row]):
        return True
    num_words = [len(str(text).split()) for text in texts]
    num_fitting = sum(words == len(row) for words, row in zip(num_words, tags, strict=True))
    if max(map(len, tags)) < 2 or 10 * num_fitting < 9 * len(tags):
        return False
    lengths = set(map(len, tags))
    if num_fitting == len(tags) and len(lengths) >= (2 if of_lists else 3) and not are_vectors(cells):
        return True
    alone = {row[0] for row in tags if len(row) == 1}
    if not of_lists and num_fitting == len(tags) and alone and not any(set(row) & alone for row in tags if row[1:]):
        # Classes of several words, such as Hong Kong: tags would also occur on their own in rows of one word.
        return False
    other = MULTI_LABEL if of_lists or are_vectors(cells) else SINGLE_LABEL
    fitting = "every row" if num_fitting == len(tags) else f"{num_fitting} of {len(tags)} rows"
    raise ValueError(
        f"{column} holds as many words as the text in {fitting}, so it may hold tags or classes; set problem_type "
        f"to {TOKENS} or {other}"
    )


def are_bio(tags: Collection[str]) -> bool:
    """Whether tags are entity tags: "O", "B-..." and "I-..."."""
    return all(tag == "O" or tag.startswith(("B-", "I-")) for tag in tags)


def _kind_of_values(column: str, cells: Sequence[Cell]) -> str:
    numbers = [float(str(cell)) for cell in cells if is_number(cell)]
    if 2 * len(numbers) > len(cells) and any(not number.is_integer() for number in numbers):
        return REGRESSION
    num_labels = len({str(cell).strip() for cell in cells})
    if num_labels > _MANY_LABELS and 2 * num_labels > len(cells):
        kinds = f"{SINGLE_LABEL} or {REGRESSION}" if len(numbers) == len(cells) else SINGLE_LABEL
        raise ValueError(
            f"{column} holds {num_labels} different values in {len(cells)} rows, too many to be taken as classes; "
            f"set problem_type to {kinds}, or set label_column to another column"
        )
    return SINGLE_LABEL
