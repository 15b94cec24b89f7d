"""Predict a folder of pictures with Ray Data, and write Parquet files with a row per picture.

    python examples/ray_data.py MODEL PICTURES OUT --workers 8
    RAY_ADDRESS=auto python examples/ray_data.py MODEL PICTURES OUT --workers 100    # on a node of a cluster

PICTURES and OUT may also be addresses, such as s3://bucket/photos. All nodes need rcnn and the file of the model. A
picture that can't be read is a row with an `error`.
"""

import argparse
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported: by default, it reports its use

import pyarrow as pa
import ray

import rcnn

SUFFIXES = ["jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp"]
IN_MEMORY = 32
"""Pictures that a worker holds at the same time."""
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "boxes": pa.list_(pa.list_(pa.float32())),  # x1, y1, x2, y2 in pixels
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int64()),
        "names": pa.list_(pa.string()),
        "error": pa.string(),
    }
)


class Predictor(rcnn.BatchPredictor):
    """Predicts a batch, and returns a table whose types do not depend on what was found."""

    def __call__(self, columns: dict) -> pa.Table:
        """Predict the pictures in the column `bytes`."""
        rows = super().__call__(columns)
        return pa.table({name: rows[name] for name in SCHEMA.names}, schema=SCHEMA)


def predict(model: str, pictures: str, out: str, workers: int, threads: int = 1, score: float | None = None) -> None:
    """Predict with `workers` processes, each of which loads the detector once and computes in `threads` threads."""
    light = {"num_cpus": 0}  # reading and writing; tasks that need a core would wait forever if the workers have all
    files = ray.data.read_binary_files(pictures, include_paths=True, file_extensions=SUFFIXES, ray_remote_args=light)
    rows = files.map_batches(
        Predictor,
        fn_constructor_args=[model],
        fn_constructor_kwargs={"score": score},
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=threads,  # Ray sets OMP_NUM_THREADS to it
        batch_size=IN_MEMORY,
    )
    rows.write_parquet(out, ray_remote_args=light)


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a weights file or a name")
    parser.add_argument("pictures", help="a folder, which is searched recursively")
    parser.add_argument("out", help="a folder that does not exist, for the Parquet files")
    parser.add_argument("--score", type=float, help="lowest score of a box")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument("--threads", type=int, default=1, help="cores of each")
    options = parser.parse_args()
    if os.path.exists(options.out):
        parser.error(f"{options.out} exists; its files would be mixed with the new ones")
    predict(options.model, options.pictures, options.out, options.workers, options.threads, options.score)


if __name__ == "__main__":
    main()
