"""The sampler: a replica that serves policies as they are published, and a router before several replicas.

It trains nothing and numbers no versions: it serves what the feed and the store give it.
"""
