"""Everything between a path and a checked document: formats, listing, rows, fields."""
