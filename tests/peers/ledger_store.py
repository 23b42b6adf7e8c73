"""Stores every message of a broker as `tidegate verify-ledger` takes it: a line each, JSON as it came, other bodies in
base64 with what they are. Writes before it acknowledges.

usage: ledger_store.py mqtt|amqp HOST PORT FILE
Prints `ready` when the subscription stands; connects again by itself, for ever.
"""
import base64
import json
import sys
import time

protocol, host, port, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
stored = open(path, "a", encoding="utf-8")


def store(body, kind, encoding):
    # The state of the connection itself is no entry.
    if not kind or not kind.startswith("application/senml"):
        return
    if kind == "application/senml+json" and not encoding:
        stored.write(body.decode() + "\n")
    else:
        body = base64.b64encode(body).decode()
        stored.write(json.dumps({"content_type": kind, "content_encoding": encoding, "body_base64": body}) + "\n")
    stored.flush()


def mqtt():
    import paho.mqtt.client as mqtt

    def on_message(client, userdata, message):
        user = dict(getattr(message.properties, "UserProperty", None) or [])
        store(message.payload, getattr(message.properties, "ContentType", None), user.get("content-encoding"))
        client.ack(message.mid, message.qos)

    def on_connect(client, userdata, flags, reason, properties):
        if not reason.is_failure and not flags.session_present:
            client.subscribe("#", 2)

    session = mqtt.Properties(mqtt.PacketTypes.CONNECT)
    session.SessionExpiryInterval = 0xFFFFFFFF
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "store", protocol=mqtt.MQTTv5, manual_ack=True)
    client.on_message, client.on_connect = on_message, on_connect
    client.on_subscribe = lambda *_: print("ready")
    client.reconnect_delay_set(0.05, 0.5)
    client.connect_async(host, port, keepalive=30, clean_start=False, properties=session)
    client.loop_forever(retry_first_connection=True)


def amqp():
    import pika

    def on_message(channel, method, properties, body):
        store(body, properties.content_type, properties.content_encoding)
        channel.basic_ack(method.delivery_tag)

    while True:
        try:
            connection = pika.BlockingConnection(pika.ConnectionParameters(host, port, heartbeat=30))
            channel = connection.channel()
            channel.exchange_declare("tidegate", "topic", durable=True)
            channel.queue_declare("store", durable=True)
            channel.queue_bind("store", "tidegate", "#")
            channel.basic_qos(prefetch_count=500)
            channel.basic_consume("store", on_message)
            print("ready")
            channel.start_consuming()
        except (pika.exceptions.AMQPError, OSError) as error:
            print("again:", repr(error))
            time.sleep(0.2)


{"mqtt": mqtt, "amqp": amqp}[protocol]()
