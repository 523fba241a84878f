"""mqtt_client.py HOST PORT SENT RECEIVED: publish the file SENT in messages, and take them back into RECEIVED."""

import sys
import threading

import paho.mqtt.client as mqtt

PART = 1 << 20
host, port, sent, received = sys.argv[1:]
with open(sent, "rb") as file:
    parts = list(iter(lambda: file.read(PART), b""))
subscribed, complete = threading.Event(), threading.Event()
taken = []
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.max_inflight_messages_set(20)


def on_message(_client, _data, message):
    taken.append(message.payload)
    if len(taken) == len(parts):
        complete.set()


client.on_message = on_message
client.on_subscribe = lambda *_: subscribed.set()
client.connect(host, int(port))
client.loop_start()
client.subscribe("parts", qos=1)
assert subscribed.wait(30)
for each in parts:
    client.publish("parts", each, qos=1)
assert complete.wait(120), f"{len(taken)} of {len(parts)} messages"
client.disconnect()
client.loop_stop()
with open(received, "wb") as file:
    file.writelines(taken)
