"""The router: one address for several replicas, with a replica's API. It samples nothing.

`python -m farstep_sampler.router --replica URL --replica URL …`
"""
