"""Several runs on one page, from their stored records alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from test_comparison_page import made_up
from test_page import Page
from typer.testing import CliRunner

from secateur.cli import app
from secateur.comparison import save_comparison
from secateur.errors import InputError
from secateur.report.merged_page import (
    networks_table,
    render_merged,
    report_links,
    write_merged,
)
from secateur.report.stored import load_run
from secateur.results import Result, save_result


def other(result: Result) -> Result:
    """The same dense network, cut less and more accurate."""
    quality = dataclasses.replace(result.pruned.quality, accuracy=0.9722)
    size = dataclasses.replace(result.pruned.size, macs=4_456_172, params=300_000)
    pruned = dataclasses.replace(result.pruned, quality=quality, size=size)
    return dataclasses.replace(result, title="Cut less", pruned=pruned)


@pytest.fixture
def folders(result: Result, tmp_path: Path) -> list[Path]:
    found = [tmp_path / "first" / "run", tmp_path / "second" / "run", tmp_path / "study"]
    for folder in found:
        folder.mkdir(parents=True)
    save_result(result, found[0] / "result.json")
    save_result(other(result), found[1] / "result.json")
    save_comparison(made_up(), found[2] / "comparison.json")
    return found


def test_networks_stand_side_by_side(result: Result, tmp_path: Path) -> None:
    page = write_merged({"a": result, "b": other(result)}, tmp_path / "merged")
    text = page.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "Like for like" in text
    assert "Cut less of b: 97.22 % on test, 50.0 % of the MACs" in text
    rows = list(csv.DictReader((tmp_path / "merged" / "networks.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert float(rows[1]["macs"]) == 4_456_172 / 8_912_345
    assert float(rows[0]["change"]) == result.pruned.quality.accuracy - 0.975
    assert float(rows[0]["time"]) == 2104.0 / 2893.0
    content = json.loads((tmp_path / "merged" / "runs.json").read_text())
    assert [row["run"] for row in content["rows"]] == ["a", "b"]
    assert (tmp_path / "merged" / "a" / "classes.csv").is_file()


def test_other_dense_networks_are_said(result: Result) -> None:
    quality = dataclasses.replace(result.dense.quality, count=100)
    odd = dataclasses.replace(result, dense=dataclasses.replace(result.dense, quality=quality))
    text = render_merged({"a": result, "b": odd})
    assert "Not like for like: the runs have 2 different dense networks" in text


def test_studies_give_their_frontier_and_what_they_chose(folders: list[Path]) -> None:
    from secateur.report.merged_page import _networks

    study = load_run(folders[2])
    rows = networks_table(tuple(_networks("study", study))).rows
    names = [str(row[0].value) for row in rows]
    assert any(name.endswith("(chosen)") for name in names)
    assert 0 < len(rows) < len(study.trials)  # type: ignore[union-attr]


class TestLinks:
    """A run's own page is reached from the merged one, wherever a browser opens that."""

    def homes(self, folders: list[Path]) -> dict[str, Path]:
        """Two runs: only the first has its page, in a folder that a link must quote."""
        odd = folders[0].with_name('a: "#1" <50 %>?')
        folders[0].rename(odd)
        (odd / "report.html").write_text("own page", encoding="utf-8")
        return {"<b>first</b>": odd, "second": folders[1]}

    def merged(self, homes: dict[str, Path], folder: Path) -> Page:
        records = {name: load_run(home) for name, home in homes.items()}
        write_merged(records, folder, homes)  # type: ignore[arg-type]
        return Page((folder / "report.html").read_text(encoding="utf-8"))

    def outward(self, page: Page) -> list[dict[str, str | None]]:
        return [one for one in page.all("a") if not str(one["href"]).startswith("#")]

    def test_a_link_leads_to_the_page(self, folders: list[Path], tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "merged"
        page = self.merged(self.homes(folders), folder)
        (link,) = self.outward(page)
        assert link["aria-label"] == "Open the report of <b>first</b>"
        # As a browser finds it: the address of the page, and the link seen from there.
        seen = urlsplit(urljoin((folder / "report.html").as_uri(), str(link["href"])))
        assert (seen.scheme, seen.query, seen.fragment) == ("file", "", "")
        assert Path(unquote(seen.path)).resolve().read_text() == "own page"
        rows = json.loads((folder / "runs.json").read_text())["rows"]
        assert [row["report"] for row in rows] == [link["href"], None]
        assert (folder / "runs.csv").read_text().startswith("run,report,title,")

    def test_the_folders_can_move_together(self, folders: list[Path], tmp_path: Path) -> None:
        homes = self.homes(folders)
        (link,) = self.outward(self.merged(homes, tmp_path / "first" / "merged"))
        assert str(link["href"]).startswith("../a%3A%20")
        (tmp_path / "first").rename(tmp_path / "moved")
        where = (tmp_path / "moved" / "merged" / "report.html").as_uri()
        assert Path(unquote(urlsplit(urljoin(where, str(link["href"]))).path)).is_file()

    def test_beside_each_other_a_colon_is_no_scheme(self, tmp_path: Path) -> None:
        (tmp_path / "a:b").mkdir()
        (tmp_path / "a:b" / "report.html").write_text("")
        assert report_links({"x": tmp_path / "a:b"}, tmp_path) == {"x": "a%3Ab/report.html"}

    def test_without_pages_there_is_no_column(self, folders: list[Path], tmp_path: Path) -> None:
        homes = {"first": folders[0], "second": folders[1]}
        page = self.merged(homes, tmp_path / "merged")
        assert self.outward(page) == []
        assert (tmp_path / "merged" / "runs.csv").read_text().startswith("run,title,")

    def test_on_another_drive_the_whole_address_is_given(
        self, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object) -> str:
            raise ValueError("path is on mount 'D:', start on mount 'C:'")

        homes = self.homes(folders)
        monkeypatch.setattr("secateur.report.merged_page.os.path.relpath", refused)
        (link,) = report_links(homes, tmp_path).values()
        assert link.startswith("file:///")

    def test_a_run_does_not_lose_its_page(self, folders: list[Path]) -> None:
        homes = self.homes(folders)
        before = (homes["<b>first</b>"] / "report.html").read_text()
        with pytest.raises(InputError, match="none of the runs' own"):
            self.merged(homes, homes["<b>first</b>"])
        assert (homes["<b>first</b>"] / "report.html").read_text() == before


def test_one_run_is_no_merge(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        write_merged({"a": result}, tmp_path)


class TestVerb:
    def test_folders_are_merged(self, folders: list[Path], tmp_path: Path) -> None:
        (folders[1] / "report.html").write_text("own page")
        words = ["report", *map(str, folders), "--output", str(tmp_path / "merged")]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout == f"report: {tmp_path / 'merged' / 'report.html'}\n"
        rows = json.loads((tmp_path / "merged" / "runs.json").read_text())["rows"]
        assert [row["report"] for row in rows] == [None, "../second/run/report.html", None]
        # Two folders of one name are told apart by what they lie in.
        assert (tmp_path / "merged" / "first-run" / "results.csv").is_file()
        assert (tmp_path / "merged" / f"{tmp_path.name}-study" / "setups.csv").is_file()

    def test_one_folder_is_drawn_again_with_its_tables(self, folders: list[Path]) -> None:
        outcome = CliRunner().invoke(app, ["report", str(folders[0])])
        assert outcome.exit_code == 0, outcome.output
        assert {"report.html", "results.csv", "layers.json"} <= {
            path.name for path in folders[0].iterdir()
        }

    def test_mistakes_are_told(self, folders: list[Path], tmp_path: Path) -> None:
        for words, told in (
            ([str(tmp_path)], "must hold a finished run"),
            ([str(folders[0]), str(folders[0])], "named once"),
            ([str(folders[0]), "--output", "x"], "must not be given for one folder"),
        ):
            outcome = CliRunner().invoke(app, ["report", *words])
            assert outcome.exit_code == 2
            assert told in outcome.stderr

    def test_no_torch_is_needed(self, folders: list[Path], tmp_path: Path) -> None:
        code = (
            "import sys; from secateur.cli import app\n"
            f"app(['report', {str(folders[0])!r}, {str(folders[2])!r}, '-o', "
            f"{str(tmp_path / 'merged')!r}], standalone_mode=False)\n"
            "assert 'torch' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
