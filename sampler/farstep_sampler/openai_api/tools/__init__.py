"""Tools: the functions that a model may ask for, and how each family of models writes that down."""
