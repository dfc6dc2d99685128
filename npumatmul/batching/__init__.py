"""Rows in batches, and pools of members that compute them (docs/batching.md)."""

from npumatmul.batching.batch import Batch, BatchResults
from npumatmul.batching.gathering import QueueStats
from npumatmul.batching.members import PoolMember
from npumatmul.batching.pool import Pool

__all__ = ["Batch", "BatchResults", "Pool", "PoolMember", "QueueStats"]
