"""Take the picture of the browser window that the README shows.

    treadle train ddpg ArmHard --seeds 5 --out runs/arm
    treadle evaluate runs/arm
    python docs/screenshot.py runs/arm

Needs Debian's chromium, or another at TREADLE_CHROMIUM, and playwright.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).resolve().parent / "images" / "watch.png"
WIDTH, HEIGHT = 1200, 1165
START, INSIDE = 7, 30
"""The start that is shown, and when: at the step by which the finger has been inside the goal for so many."""
PAUSED = """inside => {
    const number = id => parseFloat(document.getElementById(id).textContent.replace("\u2212", "-"));
    if (number("reward") > 0) window.inside = (window.inside ?? number("t")); else delete window.inside;
    if (!(number("t") >= window.inside + inside)) return false;
    document.getElementById("play").click();
    return true;
}"""


def take(page: Page, url: str) -> None:
    """Play until the finger has been inside the goal for a while, and pause."""
    page.goto(url)
    page.wait_for_selector("#controls:not([inert])")
    page.fill("#start", str(START))
    page.press("#start", "Enter")
    page.wait_for_function(PAUSED, arg=INSIDE, polling=50)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)
    page.screenshot(path=str(PICTURE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of a run that has finished")
    run = parser.parse_args().run
    command = [sys.executable, "-m", "treadle", "watch", run, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+/", server.stdout.readline())
            assert address is not None, "the server did not start"
            with sync_playwright() as playwright:
                path = os.environ.get("TREADLE_CHROMIUM", "/usr/bin/chromium")
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                take(browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5), address[0])
                browser.close()
        finally:
            server.terminate()
    print(f"Written to {PICTURE.relative_to(PICTURE.parent.parent.parent)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
