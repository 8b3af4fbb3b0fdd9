"""The Edit, its dynamic reference (the hook), and the module that is shipped."""
