"""What an edit costs: the same forward on several backends."""
