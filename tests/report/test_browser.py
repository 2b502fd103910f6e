"""The report in a real browser, where one is installed: it asks for nothing, complains of nothing, all is legible."""

import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import report_results

from gemma4_quant.report.comparison import compare_runs
from gemma4_quant.report.page import html_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
WIDTHS = (1280, 400)

# Frames of both widths, and what a script outside of them measures inside.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
function overlap(a, b) {{
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  return across > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
}}
window.addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, collisions = [], outside = [];
    for (const details of page.querySelectorAll("details")) details.open = true;
    for (const svg of page.querySelectorAll("svg")) {{
      const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
      const seen = texts.filter(([, box]) => box.width > 0), edge = svg.getBoundingClientRect();
      for (const [i, [name, box]] of seen.entries()) {{
        if (box.left < edge.left - 1 || box.right > edge.right + 1) outside.push(name);
        for (const [other, its] of seen.slice(i + 1)) if (overlap(box, its)) collisions.push([name, other]);
      }}
    }}
    return {{
      scroll: page.documentElement.scrollWidth, width: page.documentElement.clientWidth, collisions, outside,
      pictures: [...page.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width > 0).length,
      small: [...page.querySelectorAll("body *")].filter((e) => e.checkVisibility() && e.childNodes.length
        && parseFloat(getComputedStyle(e).fontSize) < 11).map((e) => e.tagName),
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def browse(page: Path, folder: Path) -> tuple[list[dict], str, list[str]]:
    """Open a page in frames; return what was measured in each, the browser's messages, and addresses it asked for."""
    frames = "".join(f'<iframe src="{page.as_uri()}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    outer = folder / "outer.html"
    outer.write_text(MEASURE.format(frames=frames))
    log = folder / "net.json"
    command = [
        CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr",
        "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(done.stdout.split('<pre id="found">')[1].split("</pre>")[0]))
    return found, done.stderr, addresses(log)


def addresses(log: Path) -> list[str]:
    """Return what pages asked for, but for files; what the browser asks for itself has no origin."""
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # the browser was gone before it closed the list
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    found = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = [params["url"] for params in found if params["initiator"] != "not an origin"]
    return [address for address in asked if not address.startswith(("file:", "data:"))]


@pytest.fixture(scope="module", params=["usual", "hostile"])
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    result = report_results.bench_result(13) if request.param == "usual" else report_results.hostile_result()
    page = folder / "report.html"
    page.write_text(html_report(result, compare_runs(report_results.bench_result(3), result)))
    return browse(page, folder)


def test_requests_and_complaints_would_be_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<p style="width: 2000px">x</p><img src="http://example.invalid/x"><script>console.error("no")</script>'
    )
    found, messages, asked = browse(page, tmp_path)
    assert asked == ["http://example.invalid/x"] * len(WIDTHS)
    assert "CONSOLE" in messages
    assert found[1]["scroll"] > found[1]["width"]


def test_the_browser_has_nothing_to_complain_about(opened):
    _, messages, _ = opened
    assert [line for line in messages.splitlines() if "CONSOLE" in line] == []


def test_nothing_is_asked_for_but_the_file(opened):
    _, _, asked = opened
    assert asked == []


def test_pages_are_as_wide_as_their_windows(opened):
    found, _, _ = opened
    assert len(found) == len(WIDTHS)
    for each in found:
        assert each["scroll"] <= each["width"]


def test_each_width_has_its_own_pictures_and_no_text_of_them_overlaps_or_is_cut(opened):
    found, _, _ = opened
    assert found[0]["pictures"] == found[1]["pictures"] > 4
    for each in found:
        assert each["collisions"] == []
        assert each["outside"] == []


def test_no_text_is_too_small_to_read(opened):
    found, _, _ = opened
    for each in found:
        assert each["small"] == []
