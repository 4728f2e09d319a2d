"""The report of a search: tables, CSV, JSON, figures, and one page of HTML that holds all of them."""

import base64
import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from ..drawing import render, write_figure
from ..files import make_output_folder, write_csv, write_json, write_text
from ..space.search_space import Architecture, compact_architecture, format_architecture
from ..tables import counted, counted_children, markdown_table
from .figures import SOURCE_NAMES, Window, draw_history, draw_loss_against_cost, draw_operators_by_layer
from .pareto import (
    ALL_OBJECTIVES,
    COST_LABELS,
    ReportChild,
    Source,
    cost_names,
    distinct_children,
    format_cost,
    known_cost,
    pareto_fronts,
)


PAGE_NAME = "report.html"


@dataclass(frozen=True)
class WinnerLatency:
    """The winner's latency, as predicted from the table of operators and as measured on the whole child.

    Attributes:
        predicted_ms: sum over the table.
        measured_ms: median latency of the whole child, `None` if it was not measured.
        interval_ms: lower and upper end of the interval of the measurement.
        conditions: device, threads, batch and length as text.
        warnings: reasons not to trust the figures; empty if there are none.
        held_out: the error of the table on whole children, as text.
    """

    predicted_ms: float
    measured_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    conditions: str = ""
    warnings: tuple[str, ...] = ()
    held_out: str = ""


@dataclass(frozen=True)
class Report:
    """The contents of a search report.

    Attributes:
        children: all evaluations of the search and of its controls (`pareto.report_children`).
        winner: the architecture that the search returned, one of the children.
        budget: the budget as text, empty if there is none.
        windows: (name of the cost, smallest, largest value allowed), for the figures.
        comparisons: for each control that the winner was compared with, the result as text.
        latency: latency of the winner.
        facts: conditions of the search, such as super-net, seeds and versions, by name.
        title: heading of the page.
        verdict: whether the search is better than its controls, in one sentence.
    """

    children: Sequence[ReportChild]
    winner: Architecture
    budget: str = ""
    windows: Sequence[tuple[str, float | None, float | None]] = ()
    comparisons: Mapping[str, str] = field(default_factory=dict)
    latency: WinnerLatency | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    title: str = "Encoder search"
    verdict: str = ""

    def __post_init__(self) -> None:
        if not any(child.architecture == self.winner for child in self.children):
            raise ValueError(
                f"the winner {format_architecture(self.winner)!r} is not among the {len(self.children):,} children of "
                "the report; add its evaluation"
            )

    @property
    def winning_child(self) -> ReportChild:
        """The winner's first evaluation."""
        return next(child for child in self.children if child.architecture == self.winner)

    @property
    def answer(self) -> str:
        """The found encoder in one sentence, and the verdict."""
        child = self.winning_child
        costs = [f"{COST_LABELS.get(name, name)} {_exact_cost(name, known_cost(child, name))}" for name in self.names]
        found = " and the ".join(SOURCE_NAMES[source] for source in self.finders[self.winner])
        within = f"within the budget {self.budget}" if self.budget else "without a budget"
        best = (
            f"The best encoder {within} has a validation loss of {_loss(child.val_loss)} with shared weights "
            f"({', '.join(costs)}); it was found by the {found}."
        )
        return f"{best} {self.verdict}".strip()

    @cached_property
    def finders(self) -> dict[Architecture, list[Source]]:
        """The sources that found each architecture: the search and a control can find the same child."""
        found: dict[Architecture, list[Source]] = {}
        for child in self.children:
            sources = found.setdefault(child.architecture, [])
            if child.source not in sources:
                sources.append(child.source)
        return found

    @cached_property
    def names(self) -> list[str]:
        """The names of the known costs."""
        return cost_names(self.children)

    @cached_property
    def fronts(self) -> dict[str, list[ReportChild]]:
        """The Pareto fronts by cost, and the front in all costs together."""
        return pareto_fronts(self.children)

    @cached_property
    def fronts_of(self) -> dict[Architecture, list[str]]:
        """The fronts of each architecture that is on at least one."""
        found: dict[Architecture, list[str]] = {}
        for name, front in self.fronts.items():
            for child in front:
                found.setdefault(child.architecture, []).append(name)
        return found

    @cached_property
    def children_on_fronts(self) -> list[ReportChild]:
        """The children on at least one of the fronts, by ascending validation loss."""
        kept = distinct_children(child for front in self.fronts.values() for child in front)
        return sorted(kept, key=lambda child: (child.val_loss, child.architecture))


def write_report(report: Report, output_dir: str | Path) -> dict[str, Path]:
    """Writes all files of a report and returns their paths: "page", "children", "pareto", "pareto_json", figures.

    Each file is written under a temporary name and renamed; files of an earlier report are replaced.

    Args:
        report: the report to write.
        output_dir: the folder, created if missing.
    """
    folder = Path(output_dir)
    make_output_folder(folder)
    figures = _figures(report)
    paths = {
        "page": folder / PAGE_NAME,
        "children": folder / "children.csv",
        "pareto": folder / "pareto.csv",
        "pareto_json": folder / "pareto.json",
        **{name: folder / f"{name}.png" for name in figures},
    }
    rows = _rows(report, report.children)
    front_rows = _rows(report, report.children_on_fronts)
    # Floats in full precision; unknown values stay empty.
    write_csv(paths["children"], list(rows[0]), [list(row.values()) for row in rows])
    write_csv(paths["pareto"], list(rows[0]), [list(row.values()) for row in front_rows])
    write_json(paths["pareto_json"], {"budget": report.budget, "children": [_json_row(row) for row in front_rows]})
    for name, (figure, _) in figures.items():
        write_figure(paths[name], figure)
    write_text(paths["page"], _page(report, figures))
    return paths


Cell = str | int | float | bool | None


def _rows(report: Report, children: Iterable[ReportChild]) -> list[dict[str, Cell]]:
    return [
        {
            "architecture": format_architecture(child.architecture),
            "val_loss": child.val_loss,
            "val_accuracy": child.val_accuracy,
            **{name: child.costs.get(name) for name in report.names},
            "source": child.source,
            "order": child.order,
            "found_by": " and ".join(report.finders[child.architecture]),
            "in_budget": child.in_budget,
            "is_winner": child.architecture == report.winner,
            **{f"on_front_{name}": name in report.fronts_of.get(child.architecture, []) for name in report.fronts},
        }
        for child in children
    ]


def _json_row(row: dict[str, Cell]) -> dict[str, object]:
    # JSON has no non-finite numbers.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return {**finite, "architecture": str(row["architecture"]).split(",")}


def pareto_table(report: Report, num_rows: int = 20) -> str:
    """Returns the children on the Pareto fronts as a Markdown table, by ascending validation loss.

    Args:
        report: the report to show.
        num_rows: maximum number of rows; a sentence says how many children there are if more. The winner is always
            included.
    """
    kept = report.children_on_fronts
    shown = kept[:num_rows]
    if all(child.architecture != report.winner for child in shown):
        shown = [report.winning_child, *shown[: num_rows - 1]]
    header = ["architecture", *(COST_LABELS.get(name, name) for name in report.names)]
    header += ["validation loss", "validation accuracy", "found by", "front"]
    rows = []
    for child in shown:
        mark = "**" if child.architecture == report.winner else ""
        first, *others = _table_cells(report, child)
        rows.append([f"{mark}{first}{mark}", *others])
    lines = [markdown_table(header, rows)]
    num_shown = sum(child.architecture in report.fronts_of for child in shown)
    if num_shown < len(kept):
        lines += ["", f"{num_shown} of {counted_children(len(kept))} on the fronts."]
    return "\n".join(lines)


def _table_cells(report: Report, child: ReportChild) -> list[str]:
    found_by = _found_by(report, child) + ("" if child.in_budget else ", outside the budget")
    return [
        compact_architecture(child.architecture),
        *(format_cost(name, known_cost(child, name)) for name in report.names),
        _loss(child.val_loss),
        f"{100 * child.val_accuracy:.1f}%",
        found_by,
        _front_names(report, child) or "none",
    ]


def _found_by(report: Report, child: ReportChild) -> str:
    return " and ".join(SOURCE_NAMES[source] for source in report.finders[child.architecture])


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _front_names(report: Report, child: ReportChild) -> str:
    """Returns the fronts that a child is on; the front in all objectives is named only if there are several costs."""
    on_front = report.fronts_of.get(child.architecture, [])
    labels = {**COST_LABELS, ALL_OBJECTIVES: "all together" if len(report.fronts) > 1 else "loss alone"}
    if len(report.fronts) == 2:
        on_front = [name for name in on_front if name != ALL_OBJECTIVES]
    return ", ".join(labels.get(name, name) for name in on_front)


Figures = dict[str, tuple[Figure, str]]


def _figures(report: Report) -> Figures:
    """Returns each figure by its file name, with its alternative text."""
    windows: dict[str, list[Window]] = {}
    for name, minimum, maximum in report.windows:
        windows.setdefault(name, []).append((minimum, maximum))
    winner = report.winning_child
    figures: Figures = {}
    for index, name in enumerate(report.names):
        figures[f"loss_against_{_file_name(name, index)}"] = (
            draw_loss_against_cost(report.children, name, report.winner, windows.get(name, ())),
            f"Validation loss against {COST_LABELS.get(name, name)}, "
            f"{counted(len(report.children), 'evaluation')}; lower and further left is better. Children on the front: "
            f"{len(report.fronts[name]):,}. The winner: "
            f"{format_cost(name, known_cost(winner, name))}, loss {_loss(winner.val_loss)}.",
        )
    figures["history"] = (
        draw_history(report.children, report.winner),
        "Lowest validation loss so far within the budget against the number of children evaluated. The winner: "
        f"evaluation {winner.order:,} of the {SOURCE_NAMES[winner.source]}, loss {_loss(winner.val_loss)}.",
    )
    figures["operators_by_layer"] = (
        draw_operators_by_layer(report.children),
        "Share of each operator in each layer among the best children within the budget, next to its share among "
        "random ones.",
    )
    return figures


def _file_name(name: str, index: int) -> str:
    """Returns the name of the cost if it can be part of a file name, else a number."""
    return name if name.replace("_", "").isalnum() and name.isascii() else f"cost_{index}"


def _page(report: Report, figures: Figures) -> str:
    return _PAGE.substitute(
        title=html.escape(report.title),
        style=_STYLE,
        script=_SCRIPT,
        answer=html.escape(report.answer),
        winner=_winner_table(report),
        comparisons=_comparisons(report),
        latency=_latency(report.latency),
        pareto=_pareto_html(report),
        figures="\n".join(_figure_html(figure, alt) for figure, alt in figures.values()),
        facts=_key_value_table("", [*report.facts.items(), *_counts(report)]),
    )


def _breakable(text: str) -> str:
    """Returns escaped text that narrow screens may break after a comma."""
    return html.escape(text).replace(",", ",<wbr>")


def _key_value_table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{_breakable(value)}</td></tr>\n' for name, value in rows
    )
    head = f"<caption>{html.escape(caption)}</caption>\n" if caption else ""
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _winner_table(report: Report) -> str:
    child = report.winning_child
    rows = [
        ("architecture", format_architecture(child.architecture)),
        *((COST_LABELS.get(name, name), _exact_cost(name, known_cost(child, name))) for name in report.names),
        ("validation loss, shared weights", _loss(child.val_loss)),
        ("validation accuracy, shared weights", f"{100 * child.val_accuracy:.1f}%"),
        (
            "found by",
            f"{_found_by(report, child)}; first as evaluation {child.order:,} of the {SOURCE_NAMES[child.source]}",
        ),
        ("within the budget", "yes" if child.in_budget else "no"),
    ]
    return _key_value_table("", rows)


def _exact_cost(name: str, value: float | None) -> str:
    if name == "num_parameters" and value is not None:
        return f"{value:,.0f}"
    return format_cost(name, value)


def _comparisons(report: Report) -> str:
    if not report.comparisons:
        return "<p>The winner was not compared with a control.</p>"
    items = "".join(
        f"<dt>{html.escape(to)}</dt><dd>{html.escape(text)}</dd>" for to, text in report.comparisons.items()
    )
    return f"<dl>{items}</dl>"


def _latency(latency: WinnerLatency | None) -> str:
    if latency is None:
        return ""
    measured = "not measured"
    if latency.measured_ms is not None:
        measured = f"{latency.measured_ms:.3f} ms"
        if latency.interval_ms is not None:
            measured += f" ({latency.interval_ms[0]:.3f} to {latency.interval_ms[1]:.3f})"
        if latency.measured_ms > 0:
            error = latency.predicted_ms / latency.measured_ms - 1
            measured += f"; the prediction is off by {100 * error:+.1f}%"
    rows = [("predicted from the table of operators", f"{latency.predicted_ms:.3f} ms"), ("measured whole", measured)]
    rows += [("conditions", latency.conditions)] if latency.conditions else []
    rows += [("error of the table", latency.held_out)] if latency.held_out else []
    rows += [("warning", warning) for warning in latency.warnings]
    return _key_value_table("Latency of the winner", rows)


def _pareto_html(report: Report) -> str:
    kept = report.children_on_fronts
    if not kept:
        return "<p>No child has a finite validation loss.</p>"
    labels = ["architecture", *(COST_LABELS.get(name, name) for name in report.names)]
    labels += ["validation loss", "validation accuracy", "found by", "on the front in loss and"]
    header = "".join(f'<th scope="col">{html.escape(label)}</th>' for label in labels)
    body = "".join(_pareto_row(report, child) for child in kept)
    return (
        "<p>The evaluated children that no other evaluated child beats, by ascending loss.</p>\n"
        '<div class="wide tall" role="region" aria-label="Pareto table" tabindex="0"><table class="sortable">\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _pareto_row(report: Report, child: ReportChild) -> str:
    texts = _table_cells(report, child)
    numbers = [*(known_cost(child, name) for name in report.names), child.val_loss, child.val_accuracy]
    cells = [
        f'<td class="number" data-value="{"" if number is None else repr(number)}">{html.escape(text)}</td>'
        for text, number in zip(texts[1:], numbers, strict=False)
    ]
    cells += [f"<td>{html.escape(text)}</td>" for text in texts[1 + len(numbers) :]]
    is_winner = child.architecture == report.winner
    mark = " <strong>winner</strong>" if is_winner else ""
    row_class = ' class="winner"' if is_winner else ""
    return f'<tr{row_class}><th scope="row">{_breakable(texts[0])}{mark}</th>{"".join(cells)}</tr>\n'


def _figure_html(figure: Figure, alt: str) -> str:
    # As an image, not inline: the ids inside one drawing would clash with those of the next.
    data = base64.b64encode(render(figure, "svg")).decode()
    text = html.escape(alt)
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _counts(report: Report) -> list[tuple[str, str]]:
    sources = Counter(child.source for child in report.children)
    rows = [(f"evaluations, {SOURCE_NAMES[source]}", f"{count:,}") for source, count in sources.items()]
    rows.append(("distinct children", f"{len(distinct_children(report.children)):,}"))
    not_finite = sum(not math.isfinite(child.val_loss) for child in report.children)
    return rows + ([("evaluations whose loss is not finite", f"{not_finite:,}")] if not_finite else [])


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --line: #d5d5d5; --soft: #f4f4f4; --mark: #dff3ea }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --line: #444444; --soft: #242424; --mark: #12382b }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin-top: 2rem }
h1, p, dd { overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: 1rem 0 } .tall { max-height: 32rem; overflow-y: auto }
table { border-collapse: collapse; font-size: .875rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }
td, tbody th { overflow-wrap: anywhere } tbody th { font-weight: 500; min-width: 9rem; background: var(--soft) }
thead th { position: sticky; top: 0; background: var(--soft) }
.sortable { min-width: 56rem } .sortable tbody th { min-width: 14rem; max-width: 30rem }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.winner th, .winner td { background: var(--mark) }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: left; cursor: pointer }
th button::after { content: " \\2195"; opacity: .5 }
[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1 }
[aria-sort=descending] button::after { content: " \\2193"; opacity: 1 }
dt { font-weight: 600 } dd { margin: 0 0 .6rem }
.figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0 } img { display: block; width: 100%; max-height: 46rem; object-fit: contain; background: #ffffff }
figcaption { font-size: .875rem }
"""

# Without the script the table is sorted by loss; with it, a click on a column's name sorts by that column.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent;
    return cell.dataset.value === "" ? Infinity : Number(cell.dataset.value);
  };
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const compare = (a, b) => (a > b) - (a < b);
      body.append(...[...body.rows].sort((a, b) => sign * compare(key(a, column), key(b, column))));
    });
  });
}
"""

# The policy lets the browser load nothing except what is in the file itself.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p><strong>$answer</strong></p>
<h2>Winner</h2>
$winner
<h3>Against the controls</h3>
$comparisons
$latency
<h2>Pareto front</h2>
$pareto
<h2>Figures</h2>
<div class="figures">
$figures
</div>
<h2>How it was made</h2>
$facts
</main>
<script>$script</script>
</body>
</html>
""")
