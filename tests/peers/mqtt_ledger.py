"""Subscribes with a persistent session and writes each message to a file before acknowledging it.

usage: mqtt_ledger.py HOST PORT FILE FILTER QOS
Prints `ready` when the broker has granted the subscription; connects again by itself, for ever.
"""
import json
import sys

import paho.mqtt.client as mqtt

host, port, path, topic_filter, qos = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
ledger = open(path, "a", encoding="utf-8")


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        print("refused:", reason)
    elif flags.session_present:
        print("session resumed")
    else:
        client.subscribe(topic_filter, qos)


def on_subscribe(client, userdata, mid, reasons, properties):
    print("refused" if reasons[0].is_failure else "ready")


def on_message(client, userdata, message):
    properties = dict(getattr(message.properties, "UserProperty", None) or [])
    ledger.write(json.dumps({
        "topic": message.topic,
        "payload": message.payload.decode("utf-8", "replace"),
        "qos": message.qos,
        "retain": bool(message.retain),
        "dup": bool(message.dup),
        "properties": properties,
    }) + "\n")
    ledger.flush()
    client.ack(message.mid, message.qos)


session = mqtt.Properties(mqtt.PacketTypes.CONNECT)
session.SessionExpiryInterval = 0xFFFFFFFF
# What is in flight to this consumer comes again when the broker restarts: few, so that the sender's repeats stand out.
session.ReceiveMaximum = 20
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "ledger", protocol=mqtt.MQTTv5, manual_ack=True)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.reconnect_delay_set(0.05, 0.5)
client.connect_async(host, port, keepalive=30, clean_start=False, properties=session)
client.loop_forever(retry_first_connection=True)
