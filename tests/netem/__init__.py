"""`impair` beside tc-netem(8) itself, in a kernel that has it: `make netem`."""
