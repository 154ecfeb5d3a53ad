"""One cluster of two nodes for all tests of this directory that deploy from their own process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="package")
def nodes() -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster`` of our own, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Set for this process too: Ray reads them when it is imported.
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="package")
def started(nodes: Any) -> Iterator[Any]:
    """``ray.serve`` there, without its HTTP proxy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray import serve

        serve.start(proxy_location="Disabled")
        yield serve
        serve.shutdown()


@pytest.fixture
def serving(started: Any) -> Iterator[Any]:
    """``ray.serve``, on which nothing is deployed but by the test itself."""
    yield started
    started.delete("default")
