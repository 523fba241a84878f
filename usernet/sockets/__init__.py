"""The socket class and its implementation."""
