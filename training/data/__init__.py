"""Text, from documents to masked blocks."""
