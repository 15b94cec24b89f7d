"""Memory and time of a detector on a tiled TIFF of a gigapixel, which is read window by window (extra `large`).

    python benchmarks/gigapixel.py blood-cells picture.jpg [--megapixels 1000] [--tile auto]

Repeats the picture side by side up to this number of pixels, and counts the detections. The memory is the peak of this
process (Linux) beyond its memory with the detector loaded; another process writes the file.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import rcnn

WRITE = """
import sys, pyvips
source, target, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
image = pyvips.Image.new_from_file(source)
image = image.replicate(-(-side // image.width), -(-side // image.height)).crop(0, 0, side, side)
image.tiffsave(target, tile=True, tile_width=256, tile_height=256, bigtiff=True)
"""


def memory(key: str) -> float:
    """Return the memory of this process in MB: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--megapixels", type=float, default=1000)
    parser.add_argument("--tile", default="auto")
    options = parser.parse_args()
    side = round((options.megapixels * 1e6) ** 0.5)
    with TemporaryDirectory() as folder:
        path = Path(folder, "large.tif")
        subprocess.run([sys.executable, "-c", WRITE, options.picture, path, str(side)], check=True)
        changes = [f"predict.tile={options.tile}", f"data.max_pixels={min(178_956_970, side * side // 2)}"]
        detector = rcnn.load(options.weights, device="cpu").with_settings(changes)
        start, begun = memory("VmRSS"), time.perf_counter()
        (result,) = detector.predict(path)
        seconds = time.perf_counter() - begun
        windows = len(detector.viewer.views((side, side)))
        print(f"{side}x{side} pixels, {path.stat().st_size / 1e9:.2f} GB, {windows:,} windows: {len(result):,} boxes")
        print(f"{seconds:.0f} s, {seconds / side**2 * 1e6:.2f} s per megapixel")
        print(f"memory: {start:.0f} MB at the start, at most {memory('VmHWM') - start:.0f} MB more")


if __name__ == "__main__":
    main()
