"""The forms of an artifact's files: manifest, golden vectors, graphs, engines. Needs no torch."""
