"""The fault campaign: layers are killed, stopped and made to fail under load, and the applications' own books judge.

    python -m tests.faults --help         the long form (`make faults`)
    pytest tests/faults                   the short form, and what else may be killed

flows.py      what was sent and what was answered, in shared memory: a load process writes, the campaign reads
load.py       the load: one process per role, one paced loop each
streams.py    the load of streams: bulk, requests and responses, short and idle connections; every octet is compared
stream_load.py  that load in a lab, towards the kernel or between two stacks on a wire
lab.py        a stack in a sandbox of its own, and its load; leaves nothing behind
schedule.py   which fault hits which layer at which moment; a seed tells all of it
campaign.py   carries a schedule out
verdict.py    what each fault did, from the books; leaks; the promises
report.py     tables
"""
