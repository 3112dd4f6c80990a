"""What turns a batch of requests into tokens. One engine so far: torch, on CPU or GPU."""
