"""`python -m farstep_worker`."""

from farstep_worker.main import main

if __name__ == "__main__":
    main()
