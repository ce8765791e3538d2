"""The real node of tests/cluster/node, once more: a session of its own, for what takes minutes."""

from tests.cluster.conftest import base
from tests.cluster.node.conftest import bench, cluster, kind, node, site, store, uninterrupted

__all__ = ["base", "bench", "cluster", "kind", "node", "site", "store", "uninterrupted"]
