"""The report opened in headless Chromium: it asks for nothing, and no table is clipped without a cue."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from pipeline.report import content

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(report, tmp_path):
    """Opened in headless Chromium: laid out, no error on the console, and no address but the page's own looked up."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--log-level=0"]  # fmt: skip

    def opened(page: pathlib.Path) -> tuple[list[str], set[str], int]:
        """Lines of its console, addresses that it asked for, and the size of its picture."""
        log, picture = tmp_path / "net.json", tmp_path / "page.png"
        found = subprocess.run(
            [CHROMIUM, *flags, f"--user-data-dir={tmp_path / page.stem}", f"--log-net-log={log}", "--window-size=400,900",
             "--virtual-time-budget=3000", f"--screenshot={picture}", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return [line for line in found.stderr.splitlines() if "CONSOLE" in line], requested(log), picture.stat().st_size

    lines, addresses, size = opened(report[0] / "report.html")
    assert (lines, addresses) == ([], set())
    assert size > 10_000
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://example.invalid/x.png'><script>console.error('no')</script>")
    lines, addresses, _ = opened(bad)  # the check sees what it must
    assert len(lines) == 1 and addresses == {"http://example.invalid/x.png"}


PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  setTimeout(() => {
    const shown = one => { const at = one.getBoundingClientRect(); return at.height > 12 && at.width > 100 && at.left >= 0
      && at.left + 100 < innerWidth && getComputedStyle(one).visibility == "visible" };
    const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(x => x / 255)
      .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
    const behind = one => { for (; one; one = one.parentElement) { const color = getComputedStyle(one).backgroundColor;
      if (/^rgb\\(/.test(color)) return color } return "rgb(255, 255, 255)" };
    const contrast = one => { const [a, b] = [getComputedStyle(one).color, behind(one)].map(light).sort((x, y) => y - x);
      return (a + .05) / (b + .05) };
    const tables = [...document.querySelectorAll(".table")].map(one => ({ name: one.querySelector("table").id,
      clipped: one.firstElementChild.scrollWidth > one.firstElementChild.clientWidth + 1,
      cue: shown(one.querySelector(".cue")) }));
    const texts = [...document.querySelectorAll("p, td, th, .token, .cue, figcaption, .card span")].filter(shown);
    parent.document.body.append(Object.assign(parent.document.createElement("pre"), { className: "found",
      textContent: JSON.stringify({ name: window.name, width: innerWidth, tables,
        dark: matchMedia("(prefers-color-scheme: dark)").matches,
        overflow: document.documentElement.scrollWidth - innerWidth,
        contrast: Math.min(...texts.map(contrast)),
        smallest: Math.min(...texts.map(one => parseFloat(getComputedStyle(one).fontSize))) }) }));
  }, 300) }, 300));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_table_is_clipped_without_a_cue(report, tmp_path, scheme):
    """At the widths of a desk and of a telephone, in both schemes; nothing else is wider than the page."""
    page = (report[0] / "report.html").read_text() + PROBE
    pages = {"desk": (1280, page), "telephone": (390, page), "without": (390, page.replace("@keyframes cue", "@keyframes x"))}
    frames = [
        f'<iframe name="{name}" style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        for name, (width, text) in pages.items()
    ]
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{''.join(frames)}")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
         "--hide-scrollbars", f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
         f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=2100,1000", "--virtual-time-budget=30000", "--dump-dom", (tmp_path / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    found = [json.loads(html.unescape(one)) for one in re.findall(r'<pre class="found">(.*?)</pre>', done.stdout)]
    by_name = {one["name"]: one for one in found}
    assert {name: one["width"] for name, one in by_name.items()} == {name: width for name, (width, _) in pages.items()}
    count = sum(len(group) for group in content.all_tables(report[1]).values())
    for name in ("desk", "telephone"):
        one = by_name[name]
        assert len(one["tables"]) == count and one["dark"] == (scheme == "dark")
        assert [table for table in one["tables"] if table["clipped"] != table["cue"]] == []
        assert one["overflow"] <= 0 and one["contrast"] >= 4.5 and one["smallest"] >= 12
    # The probe sees what it must: on a telephone there are clipped tables, and without the rule they have no cue.
    assert any(table["clipped"] for table in by_name["telephone"]["tables"])
    assert any(table["clipped"] and not table["cue"] for table in by_name["without"]["tables"])


def requested(log: pathlib.Path) -> set[str]:
    """Addresses that Chromium's network log says it asked for, the file itself aside."""
    text = log.read_text()
    found = set(re.findall(r'"url":"([^"]+)"', text))
    return {url for url in found if not url.startswith(("file:", "data:", "chrome", "about:", "devtools:"))
            and "googleapis.com" not in url and "google.com" not in url and "gvt1.com" not in url}  # fmt: skip
