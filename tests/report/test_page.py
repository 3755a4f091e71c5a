from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from secateur.errors import InputError
from secateur.report import write_report
from secateur.report.page import _dotted, _together, render
from secateur.results import Result, save_result

VOID = {"meta", "link", "br", "input", "img", "hr", "wbr"}


class Page(HTMLParser):
    """Collects elements and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def page(result: Result) -> Page:
    return Page(render(result))


def test_one_small_file_with_nothing_outside(result: Result, tmp_path: Path, page: Page) -> None:
    path = write_report(result, tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_size < 6_000_000
    references = [
        value
        for _, attrs in page.elements
        for key, value in attrs.items()
        if key in {"src", "href", "data", "action", "srcset"}
    ]
    assert all(one and one.startswith(("#", "data:")) for one in references)
    (policy,) = [one for one in page.all("meta") if one.get("http-equiv")]
    assert str(policy["content"]).startswith("default-src 'none';")


def test_same_result_same_bytes(result: Result, tmp_path: Path) -> None:
    first = write_report(result, tmp_path / "a.html").read_bytes()
    program = (
        "import sys; from pathlib import Path; from secateur.report import write_report; "
        "from secateur.results import load_result; "
        "write_report(load_result(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    save_result(result, tmp_path / "result.json")
    arguments = [str(tmp_path / "result.json"), str(tmp_path / "b.html")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    assert (tmp_path / "b.html").read_bytes() == first


def test_reads_results_without_torch() -> None:
    program = "import sys, secateur.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_headings_go_down_one_step_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_scopes(page: Page) -> None:
    assert len(page.all("table")) == len(page.all("caption")) == 13
    assert {attrs.get("scope") for attrs in page.all("th")} == {"col", "row"}


def test_figures_have_names_and_words(page: Page, result: Result) -> None:
    ids = [str(attrs["id"]) for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    plots = [attrs for attrs in page.all("div") if attrs.get("class") == "plot"]
    assert [plot["id"] for plot in plots] == [
        "plot-accuracy",
        "plot-widths",
        "plot-training",
        "plot-confusion",
    ]
    for plot in plots:
        assert plot["role"] == "img"
        assert plot["aria-label"]
        assert plot["aria-describedby"] in ids
    labels = [attrs.get("aria-labelledby") for _, attrs in page.elements]
    assert all(label in ids for label in labels if label)
    links = [str(attrs["href"]) for attrs in page.all("a")]
    assert all(link[1:] in ids for link in links)


def test_everything_asked_and_found_is_there(page: Page, result: Result) -> None:
    text = "".join(page.words).replace("\u00a0", " ")
    for wanted in (
        result.title,
        "486,607",
        "94.62 to 98.28 %",
        "2 dimensions pinned: model output",
        "block2.conv",
        "Imaginary 9000, 2 cores",
        "finetune.optimizer",
        "Two images could not be read and were skipped.",
        "Proved",
    ):
        assert wanted in text
    assert result.command in "".join(page.words)


@pytest.mark.parametrize("change", [{"ok": False}, {"changed": False}])
def test_a_failed_check_is_not_called_proved(result: Result, change: dict[str, bool]) -> None:
    check = dataclasses.replace(result.check, **change)
    words = "".join(Page(render(dataclasses.replace(result, check=check))).words)
    assert "Not proved" in words


def test_every_text_is_escaped(result: Result) -> None:
    bad = "</script></style><script>alert(1)</script>&\"'"
    hostile = dataclasses.replace(
        result,
        title=bad,
        command=bad,
        asked={bad: {bad: bad}},
        environment={bad: bad},
        notes=(bad,),
        given_back={bad: 1},
        points=tuple(dataclasses.replace(one, criterion=bad, split=bad) for one in result.points),
        widths=tuple(dataclasses.replace(one, layer=bad) for one in result.widths),
        history=tuple(dataclasses.replace(one, phase=bad) for one in result.history),
        pinned=tuple(dataclasses.replace(one, name=bad, reason=bad) for one in result.pinned),
    )
    text = render(hostile)
    assert "alert(1)</script>" not in text
    page = Page(text)
    assert len(page.all("script")) == len(Page(render(result)).all("script"))
    assert bad in "".join(page.words)


def test_a_bare_result_has_no_empty_parts(result: Result) -> None:
    bare = dataclasses.replace(
        result,
        points=(),
        widths=(),
        history=(),
        pinned=(),
        given_back={},
        notes=(),
        asked={},
        environment={},
        command="",
        facts=None,
    )
    text = render(bare)
    page = Page(text)
    assert [attrs["id"] for attrs in page.all("section")] == ["summary", "results", "kept", "proof"]
    assert len(text) < 100_000


def test_a_thousand_networks_fit(result: Result) -> None:
    points = tuple(
        dataclasses.replace(point, criterion=f"{point.criterion}-{turn}")
        for turn in range(14)
        for point in result.points
    )
    assert len(points) > 1_000
    assert len(render(dataclasses.replace(result, points=points)).encode()) < 6_000_000


def test_what_is_no_number_sorts_by_its_text(page: Page) -> None:
    values = [str(one["data-value"]) for one in page.all("td") if "data-value" in one]
    assert "True" not in values
    assert [float(one) for one in values]


def test_a_long_name_breaks_after_its_dots() -> None:
    assert _dotted("layer1.0.conv1") == "layer1.<wbr>0.<wbr>conv1"
    assert _dotted("<b>. A sentence. 5.") == "&lt;b&gt;. A sentence. 5."


def test_a_number_stays_with_its_unit() -> None:
    together = _together("5 % of 3 networks, 1.2 M, 3 kB, 4.4e-15 at batch 64, 2 points, 1 street")
    assert together == (
        "5\u00a0% of 3 networks, 1.2\u00a0M, 3\u00a0kB, 4.4e-\u206015 at batch\u00a064, "
        "2\u00a0points, 1 street"
    )


@pytest.mark.parametrize(
    ("path", "message"), [("", "path must be a file"), ("no/report.html", "does not exist")]
)
def test_a_path_that_cannot_be_written_is_refused(
    result: Result, tmp_path: Path, path: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_report(result, tmp_path / path)
    assert list(tmp_path.iterdir()) == []
