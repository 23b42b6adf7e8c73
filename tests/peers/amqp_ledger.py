"""Consumes a durable queue bound to everything in a topic exchange and writes each message to a file before
acknowledging it.

usage: amqp_ledger.py HOST PORT FILE EXCHANGE
Prints `ready` when the queue is bound; connects again by itself, for ever.
"""
import json
import sys
import time

import pika

host, port, path, exchange = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ledger = open(path, "a", encoding="utf-8")


def on_message(channel, method, properties, body):
    ledger.write(json.dumps({
        "topic": method.routing_key,
        "payload": body.decode("utf-8", "replace"),
        "id": properties.message_id,
        "persistent": properties.delivery_mode == 2,
        "content_type": properties.content_type,
        "redelivered": method.redelivered,
    }) + "\n")
    ledger.flush()
    channel.basic_ack(method.delivery_tag)


while True:
    try:
        connection = pika.BlockingConnection(pika.ConnectionParameters(host, port, heartbeat=30))
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_declare("ledger", durable=True)
        channel.queue_bind("ledger", exchange, "#")
        channel.basic_qos(prefetch_count=500)
        channel.basic_consume("ledger", on_message)
        print("ready")
        channel.start_consuming()
    except (pika.exceptions.AMQPError, OSError) as error:
        print("again:", repr(error))
        time.sleep(0.2)
