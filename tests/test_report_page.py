"""The command report: one page that stands alone, and the same as Markdown and CSV."""

import base64
import csv
import html.parser
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from proact_onnx.campaign import read_record
from proact_onnx.errors import CampaignError, OutputError
from proact_onnx.report import write_report
from proact_onnx.report.repeat import commands
from tests.command_line import Command, snapshot
from tests.comparisons import comparison, write_record

HOSTILE = "<img src=x onerror=alert(1)>|[x](javascript:y)$_.onnx"
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Reads a page as a browser does, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    def pictures(self) -> list[str]:
        """The figures, as SVG."""
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        beginning = "data:image/svg+xml;base64,"
        assert all(source.startswith(beginning) for source in sources)
        return [base64.b64decode(source.removeprefix(beginning)).decode() for source in sources]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def measured(command: Command, project: Path) -> Path:
    """A campaign on two models, and a study of the last layer."""
    shutil.copy(project / "digits.onnx", project / "other.onnx")
    quick = ["--trials", 12, "--images", 20]
    assert command("inject", "digits.onnx", "other.onnx", "--ber", "1e-6,1e-5", *quick).code == 0
    study = ["--layers", "*classifier.3*", "--bits", "24-31", "--trials", 2, "--images", 10]
    assert command("sensitivity", "digits.onnx", *study).code == 0
    return project


def test_a_report_holds_what_inject_and_sensitivity_found(measured: Path, command: Command) -> None:
    runs = ["digits.campaign.jsonl", "other.campaign.jsonl", "digits.sensitivity.jsonl"]
    for name in ("digits.onnx", "other.onnx", "test.npz", "proact.toml"):
        (measured / name).unlink()
    outcome = command("report", *runs, "--markdown", "report.md", "--csv-folder", "tables")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[:2] == ["report: report.html", "as Markdown: report.md"]
    page = read(measured / "report.html")
    assert len(page.pictures()) == 2
    assert all("<svg" in picture for picture in page.pictures())
    [summary] = [
        row
        for row in csv.DictReader(io.StringIO((measured / "digits.campaign.csv").read_text()))
        if row["fault"] == "ber=1e-05"
    ]
    shown = next(row for row in page.rows if row[0] == "BER 1e-5" and len(row) == 10)
    for place, column in ((3, "accuracy"), (5, "drop"), (6, "sdc"), (9, "accuracy_worst")):
        assert shown[place] == f"{100 * float(summary[column]):z.2f}"
    # The same model twice: no difference at any rate.
    gains = [row[1] for row in page.rows if len(row) == 2 and row[1].startswith("+0.00 [")]
    assert len(gains) == 2
    tables = sorted(path.name for path in (measured / "tables").iterdir())
    copied = "campaign-1-digits-onnx.csv"
    assert copied in tables
    assert (measured / "tables" / copied).read_text() == (
        measured / "digits.campaign.csv"
    ).read_text()
    assert (measured / "tables" / "sensitivity-1-digits-onnx.csv").read_text() == (
        measured / "digits.sensitivity.csv"
    ).read_text()
    markdown = (measured / "report.md").read_text()
    for row in page.rows:
        for cell in row:
            assert cell.replace("|", "") in markdown.replace("\\", "").replace("**", "")
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(figures) == 2
    assert [(measured / name).read_text() for name in figures] == page.pictures()


def test_the_commands_of_a_report_measure_the_same_again(measured: Path, command: Command) -> None:
    for name in ("digits.campaign.jsonl", "digits.sensitivity.jsonl"):
        [line] = commands(read_record(measured / name))
        (measured / "again").mkdir(exist_ok=True)
        outcome = command(*shlex.split(line)[1:], "--output-folder", "again")
        assert outcome.code == 0, outcome.err
        before, after = ((measured / place / name).read_text() for place in (".", "again"))
        assert before.splitlines()[1:] == after.splitlines()[1:]
        headers = [json.loads(text.splitlines()[0]) for text in (before, after)]
        assert headers[0]["identity"] == headers[1]["identity"]


def test_commands_of_other_faults(measured: Path, command: Command) -> None:
    """Stuck bits in bursts, counts, and single upsets, which take a command of their own."""
    options = ["--layers", "*classifier.3*", "--images", 10, "--seed", 3, "--mean", "0.5"]
    faults = ["--flips", "2,5", "--effect", "stuck-at-1,flip", "--burst", "1,2", "--trials", 5]
    assert command("inject", "digits.onnx", "--force", *options, *faults).code == 0
    single = ["--single", "--trials", 7, "--burst", 2, "--burst-along", "words"]
    assert command("inject", "digits.onnx", *options, *single).code == 0
    lines = commands(read_record(measured / "digits.campaign.jsonl"))
    assert len(lines) == 2
    (measured / "again").mkdir()
    for line in lines:
        outcome = command(*shlex.split(line)[1:], "--output-folder", "again")
        assert outcome.code == 0, outcome.err
    before, after = (
        sorted((measured / place / "digits.campaign.jsonl").read_text().splitlines()[1:])
        for place in (".", "again")
    )
    assert before == after


def test_a_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    write_report([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "link" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {f"#{anchor}" for anchor in anchors} == {*links}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    tables = [tag for tag, _ in page.tags if tag == "table"]
    boxes = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(tables) == len(boxes) > 5


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    for name in ("first.html", "second.html"):
        write_report([folder, folder / "proact.campaign.jsonl"], tmp_path / name)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_what_files_say_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    for number in range(2):
        write_record(tmp_path / f"{number}.jsonl", HOSTILE, 90, (80, 70))
    folder = comparison(tmp_path / "c", model=HOSTILE, command="</pre><script>alert(1)</script>")
    runs = [tmp_path / "0.jsonl", tmp_path / "1.jsonl", folder]
    written = write_report(
        runs, tmp_path / "r.html", tmp_path / "r.md", tmp_path / "csv", title="<h1>&amp;"
    )
    page = read(tmp_path / "r.html")
    assert {"script", "h1>"}.isdisjoint(tag for tag, _ in page.tags)
    assert len(page.pictures()) == len([tag for tag, _ in page.tags if tag == "img"]) == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = "".join(page.text)
    assert HOSTILE in shown
    assert "</pre><script>alert(1)</script>" in shown
    assert shown.count("<h1>&amp;") == 2
    markdown = (tmp_path / "r.md").read_text()
    unfenced = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert "<img" not in unfenced
    assert not re.search(r"(?<!\\)\]\(javascript", unfenced)
    assert all(path.parent == tmp_path / "csv" for path in written.tables)


def test_a_comparison_as_the_tables_of_the_paper(tmp_path: Path) -> None:
    write_report([comparison(tmp_path / "c") / "comparison.json"], tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    for row in (
        ["ProAct (hybrid)", "1.00 [0.50, 1.50]"],
        ["ProAct (hybrid)", "0.25 (14)"],
        ["ProAct (hybrid)", "0.5 [0.5, 2]"],
        ["ProAct (hybrid)", "4 min 39 s (22)"],
    ):
        assert row in page.rows
    text = "".join(page.text)
    assert "points gained over ProAct (hybrid) under the same faults" in text
    heads = ["model", "faults", "accuracy", "the other's", "difference"]
    most = page.rows[page.rows.index(heads) + 1]
    assert most[:2] == ["unprotected", "BER 1e-5"]
    assert [cell.split(" ")[0] for cell in most[2:]] == ["10.00", "80.00", "-70.00"]
    assert "proact-onnx compare net.onnx" in text
    for digest in ("0" * 64, "1" * 64, "2" * 64, "a" * 64, "d" * 64):
        assert digest in text
    accuracy, thresholds = page.pictures()
    assert "magnified" in accuracy
    assert "largest activation" in thresholds


def test_campaigns_under_other_conditions_are_parts_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    write_record(paths[0], "a.onnx", 90, (80, 70))
    write_record(paths[1], "b.onnx", 90, (80, 70), {"seed": 8})
    write_record(paths[2], "c.onnx", 90, (80, 70), {"model": "c" * 64, "images": "pilot"})
    write_report(paths, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    text = "".join(page.text)
    assert "Accuracy under faults, part 2" in text
    assert "points gained over a.onnx" in text
    assert ["", "c.onnx"] in page.rows
    assert ["", "b.onnx"] not in page.rows


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in paths:
        write_record(path, "net.onnx", 90, (80, 70))
    write_report([*paths, paths[0]], tmp_path / "report.html")
    rows = read(tmp_path / "report.html").rows
    assert ["", *(f"net.onnx ({path})" for path in paths)] in rows


def test_levels_may_not_differ_unless_one_is_chosen(tmp_path: Path) -> None:
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, level in zip(paths, (0.95, 0.99), strict=True):
        write_record(path, "net.onnx", 90, (80, 70), confidence=level)
    with pytest.raises(CampaignError) as caught:
        write_report(paths, tmp_path / "report.html")
    assert str(caught.value) == (
        f"the intervals of {paths[0]} are at 95 % and those of {paths[1]} at 99 %: choose one "
        "level with --confidence, or report on them apart"
    )
    write_report(paths, tmp_path / "report.html", confidence=0.9)
    assert "Intervals are at 90 %" in (tmp_path / "report.html").read_text()
    folder = comparison(tmp_path / "c")
    with pytest.raises(CampaignError, match="were computed at 95 %: leave --confidence out"):
        write_report([folder], tmp_path / "other.html", confidence=0.9)


def test_what_exists_is_kept_unless_it_may_go(tmp_path: Path) -> None:
    record = tmp_path / "one.jsonl"
    write_record(record, "net.onnx", 90, (80, 70))
    write_report([record], tmp_path / "report.html", tmp_path / "report.md")
    before = snapshot(tmp_path)
    (tmp_path / "report.html").unlink()
    with pytest.raises(OutputError, match=r"report\.md already exists: choose another name"):
        write_report([record], tmp_path / "report.html", tmp_path / "report.md")
    assert not (tmp_path / "report.html").exists()
    write_report([record], tmp_path / "report.html", tmp_path / "report.md", force=True)
    assert snapshot(tmp_path) == before
    with pytest.raises(OutputError, match="is what the report is about: choose another name"):
        write_report([record], record, force=True)
    folder = comparison(tmp_path / "c")
    with pytest.raises(OutputError, match="is what the report is about"):
        write_report([folder], folder / "proact.campaign.jsonl", force=True)
    assert read_record(record)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ("missing.jsonl", "cannot read missing.jsonl: No such file or directory"),
        ("proact.toml", "proact.toml is not the record of a campaign: "),
        ("digits.onnx", "digits.onnx is not the record of a campaign: "),
        (
            ".",
            ". holds no comparison.json: name a folder that compare wrote, or the .jsonl records",
        ),
    ],
)
def test_what_is_no_run_is_named_in_one_sentence(
    run: str, sentence: str, command: Command, project: Path
) -> None:
    outcome = command("report", run)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {sentence}")
    assert len(outcome.err.splitlines()) == 1
    assert not (project / "report.html").exists()


def test_other_mistakes_are_named_in_one_sentence(command: Command, project: Path) -> None:
    write_record(project / "run.jsonl", "net.onnx", 90, (80, 70))
    for options, sentence in (
        (
            ["--output", "missing/report.html"],
            "cannot write missing/report.html: create the folder",
        ),
        (["--confidence", 95], "confidence must be between 0.5 and 0.9999, not 95: choose another"),
        (["--csv-folder", "missing/csv"], "cannot make the folder missing/csv: No such file"),
    ):
        outcome = command("report", "run.jsonl", *options)
        assert outcome.code == 1
        assert sentence in outcome.err
        assert len(outcome.err.splitlines()) == 1
