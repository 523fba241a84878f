"""Programs that were written for the standard socket module."""
