"""The report for people: an artifact's proof, evaluation and attack as one page. Never imports `export`."""
