"""What a worker writes down before it answers, so that another one can go on where it was killed."""
