"""Predictions in shards, which resume, so that any scheduler can run them: `predict_shard` and `merge_shards`."""

from rcnn.shards.merge import merge_shards
from rcnn.shards.predict import predict_shard

__all__ = ["merge_shards", "predict_shard"]
