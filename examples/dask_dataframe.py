"""Predict a folder of pictures with Dask, and write Parquet files with a row per picture.

    python examples/dask_dataframe.py MODEL PICTURES OUT --workers 8
    python examples/dask_dataframe.py MODEL PICTURES OUT --scheduler tcp://HOST:8786    # of a cluster of `distributed`

All workers need rcnn, and the files of the model and the pictures under the same paths. A picture that can't be read is
a row with an `error`.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker per core; before PyTorch is imported

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

import rcnn

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
SCHEMA = {
    "path": pa.string(),
    "boxes": pa.list_(pa.list_(pa.float32())),  # x1, y1, x2, y2 in pixels
    "scores": pa.list_(pa.float32()),
    "labels": pa.list_(pa.int64()),
    "names": pa.list_(pa.string()),
    "error": pa.string(),
}


def predict(pictures: pd.DataFrame, predictor: rcnn.BatchPredictor) -> pd.DataFrame:
    """Predict the pictures in the column `path`."""
    return pd.DataFrame(predictor(pictures))


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a weights file or a name")
    parser.add_argument("pictures", type=Path, help="a folder, which is searched recursively")
    parser.add_argument("out", help="a folder that does not exist, for the Parquet files")
    parser.add_argument("--score", type=float, help="lowest score of a box")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes on this machine")
    parser.add_argument("--scheduler", help="address of a cluster, instead of processes on this machine")
    parser.add_argument("--part", type=int, default=1000, help="pictures in a task, for which the model is loaded")
    options = parser.parse_args()
    if os.path.exists(options.out):
        parser.error(f"{options.out} exists; its files would be mixed with the new ones")
    if options.scheduler:
        from distributed import Client

        Client(options.scheduler)
    else:
        dask.config.set(scheduler="processes", num_workers=options.workers)
    paths = sorted(str(path) for path in options.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
    pictures = pd.DataFrame({"path": paths})
    predictor = rcnn.BatchPredictor(options.model, "path", score=options.score)
    parts = dd.from_pandas(pictures, chunksize=options.part)
    rows = parts.map_partitions(predict, predictor, meta=predict(pictures[:0], predictor))
    rows.to_parquet(options.out, schema=SCHEMA, write_index=False)


if __name__ == "__main__":
    main()
