"""`python -m farstep_sampler`: one replica."""

from farstep_sampler.main import main

main()
