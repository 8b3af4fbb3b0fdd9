"""The report for people: what goes into it. Never imports `export`."""
