"""The control plane: sessions, runs, samplers and checkpoints over HTTP.

It provisions and lists; no tensor and no sample passes through it.
"""
