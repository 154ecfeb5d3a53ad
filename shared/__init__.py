"""What the device and the cloud must agree on: graphs, cuts, codecs, the wire, plans, configuration.

Nothing in here knows an event loop, a socket or a cluster, so all of it is tested in milliseconds.
"""
