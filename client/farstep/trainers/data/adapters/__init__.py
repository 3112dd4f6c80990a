"""How a row becomes tokens: `RowAdapter` in `base`, and one file for each form of row."""
