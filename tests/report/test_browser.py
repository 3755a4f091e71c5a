"""The page in a real browser, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from secateur.report import write_report
from secateur.results import Result

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs Chromium"),
]


def test_figures_draw_and_tables_sort_without_complaint(result: Result, tmp_path: Path) -> None:
    page = write_report(result, tmp_path / "report.html")
    # A click that is written into the page stands in for a hand on the mouse.
    click = (
        "<script>document.querySelectorAll('#table-points th button')[4].click();"
        "addEventListener('error', e => console.error(e.message));</script></body>"
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom "
        "--enable-logging=stderr --window-size=1280,20000"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [BROWSER, *flags.split(), profile, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    # The window is so high that all four figures are in sight, and drawn in three layers each.
    # Matched in elements only: the text of plotly is in the page as well.
    assert len(re.findall(r'<svg class="main-svg"', done.stdout)) == 12
    assert re.search(r'<th [^>]*aria-sort="ascending"><button type="button">Accuracy', done.stdout)
    body = done.stdout.split('id="table-points"')[1].split("<tbody>")[1].split("</tbody>")[0]
    values = [float(one) for one in re.findall(r'data-value="([^"]+)"><span>[^<]* %', body)][1::2]
    assert len(values) == len(result.points)
    assert values == sorted(values)
