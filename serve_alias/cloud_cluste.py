"""Lets ``serve run cloud_cluster`` find the application.

Ray Serve splits an import path at ``:`` or else at the last ``.``.  A bare name has neither, and Ray
then cuts off its last letter: it imports a module named ``cloud_cluste`` and asks it for an attribute
named ``cloud_cluster``.  This is that module.
"""

from cloud_cluster.application import app as cloud_cluster

__all__ = ["cloud_cluster"]
