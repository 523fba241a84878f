"""redis_client.py HOST PORT SENT RECEIVED: the file SENT into values and out of them into RECEIVED."""

import sys

import redis

PART = 4 << 20
host, port, sent, received = sys.argv[1:]
client = redis.Redis(host, int(port))
keys = []
with open(sent, "rb") as file:
    while part := file.read(PART):
        keys.append(f"part-{len(keys)}")
        client.set(keys[-1], part)
pipe = client.pipeline(transaction=False)
for number in range(2000):
    pipe.incr("counter", number)
assert pipe.execute()[-1] == sum(range(2000))
with open(received, "wb") as file:
    for key in keys:
        file.write(client.get(key))
