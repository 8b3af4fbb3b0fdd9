"""Settings become a plan: what is opened, checked and estimated before anything is computed."""
