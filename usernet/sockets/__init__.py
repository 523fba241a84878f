"""The socket class and what stands behind it."""
