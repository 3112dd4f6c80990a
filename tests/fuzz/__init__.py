"""What nobody should send, sent to real servers: `make fuzz`, and a seeded part of it in the default suite."""
