"""The cloud's side: a gateway for devices and replicas of the networks' tails, under Ray Serve.

``serve run cloud_cluster`` and ``serve run cloud_cluster:app`` start it; importing this costs no ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloud_cluster.application import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from cloud_cluster.application import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
