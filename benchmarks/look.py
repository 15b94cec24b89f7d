"""`rcnn look`: time until a large folder and a large data set are shown, response time of a slider, and memory.

    python benchmarks/look.py [--pictures 100000] [--model blood-cells] [--folder /tmp]

Needs Playwright and Chromium, found by `CHROMIUM` or on the PATH. A few pictures are made, and linked under many
names. Times run from the line with the address, when the server is ready, to a thumbnail in the browser.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

SIZE = (480, 640)
MADE = 50
"""Number of different pictures."""

MOVES = 30
"""Values to which a slider is moved."""

MANY = ("rpn.pre_test=2000", "rpn.post_test=1000", "roi.score=0", "roi.detections=1000")

LOADED = """
import sys, rcnn
detector = rcnn.load(sys.argv[1]).with_settings(sys.argv[3:])
detector.predict(sys.argv[2])
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1])
"""
"""Prints the memory of a process that has loaded a detector and predicted a picture, in KiB."""

MOVE = """async ([name, value]) => {
  const labels = [...document.querySelectorAll("#sliders label")];
  const input = labels.find((one) => one.textContent.includes(name)).querySelector("input");
  const drawn = new Promise((done) => {
    const observer = new MutationObserver(() => done(observer.disconnect()));
    observer.observe(document.querySelector("#layers"), { childList: true }); // counts, with every drawing
  });
  const start = performance.now();
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  await drawn;
  return performance.now() - start;
}"""
"""Return the milliseconds from the move of a slider until the boxes change."""

PREDICTED = """() => {
  const text = document.querySelector("#count").textContent;
  return text && !text.includes("so far");
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--model", default="blood-cells")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with TemporaryDirectory(dir=options.folder) as temporary, sync_playwright() as playwright:
        top = Path(temporary)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        first_sight(browser, top, options.pictures)
        sliders(browser, top, options.model)
        browser.close()


def first_sight(browser: Any, top: Path, pictures: int) -> None:
    """Print the time until the page and the first thumbnail of many pictures are shown."""
    make(top / "set", pictures)
    for name, data in (("folder", "set/images"), ("labels, first time", "set"), ("labels, again", "set")):
        with server(top, str(top / data)) as (_, address):
            first, seen, said = sight(browser, address)
        print(f"{name}: page after {first:.2f} s, thumbnail after {seen:.2f} s {said}", flush=True)


def sliders(browser: Any, top: Path, model: str) -> None:
    """Print the response time of sliders on a picture with 1,000 proposals, and then the memory of the server."""
    make(top / "few", 40)
    with server(top, model, str(top / "few"), *MANY) as (process, address):
        page = browser.new_page(bypass_csp=True)
        page.goto(address)
        page.wait_for_function(PREDICTED, timeout=300_000)
        page.goto(address.partition("/pictures")[0] + "/pictures/0?score=0")
        page.wait_for_selector("#layers input")
        for name, score in (("score from", 0), ("IoU of NMS", 0), ("IoU of NMS", 0.5)):
            page.evaluate(MOVE, ["score from", score])
            boxes = page.locator("#boxes tbody tr").count()
            values = np.linspace(0.02, 0.9, MOVES).round(2).tolist()
            times = [page.evaluate(MOVE, [name, value]) for value in values]
            told = f"median {statistics.median(times):.0f} ms, most {max(times):.0f} ms"
            print(f"{name}, {boxes} boxes drawn at first: {told}", flush=True)
        mine = memory(process.pid)
    command = [sys.executable, "-c", LOADED, model, str(top / "few/images/0.jpg"), *MANY]
    bare = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    more = (mine - bare) / 1024
    print(f"memory: {mine / 1024:.0f} MiB; of a loaded detector {bare / 1024:.0f} MiB: {more:.0f} MiB more")


def make(folder: Path, number: int) -> None:
    """Write a COCO data set of `number` pictures with five objects each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for index in range(number):
        file = folder / f"images/{index}.jpg"
        if index < MADE:
            blocks = rng.integers(0, 255, (SIZE[0] // 20, SIZE[1] // 20, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(20, axis=0).repeat(20, axis=1)).save(file)
        else:
            os.link(folder / f"images/{index % MADE}.jpg", file)
        images.append({"id": index, "file_name": file.name, "height": SIZE[0], "width": SIZE[1]})
        for x, y in rng.integers(0, 400, (5, 2)).tolist():
            entry = {
                "id": len(annotations) + 1,
                "image_id": index,
                "category_id": 1 + x % 3,
                "iscrowd": 0,
                "area": 3200,
            }
            annotations.append({**entry, "bbox": [x, y, 80, 40]})
    categories = [{"id": 1 + place, "name": name} for place, name in enumerate(("Platelets", "RBC", "WBC"))]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/instances_train.json").write_text(json.dumps(document))


@contextmanager
def server(top: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `rcnn look`, and yield its process and address."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(top / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rcnn", "look", *words, "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=top) as process:
        assert process.stdout is not None
        try:
            yield process, next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.terminate()


def sight(browser: Any, address: str) -> tuple[float, float, str]:
    """Return the seconds to the page and to its first thumbnail, and the text of the page before."""
    start, page = time.perf_counter(), browser.new_page(bypass_csp=True)
    page.goto(address)
    first = time.perf_counter() - start
    page.wait_for_timeout(100)
    said = page.locator("#opening p").all_inner_texts()
    page.wait_for_function("document.querySelector('.tile img')?.naturalWidth > 0", timeout=300_000, polling=20)
    seen = time.perf_counter() - start
    page.close()
    return first, seen, f"({said[0]})" if said else ""


def memory(process: int) -> int:
    """Return the memory of a process in KiB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    main()
