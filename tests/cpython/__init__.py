"""CPython's own tests of what stands on sockets, over the stack.

The interpreter's `test` package (Debian: libpython3.11-testsuite) is run as it is under `python -m usernet`, in a
network namespace where not even the kernel's loopback is up: nothing but the stack can carry an octet. `python -m
tests.cpython kernel` runs the same over the kernel's loopback, as the control. `expectations.toml` says what does not
pass, and why.
"""
