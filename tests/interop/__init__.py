"""Real programs, the kernel at the other end: each test with the stack, and with a second kernel as the control."""
