"""The report of a search: the files as others read them, the page in a real browser."""

import csv
import http.server
import io
import json
import math
import shutil
import subprocess
import threading
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest
from PIL import Image
from toy_report import CHILDREN, COSTS, LIMIT, NAN, RANDOM, SEARCHED, WINNER, single

from training.files import write_text
from training.search.pareto import ReportChild, pareto_fronts
from training.search.report import Report, WinnerLatency, pareto_table, write_report


REPORT = Report(
    CHILDREN,
    WINNER,
    budget="num_parameters <= 15,000,000",
    windows=[("num_parameters", None, LIMIT)],
    comparisons={"best random child": "better by 0.1 +- 0.02", "BERT pattern": "no better than the BERT pattern"},
    latency=WinnerLatency(4.0, 5.0, (4.9, 5.2), "1 thread", ("the machine was loaded",)),
    facts={"super-net": "runs/supernet", "seed": "3"},
    verdict="The search is no better than random search.",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return write_report(REPORT, tmp_path_factory.mktemp("report"))


def test_pandas_reads_every_evaluation_with_all_digits(written):
    table = pd.read_csv(written["children"])
    assert len(table) == len(CHILDREN)
    for row, child in zip(table.to_dict("records"), CHILDREN, strict=True):
        assert tuple(row["architecture"].split(",")) == child.architecture
        assert (row["val_loss"], row["val_accuracy"]) == (child.val_loss, child.val_accuracy)
        assert {name: row[name] for name in COSTS} == child.costs
        assert (row["source"], row["order"], row["in_budget"]) == (child.source, child.order, child.in_budget)
        assert row["is_winner"] == (child.architecture == WINNER)
    assert f'\n"{",".join(WINNER)}",' in written["children"].read_text()


def test_pareto_files_hold_the_fronts(written):
    table = pd.read_csv(written["pareto"])
    fronts = pareto_fronts(CHILDREN)
    assert set(fronts) == {*COSTS, "all"}
    for name, front in fronts.items():
        marked = table[table[f"on_front_{name}"]]["architecture"]
        assert set(marked) == {",".join(child.architecture) for child in front}
        assert len(marked) == len(front) > 1
    assert table["val_loss"].is_monotonic_increasing
    assert table[[f"on_front_{name}" for name in fronts]].any(axis=1).all()
    content = json.loads(written["pareto_json"].read_text())
    assert content["budget"] == REPORT.budget
    for entry, row in zip(content["children"], table.to_dict("records"), strict=True):
        assert {**entry, "architecture": ",".join(entry["architecture"])} == row


def markdown_rows(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]


def test_markdown_table():
    header, dashes, *rows = markdown_rows(pareto_table(REPORT, num_rows=100))
    assert header[:4] == ["architecture", "parameters", "latency (ms)", "validation loss"]
    assert len(dashes) == len(header)
    assert len(rows) == len({child.architecture for front in pareto_fronts(CHILDREN).values() for child in front})
    winner = next(child for child in CHILDREN if child.architecture == WINNER)
    assert rows[0][0].startswith("**")
    assert rows[0][1:4] == [
        f"{winner.costs['num_parameters'] / 1e6:.2f}M",
        f"{winner.costs['latency_ms']:.2f}",
        f"{winner.val_loss:.4f}",
    ]
    assert all(len(row) == len(header) for row in rows)


def test_a_child_of_search_and_control_says_so(written):
    both = {child.architecture for child in SEARCHED} & {child.architecture for child in RANDOM}
    assert both
    table = pd.read_csv(written["children"])
    expected = ["search and random" if child.architecture in both else child.source for child in CHILDREN]
    assert list(table["found_by"]) == expected
    again = next(child for child in CHILDREN if child.architecture == WINNER)
    other = replace(again, source="random" if again.source == "search" else "search")
    winner, *rows = markdown_rows(pareto_table(replace(REPORT, children=[*CHILDREN, other])))[2:]
    assert {"search", "random control"} == set(winner[-2].split(" and "))
    assert not any(" and " in row[-2] for row in rows)


def test_markdown_table_is_cut_and_keeps_the_winner():
    worst = max(CHILDREN, key=lambda child: child.val_loss).architecture
    table = pareto_table(replace(REPORT, winner=worst), num_rows=2)
    assert len(markdown_rows(table)) == 4
    assert table.count("**") == 2
    # The winner is on no front and takes the place of one that is.
    on_fronts = len(REPORT.children_on_fronts)
    assert table.splitlines()[-1] == f"1 of {on_fronts} children on the fronts."
    whole = pareto_table(replace(REPORT, winner=worst), num_rows=on_fronts)
    assert whole.splitlines()[-1] == f"{on_fronts - 1} of {on_fronts} children on the fronts."
    assert "children on the fronts" not in pareto_table(REPORT)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_an_answer_without_a_budget_names_none():
    answer = replace(REPORT, budget="", windows=()).answer
    assert answer.startswith("The best encoder without a budget has a validation loss of ")
    assert "; it was found by the " in answer


def test_page_tells_everything(written):
    page = Page(written["page"])
    for text in (",".join(WINNER), REPORT.budget, *REPORT.comparisons.values(), *REPORT.facts.values()):
        assert text in page.text
    # The answer comes first, before any table.
    assert page.text.index(REPORT.answer) < page.text.index("architecture")
    assert REPORT.answer.startswith(f"The best encoder within the budget {REPORT.budget} has a validation loss of")
    assert REPORT.answer.endswith(f". {REPORT.verdict}")
    for text in ("4.000 ms", "5.000 ms (4.900 to 5.200); the prediction is off by -20.0%", "the machine was loaded"):
        assert text in page.text
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("title")) == 1
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))
    assert all(header.get("scope") in ("row", "col") for header in page.named("th"))
    images = page.named("img")
    assert len(images) == len(COSTS) + 2
    assert all(image["alt"] for image in images)


def test_page_loads_nothing(written):
    page = Page(written["page"])
    loaded = [attributes[name] or "" for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert loaded
    assert all(address.startswith("data:") for address in loaded)
    text = written["page"].read_text()
    assert not any(word in text for word in ("http:", "https:", "@import", "url(", "fetch(", "XMLHttpRequest"))


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_names_cannot_bring_markup_in(tmp_path):
    evil = "</td><script>alert('&')</script><img src=x onerror=\"alert(1)\">|$title"
    child = ReportChild((evil, "FFN"), 3.0, 0.1, {evil: 2.0}, "search", 1)
    report = Report(
        [child],
        child.architecture,
        evil,
        [(evil, None, 3.0)],
        {evil: evil},
        WinnerLatency(1.0, conditions=evil, warnings=(evil,)),
        {evil: evil},
        evil,
    )
    written = write_report(report, tmp_path)
    page = Page(written["page"])
    assert len(page.named("script")) == 1
    assert all(image["src"] is not None and image["src"].startswith("data:") for image in page.named("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(evil) >= 8
    assert all(path.parent == tmp_path and path.is_file() for path in written.values())
    assert next(csv.DictReader(io.StringIO(written["children"].read_text())))["architecture"] == f"{evil},FFN"
    assert pareto_table(report).splitlines()[0].replace("\\|", "").count("|") == 7


EDGES = {
    "one child": [single()],
    "one random child": [single(source="random")],
    "only the BERT pattern, outside the budget": [single(source="BERT pattern", in_budget=False)],
    "no BERT pattern": [single(), single(source="random", architecture=("CONV3",), val_loss=2.0)],
    "no finite loss": [single(val_loss=NAN), single(val_loss=math.inf, architecture=("CONV3",))],
    "some losses not finite": [single(), single(val_loss=NAN, source="random"), single(val_loss=-math.inf, order=2)],
    "a cost missing": [single(), single(architecture=("CONV3",), costs={"latency_ms": 1.0})],
    "a cost not finite": [single(), single(architecture=("CONV3",), costs={"num_parameters": NAN, "latency_ms": 1})],
    "no cost": [single(costs={}), single(costs={}, architecture=("CONV3",), val_loss=2.0)],
    "all equal": [single(), single(architecture=("CONV3",)), single(architecture=("MHA4",), source="random")],
}


@pytest.mark.parametrize("edge", EDGES)
def test_unusual_searches_have_a_report(edge, tmp_path):
    children = EDGES[edge]
    winner = children[0].architecture
    report = Report(children, winner)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_report(report, tmp_path)
        table = pareto_table(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written.values())
    read = pd.read_csv(written["children"])
    assert len(read) == len(children)
    assert list(read) == list(pd.read_csv(written["pareto"]))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    kept = json.loads(written["pareto_json"].read_text(), parse_constant=refuse)["children"]
    assert len(kept) == len(pd.read_csv(written["pareto"]))
    assert bool(kept) == (edge != "no finite loss")
    for name in set(written) - {"page", "children", "pareto", "pareto_json"}:
        Image.open(written[name]).verify()
    text = Page(written["page"]).text
    assert ",".join(winner) in text
    assert ("not finite" in text) == ("finite loss" in edge or "losses" in edge)
    assert table.count("**") == 2


def test_report_names_a_winner_that_was_not_evaluated():
    with pytest.raises(ValueError, match=r"'FFN,FFN' is not among the 1 children"):
        Report([single()], ("FFN", "FFN"))


def test_same_report_gives_the_same_bytes(written, tmp_path):
    again = write_report(REPORT, tmp_path)
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in written.items()
    }


def test_a_full_disk_leaves_the_earlier_page(tmp_path, monkeypatch):
    before = write_report(Report([single()], ("FFN",)), tmp_path)["page"].read_text()

    def full(path, text):
        if path.name.startswith("report.html"):
            raise OSError("no space left on device")
        write_text(path, text)

    monkeypatch.setattr("training.search.report.write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_report(Report([single(val_loss=2.0)], ("FFN",)), tmp_path)
    assert (tmp_path / "report.html").read_text() == before


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is on PATH")
# Sent to the page around, which may not look into a frame from another file.
PROBE = """
<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const losses = () => rows().map((row) => Number(row.cells[COLUMN].dataset.value));
  const button = document.querySelectorAll("table.sortable th button")[COLUMN], before = losses();
  button?.click();
  const once = losses();
  button?.click();
  parent.postMessage({
    images: [...document.images].map((image) => image.naturalWidth),
    width: innerWidth,
    widthOfContent: document.documentElement.scrollWidth,
    before, once, twice: losses(),
    sorted: button?.parentElement.getAttribute("aria-sort"),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
  }, "*");
});
</script>
</body>
"""
FRAMES = """<!DOCTYPE html><html><body>
<pre id="answers"></pre>
<script>
const answers = [];
addEventListener("message", (event) => {
  answers.push(event.data);
  document.getElementById("answers").textContent = JSON.stringify(answers);
});
</script>
<iframe src="probe.html" style="width: 1280px; height: 900px"></iframe>
<iframe src="probe.html" style="width: 400px; height: 900px"></iframe>
</body></html>
"""


def open_in_browser(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The DOM after rendering, and what the browser's console says."""
    assert BROWSER is not None
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr v=0 virtual-time-budget=5000 dump-dom"
    )
    command = [BROWSER, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={folder / 'profile'}"]
    run = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def probe(text: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a page measures of itself when it is 1,280 and when it is 400 pixels wide, and the console."""
    folder.mkdir()
    column = 1 + len(COSTS)
    (folder / "probe.html").write_text(text.replace("</body>", PROBE.replace("COLUMN", str(column))))
    (folder / "frames.html").write_text(FRAMES)
    dom, console = open_in_browser(folder / "frames.html", folder)
    answers = dom.partition('<pre id="answers">')[2].partition("</pre>")[0].replace("&amp;", "&")
    return sorted(json.loads(answers), key=lambda answer: -answer["width"]), console


@browser
@pytest.mark.slow
def test_browser_shows_the_page(written, tmp_path):
    dom, console = open_in_browser(written["page"], tmp_path)
    assert ",<wbr>".join(WINNER) in dom
    assert dom.count("<button") == len(COSTS) + 5
    assert not console
    answers, console = probe(written["page"].read_text(), tmp_path / "frames")
    assert not console
    assert [answer["width"] for answer in answers] == [1280, 400]
    for answer in answers:
        assert len(answer["images"]) == len(COSTS) + 2
        assert all(width > 100 for width in answer["images"])
        assert answer["widthOfContent"] <= answer["width"]
        assert not [name for name in answer["requests"] if not name.startswith("data:")]
        assert answer["before"] == answer["once"] == sorted(answer["before"])
        assert answer["twice"] == answer["once"][::-1] != answer["once"]
        assert answer["sorted"] == "descending"


@browser
@pytest.mark.slow
def test_browser_would_show_what_is_broken(written, tmp_path):
    text = written["page"].read_text().replace("data:image/svg+xml;base64,P", "data:image/svg+xml;base64,Q", 1)
    broken = text.replace("<main>", '<main><div style="width: 3000px">wide</div><script>missing()</script>')
    answers, console = probe(broken, tmp_path / "frames")
    assert all(0 in answer["images"] for answer in answers)
    assert all(answer["widthOfContent"] > answer["width"] for answer in answers)
    assert any("missing is not defined" in line for line in console)


@browser
@pytest.mark.slow
@pytest.mark.parametrize("has_policy", [True, False])
def test_page_policy_stops_requests(written, tmp_path, has_policy):
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        text = written["page"].read_text().replace("<main>", f'<main><img src="{address}/image.png">')
        if not has_policy:
            text = text.replace("Content-Security-Policy", "other")
        (tmp_path / "page.html").write_text(text)
        open_in_browser(tmp_path / "page.html", tmp_path)
        server.shutdown()
    assert asked == ([] if has_policy else ["/image.png"])
