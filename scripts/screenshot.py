"""Draw docs/images/look.webp: a page of `rcnn look`, in a real browser.

    python scripts/screenshot.py blood-cells bccd --page /explain/300

Needs Playwright and Chromium, found by `CHROMIUM` or on the PATH.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SIZE = {"width": 1280, "height": 800}
QUALITY = 82


def main() -> None:
    """Start the server, open the page, and save a screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--page", default="/explain/0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "look.webp")
    options = parser.parse_args()
    command = [sys.executable, "-m", "rcnn", "look", options.model, options.data, "--no-open"]
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        ) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        address = next(line.strip() for line in server.stdout if line.startswith("http"))
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.wait_for_selector(".tile .numbers b", timeout=120_000)
        page.goto(address.partition("/pictures")[0] + options.page)
        page.wait_for_selector("#counts dd, #layers input, #suggestion:not([hidden]), #shown section", timeout=120_000)
        page.wait_for_timeout(1000)
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
        server.terminate()
    picture.save(options.out, "WEBP", quality=QUALITY, method=6)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
