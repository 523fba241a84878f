"""TCP tested by event lists of another project, from the other end of the link.

A case says what an application calls, which segments come in and which must go out. The runner makes the calls at the
subject's sockets and is the subject's peer itself: it reads and writes raw Ethernet frames, and no other TCP has a part
in it. `python -m tests.tcpcases linux` judges the kernel's TCP, which shows that the runner is right; `usernet` judges
the stack's. The cases are data from outside (`../shared/tcp-cases`); `expectations.toml` says which stack differs and
why.
"""
