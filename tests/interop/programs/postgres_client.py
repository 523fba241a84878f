"""postgres_client.py HOST PORT SENT RECEIVED: the file SENT into a table and out of it into RECEIVED."""

import sys

import pg8000.native

PART = 1 << 20
host, port, sent, received = sys.argv[1:]
with pg8000.native.Connection("postgres", host=host, port=int(port), database="postgres") as database:
    database.run("CREATE TABLE parts (number int PRIMARY KEY, octets bytea)")
    with open(sent, "rb") as file:
        for number, part in enumerate(iter(lambda: file.read(PART), b"")):
            database.run("INSERT INTO parts VALUES (:number, :octets)", number=number, octets=part)
    ((count,),) = database.run("SELECT count(*) FROM parts")
    with open(received, "wb") as file:
        for number in range(count):
            ((octets,),) = database.run("SELECT octets FROM parts WHERE number = :number", number=number)
            file.write(octets)
    assert database.run("SELECT sum(n) FROM generate_series(1, 100000) n") == [[5000050000]]
