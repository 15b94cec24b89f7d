"""Predict a folder of pictures with Spark, and write Parquet files with a row per picture.

    python examples/spark.py MODEL PICTURES OUT
    spark-submit --master URL --conf spark.executor.memoryOverhead=2g examples/spark.py MODEL PICTURES OUT

PICTURES and OUT may be on any file system that Spark reads. Executors run `python3`, or what PYSPARK_PYTHON names, and
need rcnn and the file of the model. A picture that can't be read is a row with an `error`.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import pandas as pd

import rcnn

COLUMNS = (
    "path string, boxes array<array<float>>, scores array<float>, labels array<long>, names array<string>, error string"
)
IN_MEMORY = 64
"""Pictures that a worker holds at the same time; the default of Spark is 10,000."""


def predict(frames: Iterator[pd.DataFrame], model: str, score: float | None = None) -> Iterator[pd.DataFrame]:
    """Predict the pictures in the column `content` of each frame."""
    predictor = rcnn.BatchPredictor(model, "content", score=score)
    for frame in frames:
        yield pd.DataFrame(predictor(frame)).drop(columns="content")


def main() -> None:
    """Read the arguments, and run."""
    from pyspark.sql import SparkSession

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a weights file or a name")
    parser.add_argument("pictures", help="a folder, which is searched recursively")
    parser.add_argument("out", help="a folder that does not exist, for the Parquet files")
    parser.add_argument("--score", type=float, help="lowest score of a box")
    parser.add_argument("--pattern", default="*.{jpg,jpeg,png}", help="of the names of the pictures")
    options = parser.parse_args()
    spark = SparkSession.builder.appName("rcnn").getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", IN_MEMORY)
    files = spark.read.format("binaryFile").option("recursiveFileLookup", True)
    pictures = files.option("pathGlobFilter", options.pattern).load(options.pictures).select("path", "content")
    rows = pictures.mapInPandas(partial(predict, model=options.model, score=options.score), COLUMNS)
    rows.write.parquet(options.out)
    spark.stop()


if __name__ == "__main__":
    main()
