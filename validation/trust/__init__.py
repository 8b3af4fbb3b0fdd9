"""Does the folder hold what it says? Hashes, agreement of its parts, tables, signature."""
