"""The contract between Farstep's processes: messages, paths, error table, tensor codec.

Every arrow between two processes is a message under `v1/`. This package imports nothing of ours and
holds no I/O, no clock and no state.
"""
