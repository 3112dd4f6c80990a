"""Where processes are started. It knows command lines and lifetimes, nothing of sessions or runs."""
