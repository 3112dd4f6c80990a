"""The data of trainers: sources, row adapters, chat templates with exact masks, mixing, cache, batches."""
