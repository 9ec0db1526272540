"""gNOI and gNMI messages, wire-compatible with OpenConfig's published services, in our own words.

Only what DMS uses. Field numbers and full names are the published ones; unknown fields are kept by protobuf.
`python -m twin.backends.proto` generates the `_pb2` files again after a change (needs grpcio-tools).
"""
