"""The finished artifact: card, licence, publishing, later changes."""
