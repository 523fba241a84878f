"""Support for programs that use the standard socket module."""
